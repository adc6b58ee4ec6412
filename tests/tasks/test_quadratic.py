"""The formulation "prior" of the closed-form problem: iMAML's problem, with lam in the inner loss.

In one dimension, with a = 2, mu = 2, t = b lam_0 = 0.6, c = 0.7, lam = -1:
w* = (2 0.6 - 2) / 4 = -0.2, hypergradient 2/4 (-0.2 - 0.7) = -0.45.
"""

import pytest
import torch
from oracles import context, differences, hypergradient

from metabench.core.registry import tasks

Quadratic = tasks.get("quadratic")
SOLVED = {"inner_steps": 400, "inner_lr": 0.15}


def test_the_scalar_case_by_hand():
    ctx = context(Quadratic(formulation="prior"))
    lam = ctx.problem.init_outer()
    assert float(ctx.problem.minimiser(lam)) == pytest.approx(-0.2, abs=1e-14)
    assert float(ctx.problem.exact_hypergradient(lam)) == pytest.approx(-0.45, abs=1e-14)
    found = hypergradient(ctx, "ift", inverse="exact", **SOLVED)
    assert float(found["lam"]) == pytest.approx(-0.45, abs=1e-12)


@pytest.mark.parametrize("precision", [0.5, 2.0])
def test_the_exact_hypergradient_is_the_slope_of_the_solved_problem(precision):
    ctx = context(Quadratic(dim=4, formulation="prior", prior_precision=precision))
    problem, lam = ctx.problem, ctx.problem.init_outer()
    at = {"w": problem.minimiser(lam).requires_grad_()}
    (slope,) = torch.autograd.grad(problem.inner_loss(lam, at, {}), at["w"])
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-13)
    expected = differences(lambda p: problem.outer_loss(p, {"w": problem.minimiser(p)}, {}), lam)
    exact = problem.exact_hypergradient(lam)
    torch.testing.assert_close(exact, expected["lam"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ift", {"inverse": "exact"}),
        ("ift", {"inverse": "cg", "terms": 4}),
        ("bilevel", {}),
        ("amigo", {"linear_steps": 400}),
        ("stocbio", {"linear_steps": 400}),
    ],
)
def test_methods_that_are_exact_in_the_limit_agree(name, own):
    ctx = context(Quadratic(dim=4, formulation="prior"))
    exact = ctx.problem.exact_hypergradient(ctx.problem.init_outer())
    found = hypergradient(ctx, name, **SOLVED, **own)["lam"]
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("formulation", "products"), [("prior", 5), ("target", 4)])
def test_unrolling_goes_through_the_start_where_that_is_lam(formulation, products):
    ctx = context(Quadratic(dim=3, formulation=formulation))
    hypergradient(ctx, "bilevel", inner_steps=5)
    assert (ctx.meter.counts.hvps, ctx.meter.counts.mixed_products) == (products, 5)


def test_it_is_the_gradient_of_imaml_on_learned_starts():
    """The same pull, part of the problem in the one case and of the method in the other."""
    prior = context(Quadratic(dim=4, formulation="prior", prior_precision=1.5))
    start = context(Quadratic(dim=4, formulation="init"))
    one = hypergradient(prior, "ift", inverse="exact", **SOLVED)["lam"]
    other = hypergradient(start, "imaml", mu=1.5, terms=20, **SOLVED)["lam"]
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
