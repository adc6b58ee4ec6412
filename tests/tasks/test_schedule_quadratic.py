"""schedule_quadratic: the parabola by hand, its gradient, and evolution strategies on both."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, after_training, context, differences, hypergradient

from metabench.core.registry import methods, tasks

TASK = tasks.get("schedule_quadratic")
TENTH = math.log(0.1)


def test_a_schedule_without_slope_in_closed_form():
    """h = 2, seven steps of 0.1 from -1: F = (0.8^7)^2, of which w_T^2 / 2 is half."""
    ctx = context(TASK(first_log_rate=TENTH))
    g = hypergradient(ctx, "bilevel", inner_steps=7, inner_lr=1.0)["log_rate"]
    assert float(g.sum()) / 2 == pytest.approx(-0.07696581394, abs=1e-11)
    method = methods.get("bilevel")(inner_steps=7, inner_lr=1.0)
    value = after_training(method, ctx)(ctx.problem.init_outer())
    assert float(value) == pytest.approx(0.8**14, abs=1e-14)


def test_a_schedule_ends_where_the_product_says():
    ctx = context(TASK(steps=3, curvature=0.7))
    lam = {"log_rate": torch.tensor([-1.0, 0.5], dtype=F64)}
    method = methods.get("bilevel")(inner_steps=4, inner_lr=1.0)
    w = -1.0
    for log in (-1.0, -0.25, 0.5, 0.5):
        w *= 1 - 0.7 * math.exp(log)
    assert float(after_training(method, ctx)(lam)) == pytest.approx(0.35 * w * w, abs=1e-15)


def test_the_gradient_in_the_valley_is_that_of_differences():
    ctx = context(TASK(surface="valley", steps=20, first_log_rate=-2.0))
    method = methods.get("bilevel")(inner_steps=20, inner_lr=1.0)
    found = hypergradient(ctx, "bilevel", inner_steps=20, inner_lr=1.0)["log_rate"]
    true = differences(after_training(method, ctx), ctx.problem.init_outer())["log_rate"]
    assert torch.allclose(found, true, rtol=1e-7)


def test_the_valleys_floor_is_where_the_paper_has_it():
    problem = context(TASK(surface="valley")).problem
    at = torch.tensor([0.0, 100.0], dtype=F64)
    assert float(problem.height(at)) == pytest.approx(math.sin(100) ** 2)
    assert float(problem.height(problem.start)) == pytest.approx(
        math.sqrt(6) - math.sqrt(5) + math.sin(1) ** 2 * math.exp(-5) + 24.75
    )


@pytest.mark.parametrize("estimator", ["full", "persistent", "single"])
def test_evolution_strategies_lengthen_steps_that_are_too_short(estimator):
    ctx = context(TASK(first_log_rate=TENTH))
    method = methods.get("es")(
        estimator=estimator, inner_steps=7, segment=1, pairs=6, inner_lr=1.0, outer_lr=0.1
    )
    state, episode = method.init(ctx), ctx.problem.episode("test", 0)

    def loss() -> float:
        return float(ctx.problem.outer_loss({}, method.adapt(ctx, state, episode), {}))

    first = loss()
    for ctx.step in range(20 if estimator == "full" else 70):
        state, _ = method.step(ctx, state)
    assert loss() < 0.25 * first
