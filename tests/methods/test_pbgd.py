"""Penalty methods: closed forms of the penalised problem, one step by hand, costs."""

import pytest
import torch
from oracles import F64, context, differences, given
from oracles import hypergradient as of_method

from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.core.capabilities import why_not
from metabench.core.costs import Counts
from metabench.core.errors import Diverged, SettingError
from metabench.core.registry import methods, solvers, tasks
from metabench.core.settings import build

PBGD = methods.get("pbgd")
Quadratic = tasks.get("quadratic")
FIXED = {"gamma_first": 50.0, "gamma_max": 50.0}
EXACT = {**FIXED, "inner_steps": 300, "ahead": 300, "inner_lr": 0.3, "theta_lr": 0.4}
NONE = {"none": torch.zeros(1, dtype=F64)}


def close(found, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=F64).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class Closed(Problem):
    """A carried problem from two functions of (x, y), both float64 [n]."""

    carried = True

    def __init__(self, outer, inner, x, y):
        self.outer, self.inner = outer, inner
        self.x, self.y = (torch.as_tensor(v, dtype=F64).reshape(-1) for v in (x, y))

    def init_outer(self):
        return {"x": self.x.clone()}

    def init_inner(self, lam, episode):
        return {"y": self.y}

    def inner_loss(self, lam, theta, batch):
        return self.inner(lam["x"], theta["y"]).sum()

    def outer_loss(self, lam, theta, batch):
        return self.outer(lam["x"], theta["y"]).sum()

    def episode(self, split, index):
        return Episode(NONE, NONE, index)


def closed(outer, inner, x=0.3, y=-0.8):
    return given(Closed(outer, inner, x, y), *GRADIENTS, "lam_in_inner_loss")


def hypergradient(ctx, **set_):
    return of_method(ctx, "pbgd", lam=ctx.problem.init_outer(), **set_)


def run(ctx, method, steps):
    state = method.init(ctx)
    for ctx.step in range(steps):
        state, log = method.step(ctx, state)
    return state, log


# The check problem: a = 2, b = 1.5, c = 0.7, lam = 0.4; exact hypergradient -0.15.


@pytest.mark.parametrize(
    ("penalty", "factor", "value"),
    [
        ("value", 50 * 2 / (1 + 50 * 2), -0.14851485149),
        ("gradient", 50 * 4 / (1 + 50 * 4), -0.14925373134),
    ],
)
def test_scalar_with_theta_at_its_minimiser(penalty, factor, value):
    found = hypergradient(context("quadratic"), penalty=penalty, **EXACT)["lam"]
    close(found, 1.5 * (1.5 * 0.4 - 0.7) * factor)
    assert float(found) == pytest.approx(value, abs=5e-12)


@pytest.mark.parametrize("penalty", ["value", "gradient"])
@pytest.mark.parametrize("dim", [1, 4])
def test_vector_with_theta_at_its_minimiser(dim, penalty):
    """y - B lam = (I + gamma K)^-1 (c - B lam), K = A or A^2; grad = gamma B' K (B lam - y)."""
    ctx = context(Quadratic(dim=dim))
    p, lam = ctx.problem, ctx.problem.init_outer()["lam"]
    set_ = {**EXACT, "inner_steps": 1000, "ahead": 1000, "gamma_first": 5.0, "gamma_max": 5.0}
    found = hypergradient(ctx, penalty=penalty, theta_lr=0.2, **_without(set_, "theta_lr"))
    k = p.A if penalty == "value" else p.A @ p.A
    eye = torch.eye(dim, dtype=F64)
    gap = torch.linalg.solve(eye + 5.0 * k, p.B @ lam - p.c)
    close(found["lam"], 5.0 * p.B.T @ k @ gap)


def _without(set_, name):
    return {k: v for k, v in set_.items() if k != name}


@pytest.mark.parametrize("penalty", ["value", "gradient"])
def test_a_larger_constant_comes_nearer_to_the_hypergradient(penalty):
    errors = []
    for gamma in (10.0, 100.0, 1000.0):
        set_ = {**EXACT, "gamma_first": gamma, "gamma_max": gamma, "penalty": penalty}
        found = hypergradient(context("quadratic"), **set_)["lam"]
        errors.append(abs(float(found) + 0.15))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_the_linear_outer_loss():
    """f = y, g = y^2: the penalised minimiser is y = -1 / (2 gamma), its gap 1 / (4 gamma^2)."""
    gamma = 8.0
    ctx = closed(lambda x, y: y, lambda x, y: y.square() + 0 * x)
    method = PBGD(gamma_first=gamma, gamma_max=gamma, inner_lr=0.3, theta_lr=0.3)
    state, log = run(ctx, method, 200)
    close(state.theta["y"], -1 / (2 * gamma))
    close(torch.tensor(log["value_gap"], dtype=F64), 1 / (4 * gamma**2))


