"""Bounds that a problem does not give: estimates near the truth, counted, and never certified."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import F64, context, given

from metabench.conformance.test_problems import Wrapped
from metabench.hypergradients.inexact.moduli import borrowed, complete, missing
from metabench.tasks.least_squares import LeastSquares

PARTS = ("outer_smooth", "mixed", "mixed_lipschitz", "hessian_lipschitz", "direct_lipschitz")


class Hidden(Wrapped):
    """A problem that keeps some of its moduli, or all, to itself."""

    def __init__(self, problem, *names):
        super().__init__(problem)
        self.names = names

    def moduli(self, lam):
        known = self._problem.moduli(lam)
        return replace(known, **dict.fromkeys(self.names)) if self.names else None


def completed(problem, theta):
    ctx = given(problem)
    lam = problem.init_outer()
    return ctx, complete(ctx, lam, theta, problem.episode("train", 0))


def test_what_a_problem_gives_is_taken_as_it_is():
    problem = context("ridge").problem
    theta = {"w": torch.ones(10, dtype=F64)}
    ctx, found = completed(problem, theta)
    known = problem.moduli(problem.init_outer())
    assert found.certified and not missing(found)
    assert (found.mu, found.smooth) == (known.mu, known.smooth)
    assert ctx.meter.counts.inner_gradients == 0


@pytest.mark.parametrize("names", [PARTS, ("mixed",), ()])
def test_estimates_are_near_the_truth_and_not_above(names):
    problem = context(LeastSquares(rows=20, dim=4, condition=3.0)).problem
    theta = {"x": torch.linspace(-1, 1, 4, dtype=F64)}
    ctx, found = completed(Hidden(problem, *names), theta)
    known = problem.moduli(problem.init_outer())
    assert not found.certified and ctx.meter.counts.inner_gradients > 0
    assert known.mu * 0.999 <= found.mu <= 1.5 * known.mu
    for name in ("smooth", "outer_smooth"):
        assert 0.98 * getattr(known, name) <= getattr(found, name) <= 1.0001 * getattr(known, name)
    assert 0.98 * known.mixed(theta) <= found.mixed(theta) <= 1.0001 * known.mixed(theta)
    for name in PARTS[2:]:
        assert getattr(found, name) == pytest.approx(0.0, abs=1e-5)


def test_lipschitz_constants_of_ridge():
    """J = diag(e^lam w) changes by e^lam = 1 with w; H does not."""
    problem = context("ridge").problem
    theta = {"w": torch.linspace(-1, 1, 10, dtype=F64)}
    _, found = completed(Hidden(problem, *PARTS), theta)
    assert 0.1 < found.mixed_lipschitz <= 1.0001
    assert found.hessian_lipschitz == pytest.approx(0.0, abs=1e-6)


def test_what_is_borrowed_is_not_certified():
    problem = context("ridge").problem
    known = problem.moduli(problem.init_outer())
    assert borrowed(known, known).certified
    part = replace(known, mixed=None)
    found = borrowed(part, known)
    assert not found.certified and found.mixed is known.mixed
    assert not borrowed(None, known).certified
