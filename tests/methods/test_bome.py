"""BOME: the multiplier and the first direction by hand, the limit, a gap without a gradient."""

import pytest
import torch
from oracles import F64, context

from metabench.contract.method import State
from metabench.core.registry import methods, tasks

BOME = methods.get("bome")
CHECK = {"inner_steps": 10, "inner_lr": 0.1}


def check_problem():
    return context(tasks.get("quadratic")(carried=True))


def first(method, w=-1.0):
    """The direction of (w, lam) and the log of a first step of 1 from w on the check problem."""
    ctx = check_problem()
    state = method.init(ctx)
    at = State(state.lam, {"w": torch.tensor([w], dtype=F64)}, state.memory)
    new, log = method.step(ctx, at)
    return float(w - new.theta["w"]), float(state.lam["lam"] - new.lam["lam"]), log


@pytest.mark.parametrize(
    ("set_", "m", "direction"),
    [
        ({"eta": 0.5}, 0.309775781946, (-2.69128250223, 1.32726653104)),
        ({"eta": 0.1, "barrier": "gap"}, 0.0, (-1.7, 0.0)),
    ],
)
def test_the_first_step(set_, m, direction):
    *found, log = first(BOME(**CHECK, **set_, theta_lr=1.0, outer_lr=1.0))
    assert log["value_gap"] == pytest.approx(2.530485209, abs=1e-9)
    assert log["multiplier"] == pytest.approx(m, abs=1e-11)
    assert found == pytest.approx(direction, abs=1e-10)


def test_the_multiplier_near_the_minimiser():
    *_, log = first(BOME(**CHECK, eta=0.5), w=0.65)
    assert log["multiplier"] == pytest.approx(0.6790345581683, abs=1e-11)


def test_a_gap_without_a_gradient_leaves_the_outer_loss_alone():
    """At w = b lam: the gap is at its minimum, and the code that divides there gives no number."""
    *found, log = first(BOME(**CHECK, theta_lr=1.0), w=1.5 * 0.4)
    assert log["multiplier"] == 0.0
    assert found == pytest.approx((0.6 - 0.7, 0.0), abs=1e-12)


@pytest.mark.parametrize("barrier", ["slope", "gap"])
def test_a_run_by_hand_and_its_limit(barrier):
    """Plain numbers for 300 steps, which end at (c, c / b)."""
    a, b, c, lam, w, step = 2.0, 1.5, 0.7, 0.4, -1.0, 0.1
    eta = 0.5 if barrier == "slope" else 0.1
    ctx = check_problem()
    method = BOME(**CHECK, eta=eta, barrier=barrier, theta_lr=step, outer_lr=step)
    state = method.init(ctx)
    for ctx.step in range(300):
        state, _ = method.step(ctx, state)
        end = b * lam + (1 - 0.1 * a) ** 10 * (w - b * lam)
        q = a / 2 * ((w - b * lam) ** 2 - (end - b * lam) ** 2)
        to_w, to_lam = a * (w - b * lam), a * b * (end - w)
        square = to_w**2 + to_lam**2
        phi = eta * (square if barrier == "slope" else q)
        m = max(phi - (w - c) * to_w, 0.0) / square
        w, lam = w - step * (w - c + m * to_w), lam - step * m * to_lam
        assert float(state.theta["w"]) == pytest.approx(w, abs=1e-9)
        assert float(state.lam["lam"]) == pytest.approx(lam, abs=1e-9)
    assert (w, lam) == pytest.approx((c, c / b), abs=1e-8)


def test_first_derivatives_alone():
    ctx = check_problem()
    method = BOME(inner_steps=4)
    method.step(ctx, method.init(ctx))
    counts = ctx.meter.counts
    assert (counts.hvps, counts.mixed_products) == (0, 0)
    assert (counts.inner_gradients, counts.outer_gradients) == (4 + 2, 1)
