"""UCB, Thompson sampling and Hier-UCB: cases by hand, accounts of arms, what is left open."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from oracles import F64, context

from metabench.contract.problem import Hyper
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.registry import tasks
from metabench.hypergradients.search import arms
from metabench.hypergradients.search.arms import PULLS, REWARD, indices, pick
from metabench.hypergradients.search.gradient_free import ARMS, REGRET
from metabench.methods.hier_ucb import (
    CURRENT,
    LOST,
    LOW_PULLS,
    LOW_REWARD,
    WORST,
    HierUCB,
    rewards,
)
from metabench.methods.thompson import Thompson
from metabench.methods.ucb import UCB

FLAT = (UCB, Thompson)
F, G = (0.1, 0.4, 0.2, 0.3, 0.0), (0.0, 0.05, 0.3, 0.1)


def table(reward, *sizes, seed=0):
    """A context whose lam is one category a size, with a loss of minus ``reward(*lam)``."""
    ctx = context("quadratic")
    ctx.seeds = Seeds.of(seed)
    names = "abc"[: len(sizes)]
    problem = ctx.problem
    problem.hypers = tuple(
        Hyper(k, (), choices=tuple(range(n))) for k, n in zip(names, sizes, strict=True)
    )
    problem.init_outer = lambda: {k: torch.zeros((), dtype=F64) for k in names}
    problem.project = dict
    problem.asked = []

    def outer_loss(lam, theta, batch):
        at = tuple(int(lam[k]) for k in names)
        problem.asked.append(at)
        return torch.tensor(-float(reward(*at)), dtype=F64)

    problem.outer_loss = outer_loss
    return ctx


def run(method, ctx, steps, state=None):
    state = method.init(ctx) if state is None else state
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
    return state, log


def at(lam):
    return tuple(int(v) for v in lam.values())


def test_indices_by_hand():
    pulls = torch.tensor([4.0, 1.0], dtype=F64)
    reward = torch.tensor([0.5, 0.4], dtype=F64) * pulls
    found = indices(pulls, reward, 1.0).tolist()
    assert found == pytest.approx([1.1343181208, 1.6686362412], rel=0, abs=1e-9)
    exact = [0.5 + math.sqrt(math.log(5)) / 2, 0.4 + math.sqrt(math.log(5))]
    assert found == pytest.approx(exact, rel=0, abs=1e-15)
    assert pick(pulls, reward, 1.0) == 1 and pick(pulls, reward, 0.0) == 0


counts = st.integers(1, 50)
reward = st.floats(-1, 1)


@forall(st.lists(st.tuples(counts, reward), min_size=2, max_size=8), st.floats(0, 2), reward)
def test_a_constant_added_to_every_reward_changes_no_index_but_by_itself(arms, alpha, more):
    pulls = torch.tensor([n for n, _ in arms], dtype=F64)
    mean = torch.tensor([q for _, q in arms], dtype=F64)
    torch.testing.assert_close(
        indices(pulls, (mean + more) * pulls, alpha),
        indices(pulls, mean * pulls, alpha) + more,
        rtol=0,
        atol=1e-12,
    )


@forall(st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_what_was_never_pulled_comes_first(pulls):
    chosen = pick(torch.tensor(pulls, dtype=F64), torch.zeros(len(pulls), dtype=F64), 1.0)
    assert 0 not in pulls or chosen == pulls.index(0)


@pytest.mark.parametrize("method", FLAT)
def test_flat_bandits_find_the_best_arm_and_count_every_pull(method):
    ctx = table(lambda a, b: F[a] + G[b], 5, 4)
    state, log = run(method(inner_steps=0), ctx, 400)
    assert at(state.lam) == (1, 2)
    pulled = ctx.problem.asked
    assert float(state.memory[PULLS].sum()) == 400 == ctx.meter.counts.function_evaluations
    total = sum(F[a] + G[b] for a, b in pulled)
    assert float(state.memory[REWARD].sum()) == pytest.approx(total)
    assert log["cumulative_loss"] == pytest.approx(-total)
    ranked = [at(lam) for lam in method().ranking(ctx, state)]
    assert len(ranked) == len({*pulled}) == len({*ranked}) <= 20
    if method is UCB:
        assert len({*pulled[:20]}) == 20
        worth = [F[a] + G[b] for a, b in ranked]
        assert worth == pytest.approx(sorted(worth, reverse=True), abs=1e-12)


def test_thompson_draws_from_its_posterior():
    """Of two arms the worse one is pulled as often as its draw is the larger."""
    pulls = torch.tensor([9.0, 3.0], dtype=F64)
    reward = torch.tensor([5.0, 0.0], dtype=F64)
    ctx, chosen = table(lambda a: 0, 2), []
    for ctx.step in range(4000):
        chosen.append(Thompson().choose(ctx, pulls, reward))
    sd = math.sqrt(1 / 10 + 1 / 4)
    worse = 0.5 * math.erfc((5 / 10) / sd / math.sqrt(2))
    assert sum(chosen) / 4000 == pytest.approx(worse, abs=0.02)
    assert Thompson(scale=1e-9).choose(ctx, pulls, reward) == 0


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize("score", ["sum", "arm"])
def test_hier_ucb_ends_with_the_best_pair_of_a_separable_table(alphas, score):
    ctx = table(lambda k, c: F[k] + G[c], 5, 4)
    method = HierUCB(inner_steps=0, alpha_high=alphas[0], alpha_low=alphas[1], score=score)
    state, _ = run(method, ctx, 400)
    assert at(state.lam) == (1, 2) == at(method.ranking(ctx, state)[0])
    assert {at(lam) for lam in HierUCB().ranking(ctx, state)} == {
        *itertools.product(range(5), range(4))
    }


@settings(max_examples=15, deadline=None)
@forall(st.lists(st.floats(-1, 1), min_size=12, max_size=12), st.integers(1, 40))
def test_the_arms_of_both_levels_are_accounted_for(values, steps):
    """Pulls of hyperparameters add up to the trials; those of its values to its own."""
    ctx = table(lambda a, b, c: values[(a * 2 + b) * 2 + c], 3, 2, 2)
    state, _ = run(HierUCB(inner_steps=0), ctx, steps)
    memory = state.memory
    assert float(memory[PULLS].sum()) == steps
    for n, s, low, sums in zip(
        memory[PULLS], memory[REWARD], memory[LOW_PULLS], memory[LOW_REWARD], strict=True
    ):
        assert float(low.sum()) == float(n) and float(sums.sum()) == pytest.approx(float(s))
    assert tuple(memory[CURRENT]) == ctx.problem.asked[-1]
    for one, other in itertools.pairwise([(0, 0, 0), *ctx.problem.asked]):
        assert sum(x != y for x, y in zip(one, other, strict=True)) <= 1


def test_hier_ucb_by_hand():
    """Both hyperparameters first, each with its first value; then the largest indices."""
    ctx = table(lambda a, b: (0.0, 1.0)[a] + (0.0, 0.2, 0.1)[b], 2, 3)
    run(HierUCB(inner_steps=0), ctx, 6)
    # t=3: Q = (0, 0), N = (1, 1): a, its value 1. Then b: 1 + ... of a is (0 + 1) / 2.
    assert ctx.problem.asked[:3] == [(0, 0), (0, 0), (1, 0)]
    a = 0.5 + math.sqrt(math.log(3) / 2)
    b = 0.0 + math.sqrt(math.log(3) / 1)
    assert a > b and ctx.problem.asked[3][1] == 0
    low = (0.0 + math.sqrt(math.log(2)), 1.0 + math.sqrt(math.log(2)))
    assert low[1] > low[0] and ctx.problem.asked[3] == (1, 0)


def test_all_values_in_place_are_credited_where_that_is_set():
    ctx = table(lambda a, b: 1.0 + a + 10 * b, 2, 2)
    state, _ = run(HierUCB(inner_steps=0, credit="all"), ctx, 5)
    for low, sums in zip(state.memory[LOW_PULLS], state.memory[LOW_REWARD], strict=True):
        assert float(low.sum()) == 5
        assert float(sums.sum()) == sum(1.0 + a + 10 * b for a, b in ctx.problem.asked)
    assert float(state.memory[PULLS].sum()) == 5


def test_a_first_configuration_of_the_seed():
    def firsts(seed):
        ctx = table(lambda a, b: 0.0, 9, 9, seed=seed)
        run(HierUCB(inner_steps=0, begin="random"), ctx, 1)
        return ctx.problem.asked[0][1]  # a is pulled, at its first value; b is as it began

    found = [firsts(seed) for seed in range(8)]
    assert found == [firsts(seed) for seed in range(8)] and len({*found}) > 2


@pytest.mark.parametrize("method", [UCB, Thompson, HierUCB])
def test_forgetting_starts_anew_and_keeps_the_regret(method):
    ctx = table(lambda a: (0.0, 1.0)[a], 2)
    ctx.problem.regret = lambda lam, episode: 1.0 - float(lam["a"])
    made = method(inner_steps=0, forget_at=6)
    state, _ = run(made, ctx, 6)
    assert float(state.memory[PULLS].sum()) == 6
    state, log = run(made, ctx, 4, state)
    assert float(state.memory[PULLS].sum()) == 4
    assert state.memory[REGRET]["count"] == 10
    said = made.report(ctx, state)
    assert said["cumulative_regret"] == sum(a == 0 for (a,) in ctx.problem.asked)
    assert said["mean_regret"] == said["cumulative_regret"] / 10
    assert log["cumulative_loss"] == -sum(a for (a,) in ctx.problem.asked[6:])


def test_an_arm_that_runs_away_is_never_the_answer():
    ctx = table(lambda a: (-math.inf, 0.1, 0.2)[a], 3)
    for method in (UCB, Thompson, HierUCB):
        ctx.step = 0
        state, _ = run(method(inner_steps=0), ctx, 12)
        assert at(state.lam) == (2,), method


@pytest.mark.parametrize("score", ["sum", "arm"])
@pytest.mark.parametrize("credit", ["pulled", "all"])
def test_a_trial_that_ran_away_ends_no_trials_of_its_hyperparameter(score, credit):
    """The first value of the first hyperparameter runs away, whatever the second one is."""
    ctx = table(lambda a, b: -math.inf if a == 0 else -3 + 0.1 * a + 0.4 * b, 3, 2)
    method = HierUCB(inner_steps=0, score=score, credit=credit)
    state, log = run(method, ctx, 60)
    asked = ctx.problem.asked
    assert {a for a, _ in asked[-30:]} >= {1, 2} and float(state.memory[PULLS].min()) > 5
    assert at(state.lam) == (2, 1) == at(method.ranking(ctx, state)[0])
    assert "cumulative_loss" not in log
    lost = sum(a == 0 for a, _ in asked)
    assert float(state.memory[LOST].sum()) == lost > 0 and state.memory[WORST] == -2.9
    assert float(state.memory[REWARD].sum()) == pytest.approx(
        sum(-3 + 0.1 * a + 0.4 * b for a, b in asked if a)
    )
    assert float(rewards(state.memory)[0].sum()) == pytest.approx(
        float(state.memory[REWARD].sum()) - 2.9 * lost
    )


def test_what_has_only_run_away_is_no_better_than_what_has_not():
    ctx = table(lambda a: (-math.inf, 0.2)[a], 2)
    state, _ = run(HierUCB(inner_steps=0), ctx, 8)
    assert at(state.lam) == (1,)
    nothing, log = run(HierUCB(inner_steps=0), table(lambda a: -math.inf, 2), 4)
    assert log == {} and float(rewards(nothing.memory)[0].abs().sum()) == 0


def test_grids_too_large_are_sampled_and_idle_parts_are_no_arms(monkeypatch):
    monkeypatch.setattr(arms, "MOST", 20)
    axes = ((0.1, 0.9),) * 6
    some = arms.drawn(axes, "a seed")
    assert some == arms.drawn(axes, "a seed") and 10 < len(some) == len({*some}) <= 20
    arms.drawn.cache_clear()
    ctx = context("quadratic")
    ctx.problem.hypers = (
        Hyper("a", (), choices=("off", "on")),
        Hyper("b", (), 0.0, 1.0, only_if=("a", ("on",))),
    )
    ctx.problem.init_outer = lambda: {k: torch.tensor(0.0, dtype=F64) for k in "ab"}
    found = UCB(points=3).arms(ctx, [2, 0])
    assert sorted(found) == [(0.25, 0.0), (0.75, 0.0), (0.75, 0.5), (0.75, 1.0)]


def test_who_may_run_them():
    carried = tasks.get("ridge")(carried=True)
    for method in (UCB(), Thompson(), HierUCB()):
        assert "many inner problems" in (why_not(carried, method) or "")
        assert why_not(tasks.get("optimiser_constants")(), method) is None
    assert ARMS not in run(UCB(inner_steps=0), table(lambda a: a, 2), 3)[0].memory
    assert "ranked" in HierUCB.reconstruction and "posterior" in Thompson.reconstruction
