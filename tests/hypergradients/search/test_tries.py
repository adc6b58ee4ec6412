"""Tries beside a search's own: the initial lam first, and the best few judged again at the end."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch
from oracles import F64, context, given

from metabench.contract.method import Context
from metabench.contract.problem import Episode, Hyper, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.cell import Budget, make_cell
from metabench.core.environment import optional_packages
from metabench.core.errors import SettingError, Stopped
from metabench.core.registry import methods
from metabench.hypergradients.search.gradient_free import ARMS, place, point_of
from metabench.hypergradients.search.tries import FINALISTS, tries_left
from metabench.run.runner import run_cell
from metabench.store.record import curve_outcome
from metabench.store.store import Store
from metabench.tasks.step_size import StepSize

LACK = optional_packages.why_not("optuna")
TPE = pytest.param(
    "optuna_tpe", marks=pytest.mark.skipif(bool(LACK), reason=f"{LACK}: pip install optuna")
)
BY_TRIES = ["random", "grid", TPE]
INITIAL = [*BY_TRIES, "cehpo", "cehpo_online", "successive_halving", "hyperband", "asha"]


class Noisy(Problem):
    """F = (lam - 0.5)^2 + noise n, n normal, another one for every lam and episode."""

    hypers = (Hyper("lam", (), -1.0, 1.0),)

    def __init__(self, seed: int = 0, noise: float = 0.0, first: float = -0.3) -> None:
        self.seed, self.noise, self.first = seed, noise, first
        self.tried: list[float] = []

    def init_outer(self):
        return {"lam": torch.tensor(self.first, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros((), dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        return theta["w"].square()

    def outer_loss(self, lam, theta, batch):
        self.tried.append(float(lam["lam"]))
        gen = generator(int(batch["number"]), float(lam["lam"]).hex())
        normal = torch.randn((), generator=gen, dtype=F64)
        return (lam["lam"] - 0.5).square() + self.noise * normal

    def episode(self, split, index):
        batch = {"number": torch.tensor(1000 * self.seed + index if self.noise else 0)}
        return Episode(batch, batch, index)

    def metrics(self, lam, theta, episode):
        return {"loss": float(lam["lam"])}


def noisy(seed: int = 0, *, tries: int | None = 24, **set_) -> Context:
    ctx = given(
        Noisy(seed, **set_), "search_space", "small_lam", "episodes",
        budget=Budget(trainings=tries),
    )  # fmt: skip
    ctx.seeds = Seeds.of(seed)
    return ctx


def searched(ctx: Context, name: str, **set_):
    """The state when the budget of trainings is spent, and the lams that every step tried."""
    method = methods.get(name)(**{"inner_steps": 0, **set_})
    state, steps = method.init(ctx), []
    while ctx.progress < 1:
        before = len(ctx.problem.tried)
        state, _ = method.step(ctx, state)
        steps.append(ctx.problem.tried[before:])
        ctx.step += 1
    return state, steps


@pytest.mark.parametrize(
    "lam",
    [
        {"rate": [1e-4, 0.03], "kind": 2, "shift": 1.5},
        {"rate": [1.0, 1e-3], "kind": 0, "shift": -2.0},
    ],
)
def test_a_lam_has_its_point_in_the_unit_cube(lam):
    hypers = (
        Hyper("rate", (2,), 1e-4, 1.0, log=True),
        Hyper("kind", (), choices=("a", "b", "c")),
        Hyper("shift", (), -2.0, 2.0),
    )
    lam = {k: torch.tensor(v, dtype=F64) for k, v in lam.items()}
    point = point_of(lam, hypers)
    assert len(point) == 4 and all(0 <= u <= 1 for u in point)
    torch.testing.assert_close(place(point, hypers, lam), lam)


def test_what_is_beyond_a_bound_is_on_it_and_without_bounds_there_is_no_point():
    far = {"lam": torch.tensor([5.0, -5.0, 0.0], dtype=F64)}
    assert point_of(far, (Hyper("lam", (3,), -1.0, 1.0),)) == (1.0, 0.0, 0.5)
    assert point_of(far, (Hyper("lam", (3,), 0.1, 10.0, log=True),))[1:] == (0.0, 0.0)
    with pytest.raises(ValueError, match="'lam' has no bounds"):
        point_of(far, (Hyper("lam", (3,), 0.0),))


@pytest.mark.parametrize("name", INITIAL)
def test_the_initial_lam_is_tried_first_as_it_is(name):
    """To the last bit, and in place of another try: all that is tried is paid for."""
    method = methods.get(name)(inner_steps=27, initial_first=True)
    plain = methods.get(name)(inner_steps=27)
    for each in (method, plain):
        ctx = noisy(first=1 / 3)
        each.step(ctx, each.init(ctx))
        tried = ctx.problem.tried
        assert (tried[0] == 1 / 3) == each.initial_first and 1 / 3 not in tried[1:]
        assert ctx.meter.counts.trainings == len(tried)


@pytest.mark.parametrize("sequence", ["sobol", "uniform"])
def test_a_sequence_of_points_begins_after_the_initial_lam(sequence):
    """None of it is left out, which would spoil the balance of Sobol's."""
    _, own = searched(noisy(tries=8), "random", sequence=sequence)
    _, later = searched(noisy(tries=9), "random", sequence=sequence, initial_first=True)
    assert later == [[-0.3], *own]


