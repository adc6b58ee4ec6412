"""The gradient of the inner loss, with a diagonal penalty taken by hand."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.seeds import Seeds
from metabench.core.registry import solvers, tasks


@pytest.mark.parametrize("functional", [False, True])
def test_a_diagonal_penalty_by_hand_is_the_same_gradient(functional):
    problem = tasks.get("ridge")().build(Seeds.of(0), torch.device("cpu"))
    ctx = Context(problem, solvers.get("sgd")(), Seeds.of(0), frozenset())
    episode = problem.episode("train", 0)
    batch, lam = episode.batch(0), problem.init_outer()
    theta = {"w": torch.linspace(-1, 1, len(lam["log_penalty"]), dtype=torch.float64)}

    def whole(p, x):
        loss = problem.inner_loss
        return autodiff.grad(lambda t: loss(p, t, batch), x, create_graph=True)[1]

    def by_hand(p, x):
        return ctx.inner_grad(p, x, batch)

    with autodiff.functional() if functional else nullcontext():
        (g, one), (found, other) = (autodiff.pullback(f, lam, theta) for f in (whole, by_hand))
        torch.testing.assert_close(found, g, rtol=1e-10, atol=1e-10)
        v = {"w": theta["w"].cos()}
        for a, b in zip(one(v), other(v), strict=True):  # mixed and Hessian products
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)
    assert problem.diagonal_penalty(lam) is not None
    torch.testing.assert_close(
        ctx.inner_grad(lam, theta, batch, create_graph=False), g, rtol=1e-10, atol=1e-10
    )


def test_a_gradient_by_hand_is_taken_where_nothing_differentiates_it(monkeypatch):
    problem = tasks.get("ridge")().build(Seeds.of(0), torch.device("cpu"))
    ctx = Context(problem, solvers.get("sgd")(), Seeds.of(0), frozenset())
    batch, lam = problem.episode("train", 0).batch(0), problem.init_outer()
    theta = {"w": torch.linspace(-1, 1, len(lam["log_penalty"]), dtype=torch.float64)}
    want = ctx.inner_value_and_grad(lam, theta, batch)
    asked = []

    def by_hand(p, t, b):
        asked.append(t)
        return autodiff.grad(lambda x: problem.unpenalised_loss(p, x, b), t)

    monkeypatch.setattr(problem, "inner_gradient", by_hand)
    value, g = ctx.inner_value_and_grad(lam, theta, batch)
    assert len(asked) == 1
    torch.testing.assert_close((value, g), want, rtol=1e-12, atol=1e-12)
    ctx.inner_grad(lam, theta, batch, create_graph=True)
    ctx.inner_grad(lam, theta, batch, create_graph=False, only=["w"])
    assert len(asked) == 1
