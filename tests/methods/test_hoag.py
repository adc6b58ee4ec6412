"""HOAG against closed forms, step by step, and against exact hypergradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracles import F64, context, given

from metabench.contract.declared import Moduli
from metabench.contract.problem import Hyper
from metabench.core.capabilities import why_not
from metabench.core.registry import solvers, tasks
from metabench.methods.hoag import HOAG, judge_step
from metabench.tasks.families.no_data import NoData

OFFERS = ("outer_gradient", "second_order", "lam_in_inner_loss", "full_batch", "strongly_convex")


class Scalar(NoData):
    """h = 1/2 (x - 2)^2 + 1/2 e^lam x^2, g = 1/2 (x - 1)^2; x(lam) = 2 / (1 + e^lam), lam* = 0."""

    device = torch.device("cpu")
    carried = True
    hypers = (Hyper("lam", (), -6.0, 6.0),)

    def __init__(self, first: float = 1.0) -> None:
        self.first = first

    def init_outer(self):
        return {"lam": torch.tensor(self.first, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"x": torch.tensor(0.0, dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        x = theta["x"]
        return 0.5 * (x - 2).square() + 0.5 * lam["lam"].exp() * x.square()

    def outer_loss(self, lam, theta, batch):
        return 0.5 * (theta["x"] - 1).square()

    def moduli(self, lam):
        size = 1 + math.exp(float(lam["lam"]))
        return Moduli(size, size)


def run(method, ctx, steps):
    state, logs = method.init(ctx), []
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
        logs.append(log)
    return state, logs


def test_the_first_step_in_closed_form():
    """At lam = 1: x = 0.53788284274, q = -0.12428244511, p = 0.18171549535, and with L = 1 the next
    lam is 0.81828450465."""
    state, (log,) = run(HOAG(schedule="exact", smooth=1.0), given(Scalar(), *OFFERS), 1)
    here = state.memory["accepted"]
    (warm,) = here["warm"]
    assert float(warm["theta"]["x"]) == pytest.approx(0.53788284274, abs=1e-11)
    assert float(warm["q"][0]) == pytest.approx(-0.12428244511, abs=1e-11)
    assert float(here["p"]["lam"]) == pytest.approx(0.18171549535, abs=1e-11)
    assert float(state.lam["lam"]) == pytest.approx(0.81828450465, abs=1e-11)
    assert log["hypergradient_norm"] == pytest.approx(0.18171549535, abs=1e-11)


@pytest.mark.parametrize("schedule", ["exponential", "quadratic", "cubic", "exact"])
@pytest.mark.parametrize("rule", ["lbfgs", "fista", "gd"])
def test_every_schedule_ends_at_the_minimum(schedule, rule):
    method = HOAG(schedule=schedule, solver_rule=rule)
    state, logs = run(method, given(Scalar(), *OFFERS), 60)
    assert abs(float(state.lam["lam"])) < 1e-3
    assert logs[-1]["outer_loss"] < 1e-6


def test_schedules():
    def eps(schedule, first=0.1):
        method = HOAG(schedule=schedule, first_tolerance=first)
        return [method.accuracy.at(k) for k in (1, 2, 3)]

    assert eps("exponential") == pytest.approx([0.1, 0.09, 0.081])
    assert eps("quadratic") == pytest.approx([0.1, 0.025, 0.1 / 9])
    assert eps("cubic") == pytest.approx([0.1, 0.0125, 0.1 / 27])
    assert eps("exact") == [1e-12] * 3
    assert eps("cubic", 1e-12) == [1e-12] * 3


def test_the_step_rule_on_a_recorded_sequence():
    def verdict(value, before, eps=0.01, eps_before=0.02, move=0.5, smooth=2.0):
        # allowed: before + 0.0025 + 0.02 * 1.25 * 0.5 - 2 * 0.25 = before - 0.485
        here = {"value": value, "eps": eps}
        return judge_step(here, {"value": before, "eps": eps_before}, move, smooth)

    assert verdict(9.514, 10.0) == "success"
    assert verdict(9.516, 10.0) == "accept"
    assert verdict(11.99, 10.0) == "accept"
    assert verdict(12.0, 10.0) == "reject"


def test_a_rejected_step_goes_back_to_where_it_came_from():
    """L far too small: lam leaps, the outer loss is 1.2 times larger, and half the step is tried
    from the old lam, without a new gradient there."""
    ctx = given(Scalar(0.2), *OFFERS)
    method = HOAG(schedule="exact", smooth=1e-3)
    first, _ = run(method, ctx, 1)
    assert float(first.lam["lam"]) == -6.0, "the box holds it"
    second, log = method.step(ctx, first)
    there = first.memory["accepted"]
    assert log["outer_loss"] > 1.2 * there["value"]
    assert second.memory["accepted"] is there and second.memory["smooth"] == 2e-3
    assert second.memory["factor"] == 0.5
    for step in range(2, 14):
        ctx.step = step
        second, log = method.step(ctx, second)
    assert log["outer_loss"] < there["value"]


def test_the_authors_code_moves_twice():
    once, twice = (
        run(HOAG(schedule="exact", smooth=1.0, double_step=d), given(Scalar(), *OFFERS), 1)[0]
        for d in (False, True)
    )
    moved = 1.0 - float(once.lam["lam"])
    assert 1.0 - float(twice.lam["lam"]) == pytest.approx(2 * moved, abs=1e-12)


@pytest.mark.parametrize("name", ["ridge", "quadratic", "shrinkage"])
def test_its_hypergradient_is_the_exact_one(name):
    ctx = context(name)
    state, _ = run(HOAG(schedule="exact"), ctx, 1)
    (p,) = state.memory["accepted"]["p"].values()
    problem = ctx.problem
    lam = problem.init_outer()
    if name == "shrinkage":
        w = 1 / (1 + float(lam["log_penalty"].exp()))
        exact = torch.tensor([-w * (1 - w) * (w - problem.task.target)], dtype=F64)
    else:
        exact = problem.exact_hypergradient(lam)
    torch.testing.assert_close(p, exact.reshape(p.shape), rtol=1e-9, atol=1e-11)


def test_decreasing_tolerances_cost_less_than_exact_solves():
    """The same minimum of ridge regression, to 1e-6 of the outer loss."""
    ends = {}
    for schedule in ("exponential", "cubic", "exact"):
        ctx = context("ridge")
        _, logs = run(HOAG(schedule=schedule), ctx, 40)
        ends[schedule] = logs[-1]["outer_loss"], ctx.meter.counts
    value, exact = ends.pop("exact")
    for found, counts in ends.values():
        assert found == pytest.approx(value, rel=1e-5)
        assert counts.inner_gradients < 0.6 * exact.inner_gradients
        assert counts.hvps < exact.hvps


def test_a_solve_that_misses_its_accuracy_is_noted():
    ctx = context("ridge")
    run(HOAG(schedule="cubic", most_gradients=3), ctx, 2)
    assert ctx.notes["inner_accuracy_first_missed_at_outer_step"] == 0
    ctx = context("ridge")
    run(HOAG(), ctx, 2)
    assert "inner_accuracy_first_missed_at_outer_step" not in ctx.notes


def test_a_warm_start_is_carried_on():
    """At a lam that hardly moves, a solve starts where the last one ended."""
    ctx = context("ridge")
    _, logs = run(HOAG(schedule="exact", smooth=1e15, step_rule="fixed"), ctx, 3)
    assert logs[0]["inner_solve_gradients"] > 10
    assert logs[2]["inner_solve_gradients"] <= 2


def test_it_adapts_to_the_lam_that_it_ends_with():
    ctx = context("ridge")
    method = HOAG()
    state, _ = run(method, ctx, 5)
    theta = method.adapt(ctx, state, ctx.problem.episode("test", 0))
    torch.testing.assert_close(theta["w"], ctx.problem.solve(state.lam), rtol=0, atol=1e-3)


def test_who_may_run_it():
    hoag = HOAG()
    assert why_not(tasks.get("ridge")(), hoag, solvers.get("sgd")()) is None
    assert "strongly convex" in (why_not(tasks.get("two_minima")(), hoag) or "")
    said = why_not(tasks.get("ridge")(), hoag, solvers.get("adam")())
    assert said == "hoag solves the inner problem by solver_rule, not by adam"


def test_not_carried_and_carried_are_one_run():
    states = []
    for carried in (False, True):
        task = replace(tasks.get("ridge")(), carried=carried)
        states.append(run(HOAG(), context(task), 4)[0])
    assert states[0].theta is None and states[1].theta is not None
    torch.testing.assert_close(states[0].lam, states[1].lam, rtol=0, atol=0)