@pytest.mark.parametrize("first", [-0.3, 0.25, 1.0])
def test_a_grid_has_the_initial_lam_once(first):
    """Where that is one of its points, it is not tried a second time before all others were."""
    ctx = noisy(first=first, tries=9)
    _, steps = searched(ctx, "grid", points=9, initial_first=True)
    (tried,) = zip(*steps, strict=True)
    assert tried[0] == first and len(set(tried)) == 9
    assert {*tried[1:]} <= {-1 + i / 4 for i in range(9)} - {first}


@pytest.mark.parametrize("name", BY_TRIES)
def test_the_best_are_judged_again_on_the_same_new_episodes(name):
    """Within the budget; the answer is the least mean of the two values of a finalist."""
    ctx = noisy(noise=0.3)
    state, steps = searched(ctx, name, finalists=5, **({"points": 30} if name == "grid" else {}))
    assert len(steps) == 24 and ctx.meter.counts.trainings == 24
    assert ctx.meter.counts.function_evaluations == 24

    def value(lam: float, step: int) -> float:
        batch = ctx.problem.episode("train", step).outer
        return float(ctx.problem.outer_loss({"lam": torch.tensor(lam, dtype=F64)}, {}, batch))

    first = {i: value(steps[i][0], i) for i in range(19)}
    best = sorted(first, key=first.get)[:5]
    assert [lam for (lam,) in steps[19:]] == [steps[i][0] for i in best]
    means = {i: (first[i] + value(steps[i][0], 19)) / 2 for i in best}
    wanted = min(means, key=means.get)
    assert float(state.lam["lam"]) == steps[wanted][0]
    assert state.memory["best"] == pytest.approx(means[wanted])
    assert sorted(arm["count"] for arm in state.memory[ARMS]) == [1] * 14 + [2] * 5


def test_while_finalists_are_judged_one_that_is_not_yet_is_no_answer():
    """Its single value is as lucky as it was."""
    ctx = noisy(noise=0.3, tries=12)
    method = methods.get("random")(inner_steps=0, finalists=4)
    state = method.init(ctx)
    for ctx.step in range(12):
        state, _ = method.step(ctx, state)
        if FINALISTS in state.memory:
            again = [state.memory[ARMS][i] for i in state.memory[FINALISTS]["arms"]]
            answers = {float(arm["lam"]["lam"]) for arm in again if arm["count"] == 2}
            assert len(answers) == ctx.step - 7 and float(state.lam["lam"]) in answers
    assert len(answers) == 4


def test_more_budget_than_was_foreseen_goes_round_again():
    ctx = noisy(noise=0.3, tries=10)
    method = methods.get("random")(inner_steps=0, finalists=2)
    state = method.init(ctx)
    for ctx.step in range(13):  # three more than the budget says
        state, _ = method.step(ctx, state)
    counts = [state.memory[ARMS][i]["count"] for i in state.memory[FINALISTS]["arms"]]
    assert counts == [4, 3] and sum(arm["count"] for arm in state.memory[ARMS]) == 13
    a, b = ctx.problem.tried[8:10]
    assert ctx.problem.tried[8:] == [a, b, a, b, a]


def test_the_answer_is_better_on_average_than_by_single_values():
    """Within the same budget, the other values paid for: the mean regret of 50 searches."""

    def regret(seed: int, **set_) -> float:
        ctx = noisy(seed, tries=60, noise=0.5)
        state, _ = searched(ctx, "random", sequence="uniform", **set_)
        return (float(state.lam["lam"]) - 0.5) ** 2

    single = [regret(seed) for seed in range(50)]
    again = [regret(seed, finalists=5, repeats=4) for seed in range(50)]
    assert statistics.fmean(again) < 0.8 * statistics.fmean(single)


