"""The formulation "prior": lam is the centre of a Gaussian prior on all weights."""

from __future__ import annotations

import pytest
import torch
from oracles import context

from metabench.contract import autodiff
from metabench.contract.method import inner_loop
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks
from metabench.store.store import Store
from metabench.suites import planning
from metabench.suites.planning import choose, suite_of_pairs

SMALL = {"ways": 2, "shots": 2, "queries": 3, "filters": 2, "meta_batch": 2, "dtype": "float64"}


def built(name, **own):
    return settings.build(methods.get(name), own, name)


def of(**own):
    return context(tasks.get("glyphs")(**{**SMALL, "formulation": "prior", **own}))


def test_the_inner_loss_has_the_prior_and_the_outer_loss_has_not():
    ctx, plain = of(prior_precision=3.0), of(formulation="init")
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 0)
    batch = episode.batch(0)
    start = problem.init_inner(lam, episode)
    theta = {k: v + 0.1 for k, v in start.items()}
    n = sum(v.numel() for v in theta.values())
    fit = float(plain.problem.inner_loss(lam, theta, batch))
    assert float(problem.inner_loss(lam, theta, batch)) == pytest.approx(fit + 1.5 * n * 0.01)
    assert float(problem.outer_loss(lam, theta, batch)) == pytest.approx(fit)
    assert all(torch.equal(start[k], lam[k]) for k in lam), "theta starts at the centre"


def test_the_implicit_gradient_is_the_slope_of_the_solved_problem():
    """Along a direction of lam, with the inner problem solved at every point of the difference. A
    strong prior and small differences: no step crosses a kink of a ReLU."""
    ctx = of(prior_precision=1500.0, downsample="pool")
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 1)
    method = built("ift", inverse="cg", terms=30, inner_steps=50, inner_lr=6e-4)
    found = method.hypergradient(ctx, lam, None, episode)
    slope = ctx.inner_grad(lam, found.theta, episode.batch(0), create_graph=False)
    assert max(float(v.abs().max()) for v in slope.values()) < 1e-11, "the problem is solved"

    def solved(size: float) -> float:
        there = autodiff.axpy(size, direction, lam)
        theta = problem.init_inner(there, episode)
        theta, _ = inner_loop(ctx, there, theta, episode, steps=50, lr=6e-4)
        return float(problem.outer_loss(there, theta, episode.outer))

    gen = torch.Generator().manual_seed(0)
    direction = {k: torch.randn(v.shape, generator=gen, dtype=v.dtype) for k, v in lam.items()}
    expected = (solved(1e-6) - solved(-1e-6)) / 2e-6
    assert float(autodiff.dot(found.grad, direction)) == pytest.approx(expected, rel=1e-6)
    at_theta = autodiff.grad(lambda t: problem.outer_loss(lam, t, episode.outer), found.theta)[1]
    assert float(autodiff.dot(at_theta, direction)) != pytest.approx(expected, rel=1e-3)


SEVERAL = ("ift", "sgld", "pbgd", "one_step", "bilevel", "amigo", "stocbio", "f2sa")


@pytest.mark.parametrize("name", ["omniglot", "glyphs", "miniimagenet"])
def test_methods_that_need_lam_in_the_inner_loss_are_planned(name, tmp_path):
    pairs = suite_of_pairs([name], SEVERAL)

    def stand(formulation):
        cells = choose(pairs, "smoke", set=[f"task.formulation={formulation}"], seeds=[0])
        return {p.row: p for p in planning.plan(cells, Store(tmp_path))}

    prior, init = stand("prior"), stand("init")
    assert {p.state for p in prior.values()} <= {"open", "missing data"} and len(prior) == 8
    for method in SEVERAL:
        if method != "bilevel":
            assert init[method].state == "not applicable"
            assert "the inner loss does not have it" in init[method].reason


@pytest.mark.parametrize("name", ["maml", "reptile", "imaml"])
def test_methods_of_learned_starts_do_not(name):
    prior = tasks.get("omniglot")(formulation="prior")
    assert why_not(prior, built(name)) == (
        "lam is the centre of a prior here (formulation = 'prior'): theta's minimiser moves with "
        "it, not its start"
    )


EPISODES_AT_ONCE = [
    ("ift", "sgd", {"inner_steps": 4, "inverse": "cg", "terms": 3}),
    ("ift", "sgd", {"inner_steps": 4, "terms": 3}),
    *[
        ("sgld", "langevin", {"inner_steps": 4, "burn_in": 0.25, "estimator": e})
        for e in ("first_order", "covariance")
    ],
    ("pbgd", "sgd", {"inner_steps": 4, "penalty": "value"}),
    ("pbgd", "sgd", {"inner_steps": 4, "penalty": "gradient"}),
    ("one_step", "sgd", {}),
    ("one_step", "sgd", {"mixed": "differences"}),
    ("bilevel", "sgd", {"inner_steps": 4}),
    *[(name, "sgd", {}) for name in ("amigo", "stocbio", "f2sa")],
]


@pytest.mark.parametrize(("name", "solver", "own"), EPISODES_AT_ONCE)
def test_episodes_at_once_are_the_loop(name, solver, own):
    """F does not depend on lam here: grad_lam F is one zero for all episodes of a vmap."""

    def moved(engine):
        task, method = tasks.get("glyphs")(**{**SMALL, "formulation": "prior"}), built(name, **own)
        ctx = context(task, solver, engine=engine)
        state, log = method.step(ctx, method.init(ctx))
        return state.outer, log

    (a, log), (b, other) = moved("loop"), moved("vmap")
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)
    assert other == pytest.approx(log, rel=1e-9)
