"""SOBA and MA-SOBA: the first steps by hand, their end, stability and cost."""

import pytest
import torch
from oracles import F64, context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks

SOBA = methods.get("soba")
CHECK = {"inner_lr": 0.1, "outer_lr": 0.05}


def check_problem(**more):
    return context(tasks.get("quadratic")(carried=True, **more))


def run(method, steps, ctx=None):
    """(w, v, lam) after every outer step on the check problem."""
    ctx = check_problem() if ctx is None else ctx
    state, path = method.init(ctx), []
    for ctx.step in range(steps):
        state, _ = method.step(ctx, state)
        path.append(
            [float(x) for x in (state.theta["w"], state.memory["v"]["w"], state.lam["lam"])]
        )
    return torch.tensor(path, dtype=F64)


# The check problem: a = 2, b = 1.5, c = 0.7, lam = 0.4, w = -1; limit (c, 0, c / b).


@pytest.mark.parametrize(
    ("average", "path"),
    [
        (None, [(-0.68, 0.17, 0.4), (-0.424, 0.274, 0.4255), (-0.21155, 0.3316, 0.4666)]),
        (
            0.5,
            [(-0.68, 0.17, 0.4), (-0.424, 0.274, 0.4), (-0.2192, 0.3316, 0.41275),
             (-0.051535, 0.3572, 0.439675)],
        ),
    ],
)  # fmt: skip
def test_first_steps(average, path):
    found = run(SOBA(**CHECK, average=average), len(path))
    torch.testing.assert_close(found, torch.tensor(path, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("average", [None, 0.5])
def test_the_limit_is_the_bilevel_optimum(average):
    end = run(SOBA(**CHECK, average=average), 900)[-1]
    expected = torch.tensor([0.7, 0.0, 0.7 / 1.5], dtype=F64)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("outer_lr", "stable"), [(0.1, True), (0.15, False)])
def test_stability_ends_where_the_joint_map_says(outer_lr, stable):
    """The largest stable step of lam is 0.1202266 at rho = 0.1, though each variable alone has no
    such bound."""
    rho, a, b = 0.1, 2.0, 1.5
    m = torch.eye(3, dtype=F64) - torch.tensor(
        [[rho * a, 0, -rho * a * b], [rho, rho * a, 0], [0, -outer_lr * a * b, 0]], dtype=F64
    )
    assert (float(torch.linalg.eigvals(m).abs().max()) < 1) == stable
    path = run(SOBA(inner_lr=rho, outer_lr=outer_lr), 300)
    first, last = (path[i : i + 100, 2].sub(0.7 / 1.5).abs().max() for i in (0, 200))
    assert (last < first) == stable


def test_at_the_solutions_the_direction_is_the_hypergradient():
    ctx = context(tasks.get("quadratic")(dim=4, carried=True))
    p, method = ctx.problem, SOBA()
    state = method.init(ctx)
    lam = state.lam["lam"]
    v = torch.linalg.solve(p.A, p.c - p.B @ lam)
    at = type(state)(state.lam, {"w": p.B @ lam}, state.memory | {"v": {"w": v}})
    found = method.hypergradient_from(ctx, at, p.episode("train", 0)).grad["lam"]
    torch.testing.assert_close(found, p.B.T @ (p.B @ lam - p.c), rtol=0, atol=1e-12)


def test_step_sizes_fall_with_the_square_root():
    both = run(SOBA(**CHECK, decay="sqrt", outer_decay="sqrt"), 2)
    rho = 0.1 / 2**0.5
    w, v = -0.68 - rho * 2 * (-0.68 - 0.6), 0.17 - rho * (2 * 0.17 + -0.68 - 0.7)
    lam = 0.4 - 0.05 / 2**0.5 * (-2 * 1.5 * 0.17)
    torch.testing.assert_close(both[1], torch.tensor([w, v, lam], dtype=F64), rtol=0, atol=1e-12)


def test_several_joint_steps_before_lam_moves():
    """Two joint steps: lam's direction is that of the point after the first."""
    end = run(SOBA(**CHECK, inner_steps=2), 1)[0]
    expected = torch.tensor([-0.424, 0.274, 0.4255], dtype=F64)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-12)


def test_a_step_costs_one_of_each():
    ctx = check_problem()
    run(SOBA(), 3, ctx)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.hvps, counts.mixed_products) == (3, 3, 3)
    assert counts.outer_gradients == 3


def test_needs_a_carried_training():
    quadratic = tasks.get("quadratic")
    assert "one training along the run" in why_not(quadratic(), SOBA())
    assert why_not(quadratic(carried=True), SOBA()) is None
