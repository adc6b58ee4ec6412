"""The penalty paper's toy: its derivative, its minima, and where penalty methods end."""

import functools
import importlib
import itertools
import math

import pytest
import torch
from oracles import F64, context, differences

from metabench.core.registry import methods, tasks

toy = importlib.import_module("metabench.tasks.pbgd_toy")
LIMITS = {
    10.0: [(0.367, -0.334), (1.188, -1.213), (2.824, -2.830)],
    100.0: [(0.381, -0.378), (1.213, -1.215), (2.829, -2.830)],
}


def at(x, y):
    return {"x": torch.tensor([x], dtype=F64)}, {"y": torch.tensor([y], dtype=F64)}


def descended(starts, gamma, *, penalty="value", steps=2000, outer_lr=0.1):
    """The task with these starts (x, y), and the state after so many steps."""
    ctx = context(tasks.get("pbgd_toy")(starts=len(starts)))
    ctx.problem.x, ctx.problem.y = torch.tensor(starts, dtype=F64).T.contiguous()
    rates = {"outer_lr": outer_lr, "theta_lr": outer_lr, "inner_lr": 0.1, "inner_steps": 1}
    method = methods.get("pbgd")(
        penalty=penalty, gamma_first=gamma, gamma_max=gamma, ramp_steps=0, **rates
    )
    state = method.init(ctx)
    for ctx.step in range(steps):
        state, log = method.step(ctx, state)
    return ctx, state, log


def test_the_derivative_is_the_right_one():
    """The authors' code has -0.456 here."""
    problem = context("pbgd_toy").problem
    lam, theta = at(0.3, -0.5)
    first = torch.tensor([0.3], dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(problem.outer_loss({"x": first}, theta, {}), first)
    # 4 e^(2-4x) / (1 + e^(2-4x))^2 cos(4y+2), and the logarithm's part
    e = math.exp(2 - 4 * 0.3)
    expected = 4 * e / (1 + e) ** 2 * math.cos(0.0) + 4 * (-0.8) / (0.64 + 1)
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert float(found) == pytest.approx(-1.096, abs=5e-4)
    oracle = differences(lambda p: problem.outer_loss(p, theta, {}), lam, 1e-3)
    assert float(found) == pytest.approx(float(oracle["x"]), abs=1e-9)


def test_losses_are_the_papers():
    problem = context("pbgd_toy").problem
    for x, y in ((0.3, -0.5), (2.7, 4.1), (0.0, 0.2)):
        f = math.cos(4 * y + 2) / (1 + math.exp(2 - 4 * x)) + 0.5 * math.log((4 * x - 2) ** 2 + 1)
        g = (x + y) ** 2 + x * math.sin(x + y) ** 2
        assert float(problem.outer_loss(*at(x, y), {})) == pytest.approx(f, abs=1e-12)
        assert float(problem.inner_loss(*at(x, y), {})) == pytest.approx(g, abs=1e-12)


def test_the_minima_of_the_hyper_objective():
    x = torch.linspace(0, 3, 300_001, dtype=F64)
    f = toy.objective(x, -x)
    low = (f[1:-1] < f[:-2]) & (f[1:-1] < f[2:])
    found = [(float(a), float(b)) for a, b in zip(x[1:-1][low], f[1:-1][low], strict=True)]
    assert len(found) == len(toy.MINIMA) == 3
    for (x_found, value), (x_known, value_known) in zip(found, toy.MINIMA, strict=True):
        assert x_found == pytest.approx(x_known, abs=6e-5)
        assert value == pytest.approx(value_known, abs=6e-5)
    assert float(f[0]) > float(f[1]) and float(f[-1]) > float(f[-2])  # none at the ends


@functools.cache
def end(gamma):
    """Where the value penalty ends from near each minimum: what two tests look at."""
    return descended([(x, -x + 0.2) for x, _ in toy.MINIMA], gamma)


@pytest.mark.parametrize("gamma", LIMITS)
def test_limit_points_of_the_value_penalty(gamma):
    ctx, state, _ = end(gamma)
    for i, (x, y) in enumerate(LIMITS[gamma]):
        assert float(state.lam["x"][i]) == pytest.approx(x, abs=6e-4)
        assert float(state.theta["y"][i]) == pytest.approx(y, abs=6e-4)
    lam = {"x": state.lam["x"].clone().requires_grad_()}
    theta = {"y": state.theta["y"].clone().requires_grad_()}
    p = ctx.problem  # v = 0 everywhere
    total = p.outer_loss(lam, theta, {}) + gamma * p.inner_loss(lam, theta, {})
    for g in torch.autograd.grad(total, [lam["x"], theta["y"]]):
        assert float(g.abs().max()) < 1e-5


def test_the_residual_shrinks_like_one_over_gamma():
    residuals = [end(gamma)[1] for gamma in (50.0, 100.0)]
    gaps = [(s.lam["x"] + s.theta["y"]).abs() for s in residuals]
    for a, b in itertools.pairwise(gaps):
        torch.testing.assert_close(a / b, torch.full((3,), 2.0, dtype=F64), rtol=0.05, atol=0)


def test_limit_points_of_the_squared_gradient():
    """Where grad of f + gamma / 2 g_y^2 is zero, g_y written out by hand."""
    gamma = 10.0
    _, state, _ = descended(
        [(x, -x) for x, _ in toy.MINIMA], gamma, penalty="gradient", steps=2500, outer_lr=0.012
    )
    x, y = (v.clone().requires_grad_() for v in (state.lam["x"], state.theta["y"]))
    slope = 2 * (x + y) + x * torch.sin(2 * (x + y))
    total = (toy.objective(x, y) + gamma / 2 * slope.square()).sum()
    for g in torch.autograd.grad(total, [x, y]):
        assert float(g.abs().max()) < 1e-5
    near = torch.tensor([m for m, _ in toy.MINIMA], dtype=F64)
    assert float((x.detach() - near).abs().max()) < toy.NEAR


def test_random_starts_end_at_the_known_minima():
    ctx = context(tasks.get("pbgd_toy")(starts=50))
    x, y = ctx.problem.x, ctx.problem.y
    assert float(x.min()) >= 0 and float(x.max()) == 3.0  # U(0, 3.5), moved to the interval
    assert float(y.min()) < -3 and float(y.max()) > 6
    _, state, _ = descended(list(zip(x.tolist(), y.tolist(), strict=True)), 100.0)
    metrics = ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("test", 0))
    assert metrics["reached"] > 0.9
    assert metrics["residual"] < 0.01
    first = ctx.problem.metrics({"x": x}, {"y": y}, ctx.problem.episode("test", 0))
    assert metrics["hyper_objective"] < first["hyper_objective"] and first["reached"] < 0.5