@pytest.mark.parametrize("name", BY_TRIES)
def test_without_noise_no_second_value_is_spent(name):
    """The whole budget is searched with, as without the setting."""
    set_ = {"points": 30} if name == "grid" else {}
    ctx = noisy()
    state, steps = searched(ctx, name, finalists=5, **set_)
    plain, same = searched(noisy(), name, **set_)
    assert steps == same and torch.equal(state.lam["lam"], plain.lam["lam"])
    assert ctx.notes["finalists"] == "none: a training gives the same value again"


@pytest.mark.parametrize(
    ("spread", "solver", "again"), [(1.0, "sgd", 1), (0.0, "sgd", 0), (0.0, "langevin", 1)]
)
def test_noise_comes_from_first_values_batches_or_the_solver(spread, solver, again):
    """Of each there is none where nothing is judged again."""
    ctx = context(StepSize(spread=spread), solver, budget=Budget(trainings=6))
    method = methods.get("random")(inner_steps=2, finalists=2)
    state = method.init(ctx)
    for ctx.step in range(6):
        state, _ = method.step(ctx, state)
    assert (FINALISTS in state.memory) == again
    assert len(state.memory[ARMS]) == (4 if again else 6)


def test_a_budget_of_time_alone_has_no_last_tries():
    ctx = noisy(noise=0.3)
    ctx.budget = Budget(seconds=9.0)
    method = methods.get("random")(inner_steps=0, finalists=3)
    state = method.init(ctx)
    for ctx.step in range(5):
        state, _ = method.step(ctx, state)
    assert FINALISTS not in state.memory and len(state.memory[ARMS]) == 5
    assert ctx.notes["finalists"] == "none: only time limits the run"


@pytest.mark.parametrize(
    ("tries", "finalists", "repeats", "counts"),
    [
        (1, 3, 1, []),
        (2, 3, 1, [2]),
        (4, 3, 1, [2, 2]),
        (5, 3, 1, [2, 2]),
        (7, 3, 1, [2, 2, 2]),
        (20, 3, 2, [3, 3, 3]),
        (9, 2, 9, [3, 3]),
        (9, 3, 2, [3, 2, 2]),
    ],
)
def test_never_more_than_half_of_the_tries_are_repeats(tries, finalists, repeats, counts):
    ctx = noisy(noise=0.3, tries=tries)
    state, steps = searched(ctx, "random", finalists=finalists, repeats=repeats)
    found = sorted((arm["count"] for arm in state.memory[ARMS]), reverse=True)
    assert len(steps) == tries and found == counts + [1] * (len(found) - len(counts))


def test_tries_are_counted_whole():
    """Also where the part of the budget that is spent is no exact number in binary."""
    ctx = noisy(tries=10)
    assert tries_left(ctx) == math.inf
    for ctx.step in range(1, 11):
        ctx.meter.add(trainings=1)
        assert tries_left(ctx) == 10 - ctx.step
    ctx = noisy(tries=None)
    ctx.budget, ctx.step = Budget(inner_gradients=1000), 2
    ctx.meter.add(inner_gradients=300)
    assert tries_left(ctx) == 4  # of 150 each, and 100 left over


def test_a_warm_started_grid_has_no_second_values():
    with pytest.raises(SettingError, match=r"finalists is 2: with warm_start"):
        make_cell("ridge", "grid", set={"method": {"warm_start": True, "finalists": 2}})


@pytest.mark.parametrize("name", BY_TRIES)
def test_a_stopped_search_ends_as_if_undisturbed(tmp_path: Path, name: str) -> None:
    """Bit for bit, wherever it was stopped, also among its finalists."""
    cell = make_cell(
        "step_size", name,
        set={
            "method": {"inner_steps": 3, "initial_first": True, "finalists": 3},
            "budget": {"inner_gradients": 30, "eval_every": 1, "valid_episodes": 2,
                       "test_episodes": 2},
        },
    )  # fmt: skip
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    one = run_cell(cell, whole)
    assert one.status == "done" and one.steps == 10 and one.cost["trainings"] == 10
    stops = 0
    while True:
        left = iter(range(stops % 3 + 2))
        try:
            two = run_cell(cell, pieces, stop=lambda left=left: next(left, None) is None)
            break
        except Stopped:
            stops += 1
        assert stops < 60
    assert stops > 3 and one.outcome() == two.outcome() and one.notes == two.notes
    assert curve_outcome(whole.curve(one)) == curve_outcome(pieces.curve(two))
