"""The polar factor: a step of Muon gives what its scalar map says; row scales can be learned."""

import pytest
import torch
from oracles import F64, context, differences, hypergradient

from metabench.contract.method import State
from metabench.core.registry import methods, solvers, tasks
from metabench.solvers.muon import triples
from metabench.tasks.polar_factor import stable


def muon(form="muon", iterations=None):
    return solvers.get("muon")(form=form, iterations=iterations, momentum=0.0)


def error(ctx, lam=None):
    method = methods.get("fixed")(inner_steps=1, inner_lr=1.0)
    state, episode = method.init(ctx), ctx.problem.episode("test", 0)
    return ctx.problem.metrics(state.lam, method.adapt(ctx, state, episode), episode)


@pytest.mark.parametrize(("form", "iterations"), [("muon", 5), ("plus", 5), ("plus", 4)])
def test_singular_values_follow_the_scalar_map(form, iterations):
    ctx = context(tasks.get("polar_factor")(n=12), solver=muon(form, iterations))
    found = error(ctx)
    s = torch.linalg.svdvals(ctx.problem.matrix)
    s = s / (s.square().sum().sqrt() + 1e-7)
    for a, b, c in triples(form, iterations):
        s = a * s + b * s**3 + c * s**5
    assert found["polar_error"] == pytest.approx(float((s - 1).square().mean().sqrt()), rel=1e-9)
    assert found["largest"] == pytest.approx(float(s.max()), rel=1e-9)


def test_the_target_is_orthogonal_and_aligned():
    problem = context(tasks.get("polar_factor")(n=9, entries="stable")).problem
    u = problem.target
    torch.testing.assert_close(u @ u.mT, torch.eye(9, dtype=F64))
    stretch = u.mT @ problem.matrix  # symmetric and positive: M = U S
    torch.testing.assert_close(stretch, stretch.mT)
    assert float(torch.linalg.eigvalsh(stretch).min()) > 0


def test_scales_of_rows_are_learned_through_the_iterations():
    ctx = context(tasks.get("polar_factor")(n=5), solver=muon("turbo", 3))
    settings = {"inner_steps": 1, "inner_lr": 1.0}
    lam = {"log_scale": torch.linspace(-0.5, 0.4, 5, dtype=F64)}
    found = hypergradient(ctx, "bilevel", lam=lam, **settings)
    method = methods.get("fixed")(**settings)

    def outer(x):
        episode = ctx.problem.episode("train", 0)
        theta = method.adapt(ctx, State(x), episode)
        return ctx.problem.outer_loss(x, theta, episode.outer)

    torch.testing.assert_close(
        found["log_scale"], differences(outer, lam)["log_scale"], rtol=1e-6, atol=1e-10
    )


def test_heavy_tails_have_the_median_of_their_law():
    drawn = stable((200_000,), torch.Generator().manual_seed(0))
    scipy = pytest.importorskip("scipy.stats")
    law = scipy.levy_stable(1.5, 0.0)
    for q in (0.6, 0.75, 0.9):
        assert float(drawn.quantile(q)) == pytest.approx(float(law.ppf(q)), rel=0.03)