def outer(x, y):
    return torch.cos(x * y) + (y - 1).square()


def inner(x, y):
    return (y - torch.sin(x)).square() + 0.3 * torch.sin(y) * x


@pytest.mark.parametrize("penalty", ["value", "gradient"])
def test_what_is_added_to_the_inner_loss_of_lam_alone_cancels(penalty):
    def shifted(x, y):
        return inner(x, y) + 7 * x.exp() + x.square()

    set_ = {"penalty": penalty, "gamma_first": 3.0, "inner_steps": 4}
    found = [hypergradient(closed(outer, g), **set_)["x"] for g in (inner, shifted)]
    close(found[0], found[1])
    states = [run(closed(outer, g), PBGD(**set_), 6)[0] for g in (inner, shifted)]
    close(states[0].lam["x"], states[1].lam["x"])


def test_steps_by_hand_value():
    """Three steps of the algorithm, written out, with a ramp that starts at 0."""
    ctx = closed(outer, inner, [0.3, -1.1], [-0.8, 0.4])
    set_ = {"gamma_first": 0.0, "gamma_max": 3.0, "ramp_steps": 2, "inner_steps": 2}
    method = PBGD(**set_, inner_lr=0.07, theta_lr=0.05, outer_lr=0.2)
    x, y = ctx.problem.x, ctx.problem.y
    omega, state = y, method.init(ctx)
    for k, gamma in enumerate((0.0, 1.5, 3.0)):
        ctx.step = k
        state, log = method.step(ctx, state)
        for _ in range(2):
            w = omega.clone().requires_grad_()
            omega = omega - 0.07 * torch.autograd.grad(inner(x, w).sum(), w)[0]
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        f, gap = outer(x, y).sum(), (inner(x, y) - inner(x, omega)).sum()
        dx, dy = torch.autograd.grad(f + gamma * gap, [x, y])
        s = min(1 / gamma, 1.0) if gamma else 1.0
        x, y = (x - 0.2 * s * dx).detach(), (y - 0.05 * s * dy).detach()
        close(state.lam["x"], x)
        close(state.theta["y"], y)
        close(state.memory["omega"]["y"], omega)
        assert log["outer_loss"] == pytest.approx(float(f.detach()), abs=1e-12)
        assert log["value_gap"] == pytest.approx(float(gap.detach()), abs=1e-12)
        assert log["gamma"] == gamma
        assert log["hypergradient_norm"] == pytest.approx(float(dx.norm()), abs=1e-12)


def test_steps_by_hand_gradient():
    ctx = closed(outer, inner, [0.3, -1.1], [-0.8, 0.4])
    method = PBGD(penalty="gradient", gamma_first=1.0, gamma_max=4.0, ramp_steps=3, theta_lr=0.05)
    state = method.init(ctx)
    assert set(state.memory) == {"outer", "theta"}
    x, y = ctx.problem.x, ctx.problem.y
    for k, gamma in enumerate((1.0, 2.0, 3.0, 4.0, 4.0)):
        ctx.step = k
        state, log = method.step(ctx, state)

        def penalised(p, gamma=gamma):
            yy = p["y"].clone().requires_grad_()
            slope = torch.autograd.grad(inner(p["x"], yy).sum(), yy)[0]
            return outer(p["x"], p["y"]).sum() + gamma / 2 * slope.square().sum()

        g = differences(penalised, {"x": x, "y": y}, h=1e-3)
        x, y = x - 0.1 / gamma * g["x"], y - 0.05 / gamma * g["y"]
        close(state.lam["x"], x, 1e-8)
        close(state.theta["y"], y, 1e-8)
    assert "squared_gradient" in log


def test_the_value_gap_may_be_negative_and_is_logged():
    """omega behind theta: the estimate of v is too high."""
    ctx = closed(lambda x, y: (y - 1).square(), lambda x, y: (y - 1).square() + 0 * x, y=-2.0)
    _, log = run(ctx, PBGD(inner_lr=1e-3, inner_steps=1, gamma_first=1.0), 10)
    assert log["value_gap"] < 0


def test_nothing_flows_through_omega():
    """Whatever number of steps omega made, the derivative sees where it ends only."""
    ctx = closed(outer, inner)
    x, y = ctx.problem.init_outer(), {"y": ctx.problem.y}
    found = hypergradient(ctx, theta=y, gamma_first=2.0, gamma_max=2.0, inner_steps=3, inner_lr=0.1)
    omega = y["y"]
    for _ in range(3):
        w = omega.clone().requires_grad_()
        omega = omega - 0.1 * torch.autograd.grad(inner(x["x"], w).sum(), w)[0]
    expected = differences(
        lambda p: (
            outer(p["x"], y["y"]) + 2.0 * (inner(p["x"], y["y"]) - inner(p["x"], omega))
        ).sum(),
        x,
        h=1e-3,
    )
    close(found["x"], expected["x"], 1e-9)


