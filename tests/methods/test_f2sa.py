"""F2SA: the penalised hypergradient with solved trainings, the law of the multiplier, costs."""

import pytest
import torch
from oracles import F64, context, hypergradient

from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks

F2SA = methods.get("f2sa")
QUADRATIC = tasks.get("quadratic")
SOLVED = {"inner_steps": 300, "inner_lr": 0.3, "growth": 0.0}


@pytest.mark.parametrize(
    ("mu", "value"), [(1.0, -0.1), (10.0, -0.142857142857), (1000.0, -0.149925037481)]
)
def test_with_both_trainings_solved(mu, value):
    """H* mu a / (1 + mu a) on the check problem (H* = -0.15, a = 2), as V-PBGD."""
    found = hypergradient(context(QUADRATIC()), "f2sa", first_multiplier=mu, **SOLVED)["lam"]
    assert float(found) == pytest.approx(value, abs=1e-11)


def test_many_dimensions_and_the_limit_of_the_multiplier():
    """B' A (I + mu A)^-1 mu (B lam - c), which tends to B' (B lam - c)."""
    ctx = context(QUADRATIC(dim=4))
    p, mu = ctx.problem, 1e4
    lam = p.init_outer()["lam"]
    found = hypergradient(ctx, "f2sa", first_multiplier=mu, **SOLVED)["lam"]
    eye = torch.eye(4, dtype=F64)
    middle = mu * p.A @ torch.linalg.solve(eye + mu * p.A, p.B @ lam - p.c)
    torch.testing.assert_close(found, p.B.T @ middle, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found, p.B.T @ (p.B @ lam - p.c), rtol=1e-3, atol=1e-3)


def test_the_multiplier_follows_its_law():
    method = F2SA(first_multiplier=2.0, growth=0.5, power=0.5)
    assert [method.multiplier(k) for k in (0, 6, 16)] == [2.0, 4.0, 6.0]


def test_one_outer_step_by_hand():
    """Carried y and z from w = -1, one step each; lam moves by what they say, then both go on."""
    a, b, c, lam, w, mu, rho, gamma = 2.0, 1.5, 0.7, 0.4, -1.0, 4.0, 0.1, 0.05
    ctx = context(QUADRATIC(carried=True))
    method = F2SA(
        inner_steps=1, inner_lr=rho, outer_lr=gamma, first_multiplier=mu, growth=0.0
    )  # fmt: skip
    state = method.init(ctx)
    y = z = w
    for ctx.step in range(3):
        state, _ = method.step(ctx, state)
        y, z = (
            y - rho / mu * (y - c + mu * a * (y - b * lam)),
            z - rho * a * (z - b * lam),
        )
        lam -= gamma * mu * -a * b * (y - z)
        assert float(state.theta["w"]) == pytest.approx(y, abs=1e-13)
        assert float(state.memory["z"]["w"]) == pytest.approx(z, abs=1e-13)
        assert float(state.lam["lam"]) == pytest.approx(lam, abs=1e-13)


def test_first_derivatives_alone():
    ctx = context(QUADRATIC())
    hypergradient(ctx, "f2sa", inner_steps=4)
    counts = ctx.meter.counts
    assert (counts.hvps, counts.mixed_products) == (0, 0)
    assert (counts.inner_gradients, counts.outer_gradients) == (2 * 4 + 2, 4 + 1)
    assert "second_order" not in F2SA().needs
    assert why_not(QUADRATIC(formulation="init"), F2SA()) is not None
