"""Cross-entropy search: cases by hand to the digit, collapse in closed form, known optima."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given as forall
from hypothesis import strategies as st
from oracles import F64, context
from scipy.stats import norm

from metabench.contract.problem import Hyper
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks
from metabench.hypergradients.search.cross_entropy import SAMPLER, refit, weights
from metabench.methods.cehpo import CEHPO
from metabench.methods.cehpo_online import CEHPOOnline
from metabench.tasks.step_size import StepSize

V = torch.tensor([4.0, 2.0], dtype=F64)


def run(method, ctx, steps):
    state, logs = method.init(ctx), []
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
        logs.append(log)
    return state, logs


def test_a_round_by_hand():
    """J = (beta - 2)^2 on {0, 1, 2, 3, 10}, three elites; sigma is smoothed, not its square."""
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0], dtype=F64)
    r = weights(((x - 2) ** 2).tolist(), rho=0.6)
    assert r.tolist() == [0, 1, 1, 1, 0]
    torch.testing.assert_close(
        refit(V, x, r, 0, a=1.0), torch.tensor([2.0, 0.8164965809], dtype=F64), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(
        refit(V, x, r, 0, a=0.5), torch.tensor([3.0, 1.4082482905], dtype=F64), rtol=0, atol=1e-10
    )


def test_categories_are_frequencies_of_the_best():
    x = (torch.tensor([0, 2, 2, 1, 2]) + 0.5) / 3
    r = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=F64)
    even = torch.full((3,), 1 / 3, dtype=F64)
    new = refit(even, x, r, 3, a=0.4)
    expected = 0.4 * torch.tensor([0.25, 0.25, 0.5], dtype=F64) + 0.6 / 3
    torch.testing.assert_close(new, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("rho", "factor"), [(0.1, 0.00525), (0.2, 0.0212), (0.5, 0.1427)])
def test_without_smoothing_the_variance_collapses(rho, factor):
    """A round at the optimum of a symmetric loss leaves 1 - 2 c phi(c) / rho of the variance."""
    c = norm.ppf((1 + rho) / 2)
    closed = 1 - 2 * c * norm.pdf(c) / rho
    assert closed == pytest.approx(factor, rel=5e-3)
    x = torch.randn(200_000, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = refit(torch.tensor([0.0, 1.0], dtype=F64), x, weights((x**2).tolist(), rho), 0, 1.0)
    assert float(found[1]) ** 2 == pytest.approx(closed, rel=0.03)


@forall(
    st.lists(st.floats(-10, 10) | st.just(math.nan) | st.just(math.inf), min_size=4, max_size=40),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
)
def test_the_best_part_of_a_round(losses, rho):
    """What is no number counts in the quantile and is never among the best."""
    r = weights(losses, rho)
    finite = [x for x in losses if math.isfinite(x)]
    kept = [x for x, w in zip(losses, r.tolist(), strict=True) if w]
    assert all(math.isfinite(x) for x in kept)
    wanted = min(math.ceil(rho * len(losses) - 1e-9), len(finite))
    assert len(kept) >= wanted
    gamma = sorted(finite)[wanted - 1] if finite else None
    assert all(x <= gamma for x in kept) and all(x > gamma for x in finite if x not in kept)


@forall(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.floats(0.01, 10))
def test_soft_weights(losses, tau):
    r = weights([*losses, math.nan], 0.5, tau)
    least = min(losses)
    expected = [math.exp((least - x) / tau) for x in losses]
    assert r.tolist() == pytest.approx([*expected, 0.0])


def test_a_round_that_says_nothing_changes_nothing():
    r = weights([math.inf, math.nan], 0.5)
    assert r.tolist() == [0, 0]
    assert refit(V, torch.zeros(2, dtype=F64), r, 0, 1.0) is V


@pytest.mark.parametrize("curvature", [0.5, 4.0])
@pytest.mark.parametrize("answer", ["mean", "best"])
def test_it_converges_to_the_best_step_size(curvature, answer):
    """beta = 1 / h, where the loss of any number of steps is 0; half of the range runs away."""
    ctx = context(StepSize(curvature=curvature))
    method = CEHPO(samples=20, inner_steps=5, answer=answer, least_sigma=0.0)
    state, logs = run(method, ctx, 15)
    assert float(state.lam["rate"]) == pytest.approx(1 / curvature, rel=1e-2)
    assert ctx.meter.counts.trainings == 300
    assert ctx.meter.counts.inner_gradients == 1500
    assert logs[-1]["largest_sigma"] < 0.01 < logs[0]["largest_sigma"]


def test_small_best_parts_without_smoothing_stall():
    """With rho = 0.1, no smoothing and no floor some seeds stop far away, and more rounds do not
    help; the default comes closer."""

    def errors(rounds, **set_):
        out = []
        for seed in range(5):
            ctx = context(StepSize())
            ctx.seeds = Seeds.of(seed)
            state, _ = run(CEHPO(samples=20, inner_steps=1, **set_), ctx, rounds)
            out.append(abs(math.log(float(state.lam["rate"]))))
        return out

    collapse = {"rho": 0.1, "smoothing": 1.0, "least_sigma": 0.0}
    assert max(errors(8)) < 0.1
    early, late = errors(6, **collapse), errors(8, **collapse)
    assert max(late) > 0.2 and late == pytest.approx(early, abs=1e-3)


def test_a_round_shares_its_noise_and_the_next_has_another():
    ctx = context(StepSize())
    starts, seen = [], ctx.problem.init_inner

    def init_inner(lam, episode):
        starts.append(float(episode.outer["start"]))
        return seen(lam, episode)

    ctx.problem.init_inner = init_inner
    run(CEHPO(samples=8, inner_steps=1), ctx, 2)
    assert len(set(starts[:8])) == len(set(starts[8:])) == 1 and starts[0] != starts[8]


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"samples is 7: with rho = 0.25 .* at least 8"):
        CEHPO(samples=7)
    assert CEHPO(samples=8).samples == 8
    assert CEHPO(samples=20, rho=0.1).rho == 0.1
    assert "standard cross-entropy" in CEHPO.reconstruction == CEHPOOnline.reconstruction


def test_what_counts_under_a_choice_is_fitted_to_where_it_counts():
    """The loss sees "b" only where "a" is on, and is least at b = 0.9 there."""
    ctx = context("quadratic")
    problem = ctx.problem
    problem.hypers = (
        Hyper("a", (), choices=("off", "on")),
        Hyper("b", (), 0.0, 1.0, only_if=("a", ("on",))),
    )
    first = {"a": torch.tensor(0.0, dtype=F64), "b": torch.tensor(0.3, dtype=F64)}
    problem.init_outer, problem.project = lambda: dict(first), dict
    seen = []

    def outer_loss(lam, theta, batch):
        seen.append((float(lam["a"]), float(lam["b"])))
        return lam["a"] * (lam["b"] - 0.9).square() + (1 - lam["a"])

    problem.outer_loss = outer_loss
    state, _ = run(CEHPO(samples=20, inner_steps=0), ctx, 8)
    assert all(b == 0.3 for a, b in seen if a == 0.0)
    assert float(state.lam["a"]) == 1 and float(state.lam["b"]) == pytest.approx(0.9, abs=0.05)
    shares, normal = state.memory[SAMPLER]
    assert float(shares[1]) > 0.95 and float(normal[1]) < 0.1


def test_online_shares_one_theta_for_a_segment():
    """Its charge is a segment a point; the best point's theta is where the next segment starts."""
    ctx = context(StepSize(spread=0.0))
    method = CEHPOOnline(samples=8, inner_steps=4, segment=2)
    state, _ = run(method, ctx, 1)
    assert ctx.meter.counts.inner_gradients == 16 and ctx.meter.counts.trainings == 8
    assert (state.memory["training"], state.memory["done"]) == (0, 2)
    shared = float(state.memory["paused"][0]["theta"]["w"])
    assert abs(shared) < 1
    state, _ = method.step(ctx, state)
    assert ctx.meter.counts.inner_gradients == 32 and ctx.meter.counts.trainings == 8
    assert (state.memory["training"], state.memory["done"]) == (1, 0)
    assert state.memory["paused"] is None


def test_online_finds_the_best_step_size():
    state, _ = run(CEHPOOnline(samples=20, inner_steps=6, segment=3), context(StepSize()), 16)
    assert float(state.lam["rate"]) == pytest.approx(1.0, rel=0.05)


def test_who_may_run_it():
    carried = replace(tasks.get("ridge")(), carried=True)
    assert "many inner problems" in (why_not(carried, CEHPO()) or "")
    assert why_not(carried, CEHPO(answer="best")) is None
    assert why_not(tasks.get("step_size")(), methods.get("cehpo")()) is None
