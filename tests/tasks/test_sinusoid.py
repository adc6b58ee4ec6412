"""sinusoid: the floors by mathematics, and second order beats first order."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks
from metabench.run.evaluation import evaluate
from metabench.tasks.sinusoid import best_unadapted


def test_an_episode_is_a_sine_of_the_papers_law():
    problem = context(tasks.get("sinusoid")(dtype="float64", shots=5)).problem
    sizes, phases = [], []
    for i in range(400):
        episode = problem.episode("test", i)
        x, y = (episode.outer[k][:, 0] for k in ("x", "y"))
        assert x[0] == -5 and x[-1] == 5 and len(episode.inner["x"]) == 5
        fit = torch.linalg.lstsq(torch.stack([x.sin(), x.cos()], 1), y[:, None]).solution[:, 0]
        both = torch.cat([episode.inner["x"], episode.outer["x"]])
        values = torch.cat([episode.inner["y"], episode.outer["y"]])
        made = fit[0] * both.sin() + fit[1] * both.cos()
        assert torch.allclose(made, values, atol=1e-12), "support and query are of one sine"
        sizes.append(float(fit.norm()))
        phases.append(math.atan2(-float(fit[1]), float(fit[0])))
    assert 0.1 <= min(sizes) < 0.2 and 4.9 < max(sizes) <= 5.0
    assert 0.0 <= min(phases) < 0.05 and 3.1 < max(phases) <= math.pi
    support = problem.episode("train", 0).inner["x"]
    assert not torch.equal(support, problem.episode("train", 0).outer["x"][:5])


def test_the_best_function_without_a_point_is_the_mean_sine():
    """By quadrature over amplitude and phase; its error is E[y^2] less its own mean square."""
    x = torch.linspace(-5, 5, 2001, dtype=F64)
    phase = math.pi * (torch.arange(2000, dtype=F64) + 0.5) / 2000
    mean = 2.55 * (x[:, None] - phase).sin().mean(1)
    assert torch.allclose(best_unadapted(x), mean, atol=1e-6)
    a2 = (5**3 - 0.1**3) / (3 * 4.9)
    weights = torch.full_like(x, 1 / 2000)
    weights[[0, -1]] /= 2
    nothing = a2 * float(weights @ (x[:, None] - phase).sin().square().mean(1))
    assert nothing == pytest.approx(4.25166667, abs=1e-5)
    assert nothing - float(weights @ mean.square()) == pytest.approx(3.00566936, abs=1e-5)
    problem = context(tasks.get("sinusoid")(dtype="float64", test_queries=500)).problem
    lam = problem.init_outer()
    found = [problem.metrics(lam, lam, problem.episode("test", i)) for i in range(2000)]
    assert sum(m["best_unadapted"] for m in found) / 2000 == pytest.approx(3.006, abs=0.15)


def learned(name: str, steps: int, **settings: object) -> float:
    """Test mse of 200 sines after 5 inner steps of 0.02."""
    ctx = context(tasks.get("sinusoid")(meta_batch=10, weights="uniform"), engine="vmap")
    method = methods.get(name)(inner_lr=0.02, test_steps=5, **settings)
    state = method.init(ctx)
    for ctx.step in range(steps):
        state, _ = method.step(ctx, state)
    return evaluate(ctx, method, state, "test", 200)["mse"].mean


def test_second_order_beats_first_order_and_no_learning():
    maml, first = (learned("maml", 300, outer_lr=5e-3, order=o) for o in ("second", "first"))
    nothing = learned("fixed", 0)
    assert maml < 0.8 * first and maml < 0.5 * nothing


def test_methods_that_need_lam_in_the_inner_loss_are_refused_with_the_reason():
    said = why_not(tasks.get("sinusoid")(), methods.get("ift")())
    assert said == "lam is where theta starts: the inner loss does not have it"