def test_a_constant_that_would_fall_is_refused():
    with pytest.raises(SettingError, match="gamma_first = 50 is above gamma_max = 10"):
        build(PBGD, {"gamma_first": 50.0}, "method pbgd")
    assert PBGD(gamma_first=10.0).gamma(0) == PBGD(ramp_steps=0).gamma(0) == 10.0


def test_lam_is_projected_by_the_task():
    ctx = closed(lambda x, y: -100 * x + y, lambda x, y: (x - y).square())
    ctx.problem.project = lambda lam: {"x": lam["x"].clamp(max=0.5)}
    state, _ = run(ctx, PBGD(), 3)
    assert float(state.lam["x"]) == 0.5


def test_an_endless_gradient_is_told():
    ctx = closed(lambda x, y: y.square(), lambda x, y: x.sqrt() * y, x=0.0)
    with pytest.raises(Diverged, match="outer step 0 is not finite"):
        run(ctx, PBGD(gamma_first=1.0), 1)


def test_a_lam_that_is_only_a_start_is_refused_with_the_reason():
    start = Quadratic(formulation="init")
    for penalty in ("value", "gradient"):
        assert "depends on lam" in why_not(start, PBGD(penalty=penalty))
    assert "second_order" not in PBGD().needs
    assert "second_order" in PBGD(penalty="gradient").needs


@pytest.mark.parametrize(
    ("set_", "carried", "expected"),
    [
        ({"inner_steps": 3}, True, Counts(inner_gradients=5, outer_gradients=1)),
        ({"inner_steps": 3}, False, Counts(inner_gradients=8, outer_gradients=4)),
        ({"inner_steps": 3, "ahead": 1}, True, Counts(inner_gradients=6, outer_gradients=2)),
        (
            {"penalty": "gradient"},
            True,
            Counts(inner_gradients=1, outer_gradients=1, hvps=1, mixed_products=1),
        ),
        (
            {"penalty": "gradient", "inner_steps": 2},
            False,
            Counts(inner_gradients=21, outer_gradients=21, hvps=21, mixed_products=1),
        ),
    ],
)
def test_costs_of_a_step(set_, carried, expected):
    ctx = context(Quadratic(carried=carried))
    run(ctx, PBGD(**set_), 1)
    assert ctx.meter.counts == expected


@pytest.mark.parametrize("solver", ["momentum", "adam"])
def test_other_solvers_keep_their_memory_from_step_to_step(solver):
    ctx = context(Quadratic(dim=3, carried=True), solver)
    method = PBGD(
        theta_lr=0.03, inner_lr=0.02, inner_steps=2, outer_solver="momentum", ramp_steps=3
    )
    state, _ = run(ctx, method, 6)
    p, rule, outer_rule = ctx.problem, ctx.solver, solvers.get("momentum")()
    lam, y, w = p.lam, {"w": p.w0}, {"w": p.w0}
    held, held_y, held_w = outer_rule.init({"lam": lam}), rule.init(y), rule.init(w)
    for k in range(6):
        gamma = min(10 * k / 3, 10.0)
        s = 1 / max(gamma, 1.0)
        for _ in range(2):
            w, held_w = rule.update(w, {"w": p.A @ (w["w"] - p.B @ lam)}, held_w, 0.02)
        slope = y["w"] - p.c + gamma * p.A @ (y["w"] - p.B @ lam)
        grad = gamma * p.B.T @ p.A @ (w["w"] - y["w"])
        lam, held = outer_rule.update({"lam": lam}, {"lam": grad}, held, 0.1 * s)
        lam = lam["lam"].clamp(-4, 4)
        y, held_y = rule.update(y, {"w": slope}, held_y, 0.03 * s)
    close(state.lam["lam"], lam)
    close(state.theta["w"], y["w"])
    close(state.memory["omega"]["w"], w["w"])


@pytest.mark.parametrize("penalty", ["value", "gradient"])
def test_carried_it_ends_at_the_bilevel_solution(penalty):
    """Where the outer loss can be zero, no bias of the penalty is left: B lam = c, theta there."""
    ctx = context(Quadratic(carried=True))
    rates = {"inner_lr": 0.3, "theta_lr": 0.1, "outer_lr": 0.1}
    state, _ = run(ctx, PBGD(penalty=penalty, gamma_max=2.0, inner_steps=2, **rates), 1500)
    close(state.lam["lam"], 0.7 / 1.5)
    close(state.theta["w"], 0.7)


@pytest.mark.parametrize(("penalty", "expected"), [("value", 3), ("gradient", 30)])
def test_where_theta_starts_anew_it_goes_ahead(penalty, expected):
    """The value gap's lag cancels with omega's; the squared gradient's does not."""
    ctx = context("quadratic")
    method = PBGD(penalty=penalty, inner_steps=3)
    assert run(ctx, method, 1)[0].theta is None
    assert ctx.meter.counts.outer_gradients == expected + 1
