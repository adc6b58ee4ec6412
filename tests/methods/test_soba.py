"""SOBA, MA-SOBA and SABA: the first steps by hand, their end, stability and cost."""

from itertools import pairwise

import pytest
import torch
from finite_sum import FiniteSum
from oracles import F64, context, given

from metabench.conformance.kit import ContractError, method_checks
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks
from metabench.core.settings import build, values
from metabench.hypergradients.single_loop import saga

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


def finite_sum(method, steps, seed=0, every=None, **set_):
    """Squared gradients at the exact minimiser, ``every`` so many steps, the end, and its cost."""
    problem = FiniteSum(seed, **set_)
    ctx = given(problem, "carried", "example_losses")
    ctx.seeds = Seeds.of(seed)
    state, path = method.init(ctx), []
    for ctx.step in range(steps + 1):
        if ctx.step % (every or steps) == 0:
            path.append(float(problem.exact(state.lam).square().sum()))
        if ctx.step < steps:
            state, _ = method.step(ctx, state)
    return path, state, ctx.meter.counts


SMALL = {"examples": 64, "m": 8, "n": 3, "least": 0.3}
STEPS = {"inner_lr": 0.5, "outer_lr": 0.1}
SABA = {"reduction": "saga", "block": 8}


@pytest.mark.parametrize("more", [{}, {"average": 0.5}, {"inner_steps": 3}])
@pytest.mark.parametrize("penalty", [False, True])
def test_saba_with_one_block_is_soba(more, penalty):
    ends = []
    for set_ in ({}, {"reduction": "saga", "block": 64}):
        method = SOBA(inner_lr=0.1, outer_lr=0.05, **more, **set_)
        _, state, counts = finite_sum(method, 12, penalty=penalty, **SMALL)
        ends.append((state.lam["lam"], state.theta["w"], state.memory["v"]["w"], counts))
    for a, b in zip(*(end[:3] for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert ends[0][3] == ends[1][3]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_saba_converges_where_soba_stops_at_its_noise(seed):
    """At equal numbers of batch derivatives and equal constant steps. Measured after 300 steps,
    from about 10: SABA 1.1e-12, 5.8e-10, 4.7e-8; SOBA 0.04, 0.5, 1.2."""
    soba, _, plain = finite_sum(SOBA(**STEPS), 300, seed, batch=8, **SMALL)
    saba, _, blocks = finite_sum(SOBA(**STEPS, **SABA), 300, seed, 100, batch=8, **SMALL)
    assert plain == blocks and plain.inner_gradients == 300
    assert soba[0] == saba[0] > 1 and soba[-1] > 1e-3 and saba[-1] < 1e-6
    falls = [after / before for before, after in pairwise(saba)]
    assert max(falls) < 0.1, f"100 steps leave {falls}: SABA's rate is linear"


def test_saba_corrects_drawn_outer_batches_too():
    """Measured after 400 steps, from 13: SABA 1e-15, SOBA 0.15."""
    soba, _, plain = finite_sum(SOBA(**STEPS), 400, batch=8, judges=8, **SMALL)
    saba, _, blocks = finite_sum(SOBA(**STEPS, **SABA), 400, batch=8, judges=8, **SMALL)
    assert plain == blocks and plain.outer_gradients == 400
    assert soba[0] == saba[0] and saba[-1] < 1e-12 and soba[-1] > 1e-2


def test_saba_counts_blocks_as_parts_of_the_inner_batch():
    *_, counts = finite_sum(SOBA(**SABA, first_tables="full"), 10, **SMALL)
    assert (counts.inner_gradients, counts.hvps, counts.mixed_products) == (2, 2, 2)
    assert counts.outer_gradients == 10


def test_the_kit_recounts_examples(monkeypatch):
    """Blocks that are not counted, and blocks that are counted as whole batches."""
    counts = dict(method_checks(SOBA(reduction="saga", block=16)))["counts[ridge]"]
    counts()
    honest = saga.adjoint

    def free(ctx, *given):
        with ctx.uncounted():
            return honest(ctx, *given)

    with monkeypatch.context() as now:
        now.setattr(saga, "adjoint", free)
        with pytest.raises(ContractError, match="losses are evaluated 4 times"):
            counts()
    with monkeypatch.context() as now:
        now.setattr("metabench.contract.context.full_batches", lambda *given: 1)
        with pytest.raises(ContractError, match="3 inner gradients counted, 1 inner losses"):
            counts()


def test_saba_needs_examples_by_number():
    quadratic, ridge = tasks.get("quadratic"), tasks.get("ridge")
    assert "losses of single examples" in why_not(quadratic(carried=True), SOBA(**SABA))
    assert why_not(ridge(carried=True), SOBA(**SABA)) is None
    with pytest.raises(SettingError, match='block and first_tables need reduction = "saga"'):
        build(SOBA, {"block": 8}, "method soba")
    assert "reduction" not in values(SOBA()) and values(SOBA(**SABA))["block"] == 8
