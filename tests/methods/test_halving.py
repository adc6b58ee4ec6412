"""Successive halving, Hyperband and ASHA: who goes on, what is charged, and against Optuna's."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given as forall
from hypothesis import strategies as st
from optional import needs
from oracles import F64, context

from metabench.hypergradients.search.gradient_free import train
from metabench.hypergradients.search.halving import lengths
from metabench.methods.asha import ASHA, packed, promoted, unpacked
from metabench.methods.hyperband import Hyperband
from metabench.methods.successive_halving import SuccessiveHalving
from metabench.tasks.step_size import StepSize


def run(method, ctx, steps):
    state, logs = method.init(ctx), []
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
        logs.append(log)
    return state, logs


def scripted(curves):
    """A search problem on which point number i, in order of first sight, has the loss
    ``curves[i](steps)``: theta counts the steps."""
    ctx = context(StepSize(spread=0.0))
    problem, order = ctx.problem, []
    problem.init_inner = lambda lam, episode: {"w": torch.zeros((), dtype=F64)}
    problem.inner_loss = lambda lam, theta, batch: -theta["w"]
    problem.inner_rule = lambda lam: None

    def outer_loss(lam, theta, batch):
        rate = float(lam["rate"])
        if rate not in order:
            order.append(rate)
        return torch.tensor(curves[order.index(rate)](round(float(theta["w"]))), dtype=F64)

    problem.outer_loss = outer_loss
    return ctx, order


@pytest.mark.parametrize(("resume", "units"), [(True, 81), (False, 108)])
def test_a_bracket_is_charged_for_the_steps_it_takes(resume, units):
    """27 configurations, eta = 3, 1 to 27 units."""
    ctx = context(StepSize())
    method = SuccessiveHalving(points=27, inner_steps=27, resume=resume)
    state, logs = run(method, ctx, 4)
    assert [log["steps"] for log in logs] == [1, 3, 9, 27]
    assert ctx.meter.counts.inner_gradients == units
    assert ctx.meter.counts.trainings == (27 if resume else 40)
    assert ctx.meter.counts.function_evaluations == 40
    assert (state.memory["bracket"], state.memory["rung"], state.memory["trials"]) == (1, 0, [])


def test_rungs():
    halving = SuccessiveHalving(points=81, inner_steps=81)
    assert halving.rungs(0) == halving.rungs(5) == [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)]
    assert SuccessiveHalving(points=10, inner_steps=100, eta=3).rungs(0) == [
        (10, 11), (3, 33), (1, 100),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="inner_steps is 8: 3 rungs with eta = 3 need at least 9"):
        SuccessiveHalving(points=9, inner_steps=8)


def charge(method, brackets):
    """Units without and with resuming, and trainings begun, by the schedule alone."""
    rungs = [method.rungs(b) for b in range(brackets)]
    again = sum(n * r for one in rungs for n, r in one)
    pairs = [pair for one in rungs for pair in itertools.pairwise([(0, 0), *one])]
    on = sum(n * (r - before) for (_, before), (n, r) in pairs)
    return again, on, sum(one[0][0] for one in rungs)


def test_hyperbands_brackets():
    """R = 81: 1902 and 1581 units in 143 trials; logarithms are counted in integers."""
    band = Hyperband(inner_steps=81)
    assert band.rungs(1) == [(34, 3), (11, 9), (3, 27), (1, 81)]
    assert band.rungs(4) == [(5, 81)] and band.rungs(5) == band.rungs(0)
    assert charge(band, 5) == (1902, 1581, 143)
    assert Hyperband(inner_steps=243).halvings == 5
    assert Hyperband(inner_steps=1000, eta=10).halvings == 3
    assert Hyperband(inner_steps=81, least_steps=9).halvings == 2


def test_the_meter_counts_what_the_schedule_says():
    method = Hyperband(inner_steps=9)
    ctx = context(StepSize())
    run(method, ctx, 6)
    _, resumed, begun = charge(method, 3)
    assert ctx.meter.counts.inner_gradients == resumed
    assert ctx.meter.counts.trainings == begun


CROSSING = [lambda r, m=m, a=a: m + a / r for m, a in ((0.1, 8), (0.2, 2), (0.3, 1), (0.4, 0.5))]
"""Learning curves m + A / r that cross: the first is best after 64 steps, the last after 1."""


@pytest.mark.parametrize(("first", "loss"), [(1, 0.4078125), (4, 0.315625), (16, 0.23125)])
def test_short_first_trainings_choose_fast_starters(first, loss):
    """From r = 1 the fourth is chosen, from 4 the third, from 16 the second."""

    class From(SuccessiveHalving):
        def rungs(self, bracket):
            return [(4, first), (2, 2 * first), (1, 64)]

    ctx, _ = scripted(CROSSING)
    ctx.problem.project = dict
    state, _ = run(From(points=4, eta=2, inner_steps=64, inner_lr=1.0), ctx, 3)
    assert state.memory["best"] == pytest.approx(loss, abs=1e-12)
    assert state.memory["longest"] == 64


def test_the_answer_is_the_best_of_the_longest_training():
    """A longer training replaces a shorter one with a lower loss; nan is worse than all."""
    curves = [lambda r: 0.0 if r < 3 else 5.0, lambda r: math.nan, lambda r: 0.1 * r]
    ctx, order = scripted(curves)
    method = SuccessiveHalving(points=3, inner_steps=3, inner_lr=1.0)
    state, _ = run(method, ctx, 1)
    assert (state.memory["best"], state.memory["longest"]) == (0.0, 1)
    state, _ = method.step(ctx, state)
    assert (state.memory["best"], state.memory["longest"]) == (5.0, 3)
    assert float(state.lam["rate"]) == order[0]


def test_a_bracket_that_runs_away_is_left():
    ctx, _ = scripted([lambda r: math.inf] * 6)
    method = SuccessiveHalving(points=3, inner_steps=3, inner_lr=1.0)
    state, logs = run(method, ctx, 2)
    assert state.memory["bracket"] == 2 and state.memory["best"] == math.inf
    assert logs == [{"steps": 1.0}] * 2


def test_paused_trainings_end_where_whole_ones_do():
    """The solver's velocity included: the best point's loss is that of training it at once."""
    ctx = context("two_minima", "momentum")
    ctx.problem.carried = False
    method = SuccessiveHalving(points=9, inner_steps=9, inner_lr=0.05)
    state, _ = run(method, ctx, 3)
    (episode,) = ctx.training_episodes(0)
    whole = method.adapt(ctx, state, episode)
    loss = float(ctx.problem.outer_loss(state.lam, whole, episode.outer))
    assert loss == state.memory["best"]


@forall(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 4))
def test_nobody_waits_and_nobody_is_promoted_who_is_not_among_the_best(values, eta):
    """ASHA on fixed losses: each rung holds at most one in eta of the one below, its best ones at
    the time; and jobs go on for ever."""
    losses: list[list[float]] = []
    for _ in range(60):
        at = promoted(losses, eta, 3)
        if at is None:
            losses.append([])
            at = len(losses) - 1
        else:
            rung = len(losses[at]) - 1
            there = sorted(one[rung] for one in losses if len(one) > rung)
            assert losses[at][rung] <= there[len(there) // eta - 1]
        losses[at].append(values[at % len(values)])
    sizes = [sum(len(one) > rung for one in losses) for rung in range(3)]
    assert sizes[1] <= sizes[0] and sizes[2] <= sizes[1]
    # Late comers may oust who has gone on: a rung can hold more than one in eta, never by much.
    assert sizes[0] >= 60 // 3


def test_asha_takes_back_who_was_left_behind():
    """Losses 3, 2, 1 | 9, 9, 9 ...: with six seen, the second best of the first three goes on."""
    assert promoted([[3.0], [2.0]], 3, 2) is None
    assert promoted([[3.0], [2.0], [1.0]], 3, 2) == 2
    five = [[3.0], [2.0], [1.0, 1.0], [9.0], [9.0]]
    assert promoted(five, 3, 2) is None
    assert promoted([*five, [9.0]], 3, 2) == 1
    assert promoted([[math.inf]] * 3, 3, 2) is None


def test_asha_is_charged_by_segment_and_keeps_what_may_go_on():
    ctx = context(StepSize(spread=0.0))
    method = ASHA(rungs=3, inner_steps=9)
    state, logs = run(method, ctx, 26)
    losses = [[x for x in row if x == x] for row in state.memory["losses"].tolist()]
    steps = lengths(9, 3, 3)
    assert steps == [1, 3, 9]
    assert ctx.meter.counts.inner_gradients == sum(steps[len(one) - 1] for one in losses)
    assert ctx.meter.counts.trainings == len(losses)
    assert [log["steps"] for log in logs[:4]] == [1, 1, 1, 3]
    assert state.memory["longest"] == 9
    assert [len(p) for p in state.memory["paused"]] == [len(one) < 3 for one in losses]


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
def test_a_paused_training_is_packed_and_unpacked_to_the_bit(solver):
    ctx = context("two_minima", solver)
    lam = ctx.problem.init_outer()
    _, end = train(ctx, lam, ctx.training_episodes(0), steps=3, lr=0.1)
    again = unpacked(ctx, packed(end), lam)
    torch.testing.assert_close(again, end, rtol=0, atol=0)


def test_optunas_pruner_is_another_rule():
    """Values 5, 4, 3, 2, 1 one after another, eta = 3: each is the best so far, and Optuna lets all
    five go on; ASHA has promoted one of three, and successive halving waits for all."""
    needs("optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(pruner=pruner)
    on = []
    for value in (5.0, 4.0, 3.0, 2.0, 1.0):
        trial = study.ask()
        trial.report(value, 1)
        on.append(not trial.should_prune())
        study.tell(trial, value)
    assert on == [True] * 5
    losses: list[list[float]] = []
    for value in (5.0, 4.0, 3.0, 2.0, 1.0):
        losses.append([value])
        while (at := promoted(losses, 3, 2)) is not None:
            losses[at].append(losses[at][0])
    assert [len(one) for one in losses] == [1, 1, 2, 2, 2]


def test_more_rungs_than_the_steps_allow_are_refused_without_their_power():
    with pytest.raises(ValueError, match=r"1000000 rungs with eta = 3 need at least 3\^999999"):
        ASHA(inner_steps=9, rungs=10**6)
    assert lengths(100, 3, 4) == [3, 11, 33, 100] and lengths(0, 3, 1) == [0]


def test_a_shortest_training_is_no_longer_than_the_longest():
    with pytest.raises(ValueError, match=r"least_steps is 100: .* inner_steps, 9"):
        Hyperband(inner_steps=9, least_steps=100)
    assert Hyperband(inner_steps=9, least_steps=9).halvings == 0
    assert Hyperband(inner_steps=0).halvings == 0
