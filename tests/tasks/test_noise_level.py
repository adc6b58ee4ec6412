"""noise_level: the noise is found without validation rows, and the loss is a likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks


def test_the_outer_loss_is_minus_the_mean_log_likelihood():
    problem = context("noise_level").problem
    lam = problem.init_outer() | {"log_noise": torch.tensor(-0.7, dtype=F64)}
    batch = problem.parts["valid"]
    mean = problem.predict(lam, problem.fresh, batch)
    law = torch.distributions.Normal(mean, math.exp(-0.7))
    found = problem.outer_loss(lam, problem.fresh, batch)
    assert float(found) == pytest.approx(-float(law.log_prob(batch["y"]).mean()), abs=1e-12)


def test_the_noise_is_found_on_all_rows():
    task = tasks.get("noise_level")(validation=0.0)
    ctx = context(task, "adam")
    method = methods.get("marglik")(inner_steps=30, inner_lr=0.02, lam_steps=4, outer_lr=0.1)
    assert why_not(task, method) is None and "no validation loss" in (
        why_not(task, methods.get("ift")()) or ""
    )
    state = method.init(ctx)
    for ctx.step in range(18):
        state, _ = method.step(ctx, state)
    found = ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("test", 0))
    assert 0.17 < found["noise"] < 0.24, "0.2 was drawn"
    assert found["loss"] < 0.0, "that of the true law is -0.19"
