"""Hypergradients of several episodes by a problem's own derivation, against unrolling each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metabench.contract import autodiff
from metabench.contract.method import Context
from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, solvers, tasks

MAML = methods.get("maml")


def made(by_hand=True, solver="sgd", **settings):
    """A context of five glyph episodes an outer step, which the network takes three at a time."""
    task = tasks.get("glyphs")(
        shots=1, queries=2, meta_batch=5, filters=8, dtype="float64", **settings
    )
    problem = task.build(Seeds.of(0), torch.device("cpu"))
    assert problem.descends_at_once > 0
    problem.descends_at_once = 3 if by_hand else 0
    return Context(problem, solvers.get(solver)(), Seeds.of(0), task.offers)


def found(ctx, **settings):
    method = MAML(**settings)
    state = method.init(ctx)
    return method.hypergradients(ctx, state, ctx.training_episodes())


def is_by_hand(ctx, **settings):
    return not found(ctx, **settings)[0].theta


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "settings", [{"inner_steps": 1}, {"inner_steps": 3}, {"order": "first", "inner_steps": 2}]
)
def test_values_gradients_and_counts_are_those_of_unrolling(settings, workers):
    ctx, other = made(), made(by_hand=False)
    ctx = replace(ctx, workers=workers)
    (got,), want = found(ctx, **settings), found(other, **settings)
    assert got.episodes == 5
    assert not got.theta
    assert [bool(h.theta) for h in want] == [True] * 5
    values = torch.stack([h.value for h in want])
    torch.testing.assert_close(got.value, values, rtol=1e-12, atol=1e-13)
    for k, v in autodiff.mean(h.grad for h in want).items():
        torch.testing.assert_close(got.grad[k], v, rtol=1e-9, atol=1e-11)
    assert ctx.meter.counts == other.meter.counts
    assert ctx.notes["unroll"] == other.notes["unroll"]


def test_steps_with_one_batch_see_one_and_the_same(monkeypatch):
    """So that what the network computes of the images alone it computes once."""
    ctx, seen = made(), []
    descended = ctx.problem.net.descended

    def spy(lam, inner, *rest):
        seen.append([images for images, _ in inner])
        return descended(lam, inner, *rest)

    monkeypatch.setattr(ctx.problem.net, "descended", spy)
    found(ctx, inner_steps=3)
    assert [len(images) for images in seen] == [3, 3]
    assert all(x is images[0] for images in seen for x in images)


def test_the_orders_differ():
    first, second = (found(made(), order=order)[0].grad for order in ("first", "second"))
    assert any(not torch.allclose(first[k], second[k], rtol=1e-3) for k in first)


@pytest.mark.parametrize(
    "settings",
    [
        {"anil": True},
        {"meta_sgd": True},
        {"layer_step_rates": True},
        {"multi_step_epochs": 3},
        {"inner_steps": 2, "memory": "states"},
        {"inner_steps": 4, "memory_budget_gb": 1e-4},
    ],
)
def test_other_steps_are_left_to_unrolling(settings):
    assert not is_by_hand(made(), **settings)


def test_another_solver_is_left_to_unrolling():
    assert is_by_hand(made())
    assert not is_by_hand(made(solver="momentum"))


def test_other_formulations_have_no_derivation():
    task = tasks.get("glyphs")(formulation="prior")
    assert task.build(Seeds.of(0), torch.device("cpu")).descends_at_once == 0


def test_an_outer_step_is_the_same():
    states = []
    for by_hand in (True, False):
        ctx, method = made(by_hand), MAML(inner_steps=2, outer_lr=0.1, outer_solver="sgd")
        states.append(method.step(ctx, method.init(ctx)))
    (one, log), (two, other) = states
    assert log == pytest.approx(other, rel=1e-10)
    for k, v in two.lam.items():
        torch.testing.assert_close(one.lam[k], v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("flat", [True, False])
def test_a_hypergradient_of_zero_is_judged_at_an_adapted_theta(flat, monkeypatch):
    """Nothing is kept of theta: it is found again, and not counted."""
    ctx, method = made(), MAML(inner_steps=2)
    state, episodes = method.init(ctx), ctx.training_episodes()
    several = method.hypergradients(ctx, state, episodes)
    before, seen = ctx.meter.counts.as_dict(), []

    def loss(lam, theta, batch):
        seen.append(theta)
        return sum((v * (0.0 if flat else 1.0)).sum() for v in theta.values())

    monkeypatch.setattr(ctx.problem, "outer_loss", loss)
    assert method.is_at_optimum(ctx, state.lam, several, episodes) == flat
    assert ctx.meter.counts.as_dict() == before
    alone = made(by_hand=False)
    want = found(alone, inner_steps=2)[0].theta
    for k, v in want.items():
        torch.testing.assert_close(seen[0][k].detach(), v, rtol=1e-10, atol=1e-12)
