"""Solves to an accuracy: the norm is reached, the distance a bound, every gradient counted."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, context, given

from metabench.contract.declared import Moduli
from metabench.core.errors import Diverged, SettingError
from metabench.hypergradients.inexact.inner_solve import to_accuracy
from metabench.tasks.families.no_data import NoData


class Bowl(NoData):
    """G = 1/2 (theta - lam)' A (theta - lam), eigenvalues of A from 1 to ``condition``."""

    device = torch.device("cpu")

    def __init__(self, condition: float = 200.0, dim: int = 30, bounds: bool = True) -> None:
        self.bounds, self.condition = bounds, condition
        gen = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=gen, dtype=F64))[0]
        values = torch.logspace(0, math.log10(condition), dim, dtype=F64)
        self.A = turn @ torch.diag(values) @ turn.T
        self.lam = {"c": torch.linspace(-1, 1, dim, dtype=F64)}

    def init_outer(self):
        return self.lam

    def init_inner(self, lam, episode):
        return {"w": torch.zeros_like(self.lam["c"])}

    def inner_loss(self, lam, theta, batch):
        gap = theta["w"] - lam["c"]
        return 0.5 * gap @ self.A @ gap

    def outer_loss(self, lam, theta, batch):
        return theta["w"].square().sum()

    def moduli(self, lam):
        return Moduli(1.0, self.condition) if self.bounds else None


def solved(problem, norm, rule, **more):
    ctx = given(problem)
    episode = problem.episode("train", 0)
    start = problem.init_inner(problem.lam, episode)
    return ctx, to_accuracy(ctx, problem.lam, start, episode, norm=norm, rule=rule, **more)


@pytest.mark.parametrize("rule", ["lbfgs", "fista", "gd"])
@pytest.mark.parametrize("norm", [1.0, 1e-3, 1e-8])
def test_the_norm_is_reached_and_the_distance_is_a_bound(rule, norm):
    problem = Bowl()
    ctx, found = solved(problem, norm, rule)
    gap = found.theta["w"] - problem.lam["c"]
    assert found.reached and found.gradient_norm <= norm
    assert found.gradient_norm == pytest.approx(float((problem.A @ gap).norm()), rel=1e-5)
    assert float(gap.norm()) <= found.distance == found.gradient_norm
    assert found.certified
    assert ctx.meter.counts.inner_gradients == found.steps > 1
    assert not found.theta["w"].requires_grad


def test_acceleration_takes_a_tenth_of_the_steps_of_plain_descent():
    """Condition 200: about sqrt(200) fewer, as theory says (elsewhere 303 against 3,587)."""
    steps = {rule: solved(Bowl(), 1e-8, rule)[1].steps for rule in ("gd", "fista", "lbfgs")}
    assert steps["fista"] < steps["gd"] / 8
    assert steps["lbfgs"] < steps["fista"]


def test_an_accuracy_beyond_rounding_ends_with_the_best_point():
    _, found = solved(Bowl(), 0.0, "lbfgs", limit=500)
    assert not found.reached and found.gradient_norm < 1e-11
    _, few = solved(Bowl(), 1e-8, "gd", limit=7)
    assert not few.reached and few.steps == 7


def test_a_start_that_is_good_enough_costs_one_gradient():
    problem = Bowl()
    ctx, episode = given(problem), problem.episode("train", 0)
    found = to_accuracy(ctx, problem.lam, {"w": problem.lam["c"]}, episode, norm=1e-9)
    assert found.steps == 1 and ctx.meter.counts.inner_gradients == 1


def test_descent_without_bounds_is_refused_and_lbfgs_promises_no_distance():
    with pytest.raises(SettingError, match='rule "fista" takes its step from'):
        solved(Bowl(bounds=False), 1e-3, "fista")
    _, found = solved(Bowl(bounds=False), 1e-3, "lbfgs")
    assert found.reached and found.distance is None and not found.certified


def test_a_first_gradient_that_is_no_number_is_told():
    problem = Bowl()
    problem.lam = {"c": problem.lam["c"].clone()}
    problem.lam["c"][3] = math.nan
    with pytest.raises(Diverged, match="the inner gradient at outer step 0 is not finite"):
        solved(problem, 1e-3, "lbfgs")


def test_a_penalty_taken_by_hand_is_part_of_the_value():
    ctx = context("ridge")
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 0)
    theta = {"w": torch.linspace(-1, 1, 10, dtype=F64)}
    value, g = ctx.inner_value_and_grad(lam, theta, episode.inner)
    leaf = {"w": theta["w"].clone().requires_grad_()}
    expected = problem.inner_loss(lam, leaf, episode.inner)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-14, atol=0)
    (slope,) = torch.autograd.grad(expected, leaf["w"])
    torch.testing.assert_close(g["w"], slope, rtol=1e-13, atol=1e-15)
    found = to_accuracy(ctx, lam, theta, episode, norm=1e-11)
    torch.testing.assert_close(found.theta["w"], problem.solve(lam), rtol=0, atol=1e-10)
