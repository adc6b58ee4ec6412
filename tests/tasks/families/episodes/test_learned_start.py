"""Learned starts of networks that fit functions: where theta starts, or the centre of a prior."""

from __future__ import annotations

import pytest
import torch
from oracles import context

from metabench.contract import autodiff
from metabench.contract.method import inner_loop
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks

SMALL = {
    "sinusoid": {"meta_batch": 2, "width": 5, "weights": "uniform", "dtype": "float64"},
    "inr": {"size": 4, "width": 4, "n_train": 4, "n_valid": 2, "n_test": 2, "dtype": "float64"},
}
of_both = pytest.mark.parametrize("name", SMALL)
SEVERAL = ("ift", "sgld", "pbgd", "one_step", "bilevel", "amigo", "stocbio", "f2sa")


def of(name, **own):
    return context(tasks.get(name)(**{**SMALL[name], **own}))


@of_both
def test_the_inner_loss_has_the_prior_and_the_outer_loss_has_not(name):
    ctx, plain = of(name, formulation="prior", prior_precision=3.0), of(name)
    problem, lam = ctx.problem, ctx.problem.init_outer()
    assert all(torch.equal(v, lam[k]) for k, v in plain.problem.init_outer().items())
    episode = problem.episode("train", 0)
    start = problem.init_inner(lam, episode)
    assert all(torch.equal(start[k], lam[k]) for k in lam), "theta starts at the centre"
    theta = {k: v + 0.1 for k, v in start.items()}
    n = sum(v.numel() for v in theta.values())
    for batch, loss in ((episode.batch(0), "inner_loss"), (episode.outer, "outer_loss")):
        error = float(getattr(plain.problem, loss)(lam, theta, batch))
        more = 1.5 * n * 0.01 if loss == "inner_loss" else 0.0
        assert float(getattr(problem, loss)(lam, theta, batch)) == pytest.approx(error + more)


@of_both
def test_the_implicit_gradient_is_the_slope_of_the_solved_problem(name):
    """Along a direction of lam, with the inner problem solved at every point of the difference. A
    strong prior and small differences: no step crosses a kink of a ReLU."""
    ctx = of(name, formulation="prior", prior_precision=1500.0)
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 1)
    made = settings.build(
        methods.get("ift"), {"inverse": "cg", "terms": 30, "inner_steps": 50, "inner_lr": 6e-4}, ""
    )
    found = made.hypergradient(ctx, lam, None, episode)
    slope = ctx.inner_grad(lam, found.theta, episode.batch(0), create_graph=False)
    assert max(float(v.abs().max()) for v in slope.values()) < 1e-9, "the problem is solved"

    def solved(size: float) -> float:
        there = autodiff.axpy(size, direction, lam)
        theta = problem.init_inner(there, episode)
        theta, _ = inner_loop(ctx, there, theta, episode, steps=50, lr=6e-4)
        return float(problem.outer_loss(there, theta, episode.outer))

    gen = torch.Generator().manual_seed(0)
    direction = {k: torch.randn(v.shape, generator=gen, dtype=v.dtype) for k, v in lam.items()}
    expected = (solved(1e-6) - solved(-1e-6)) / 2e-6
    assert float(autodiff.dot(found.grad, direction)) == pytest.approx(expected, rel=1e-5)


@of_both
def test_methods_that_need_lam_in_the_inner_loss_apply_to_a_prior_alone(name):
    prior, init = (tasks.get(name)(formulation=f) for f in ("prior", "init"))
    for method in SEVERAL:
        made = settings.build(methods.get(method), {}, method)
        assert why_not(prior, made) is None
        if method != "bilevel":
            assert "the inner loss does not have it" in str(why_not(init, made))
    for method in ("maml", "reptile", "imaml"):
        assert why_not(init, settings.build(methods.get(method), {}, method)) is None
        assert "lam is the centre of a prior here" in str(
            why_not(prior, settings.build(methods.get(method), {}, method))
        )
