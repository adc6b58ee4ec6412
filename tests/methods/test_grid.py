"""Grid search: every point once, then again, answered for by means; warm starts."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import F64, context

from metabench.contract.problem import Hyper
from metabench.core.capabilities import why_not
from metabench.core.registry import tasks
from metabench.hypergradients.search.arms import nodes
from metabench.hypergradients.search.gradient_free import ARMS
from metabench.methods.grid import Grid
from metabench.tasks.step_size import StepSize


def run(method, ctx, steps):
    state, logs = method.init(ctx), []
    for ctx.step in range(steps):
        state, log = method.step(ctx, state)
        logs.append(log)
    return state, logs


def test_every_point_comes_once_and_then_again():
    ctx = context(StepSize(low=0.01, high=100.0, spread=0.0))
    method = Grid(points=5, inner_steps=3)
    kinds = [0]
    asked = []
    for ctx.step in range(10):
        asked.append(method.ask(ctx, method.init(ctx), kinds)[0])
    assert sorted(asked[:5]) == [0, 0.25, 0.5, 0.75, 1] and asked[5:] == asked[:5]
    ctx.step = 0
    state, _ = run(method, ctx, 5)
    assert float(state.lam["rate"]) == pytest.approx(1.0) and state.memory["best"] < 1e-30


def test_a_point_seen_again_is_answered_for_by_its_mean():
    """One of the points is lucky the first time round."""
    ctx = context(StepSize(spread=0.0))
    losses = iter([0.5, 0.1, 0.3, 0.5, 0.9, 0.3])
    ctx.problem.outer_loss = lambda lam, theta, batch: torch.tensor(next(losses), dtype=F64)
    method = Grid(points=3, inner_steps=0)
    first, _ = run(method, ctx, 3)
    assert first.memory["best"] == pytest.approx(0.1)
    state = first
    for ctx.step in (3, 4, 5):
        state, log = method.step(ctx, state)
    assert state.memory["best"] == pytest.approx(0.3)
    third = state.memory[ARMS][2]
    assert torch.equal(state.lam["rate"], third["lam"]["rate"]) and third["count"] == 2
    assert log["cumulative_loss"] == pytest.approx(2.6)


def test_a_choice_that_makes_another_idle_is_tried_once():
    hypers = (
        Hyper("a", (), choices=("off", "on")),
        Hyper("b", (), 0.0, 1.0, only_if=("a", ("on",))),
    )
    ctx = context("quadratic")
    ctx.problem.hypers = hypers
    ctx.problem.init_outer = lambda: {k: torch.tensor(0.0, dtype=F64) for k in "ab"}
    method, asked = Grid(points=3), []
    for ctx.step in range(4):
        asked.append(tuple(method.ask(ctx, method.init(ctx), [2, 0])))
    assert sorted(asked) == [(0.25, 0.0), (0.75, 0.0), (0.75, 0.5), (0.75, 1.0)]


def test_a_warm_start_goes_on_from_a_neighbour():
    walk = nodes(((0.0, 0.5, 1.0), (0.0, 1.0)), None)
    assert sorted(walk) == sorted(itertools.product((0.0, 0.5, 1.0), (0.0, 1.0)))
    assert all(sum(u != w for u, w in zip(a, b, strict=True)) == 1
               for a, b in itertools.pairwise(walk))  # fmt: skip
    errors = {}
    for warm in (False, True):
        ctx = context("shrinkage")
        method = Grid(points=9, inner_steps=1, inner_lr=0.2, warm_start=warm)
        state, _ = run(method, ctx, 5)
        theta = state.memory["warm"][0]["theta"]["w"] if warm else torch.zeros(1)
        errors[warm] = ctx.meter.counts, theta
    assert errors[False][0].trainings == 5 and errors[True][0].trainings == 1
    assert errors[False][0].inner_gradients == errors[True][0].inner_gradients == 5
    assert float(errors[True][1]) > 0.5  # five steps from 0 on the way to 1, not one
    assert "best_response" in Grid(warm_start=True).needs
    assert why_not(tasks.get("step_size")(), Grid(warm_start=True)) is not None


def test_a_grid_too_large_is_visited_at_random():
    ctx = context("ridge")
    method = Grid(points=10)
    kinds = [0] * 10
    one = method.ask(ctx, method.init(ctx), kinds)
    assert len(one) == 10 and all(u * 9 == pytest.approx(round(u * 9)) for u in one)
    assert one == method.ask(ctx, method.init(ctx), kinds)
    ctx.step = 1
    assert one != method.ask(ctx, method.init(ctx), kinds)
