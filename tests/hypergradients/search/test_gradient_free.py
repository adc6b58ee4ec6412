"""What searches share, and TPE's own: points, rounds, answers by means, segments, history."""

import math

import pytest
import torch
from oracles import F64, context

from metabench.contract.declared import InnerRule
from metabench.contract.method import State
from metabench.contract.problem import Hyper
from metabench.core.environment import optional_packages
from metabench.core.registry import methods, tasks
from metabench.hypergradients.search.gradient_free import (
    ARMS,
    Search,
    counted,
    kinds,
    place,
    train,
)
from metabench.tasks.step_size import StepSize

HYPERS = (
    Hyper("rate", (2,), 1e-4, 1.0, log=True),
    Hyper("kind", (), choices=("a", "b", "c")),
    Hyper("shift", (1,), -2.0, 2.0),
)
LIKE = {k: torch.zeros(n, dtype=F64) for k, n in (("rate", 2), ("kind", ()), ("shift", 1))}
LACK = optional_packages.why_not("optuna")
needs_optuna = pytest.mark.skipif(
    bool(LACK), reason=f"{LACK}: {' && '.join(optional_packages.recipe('optuna'))}"
)


def test_a_point_by_bounds_scales_and_categories():
    lam = place([0.0, 0.5, 0.99, 0.75], HYPERS, LIKE | {"other": torch.ones(3)})
    torch.testing.assert_close(lam["rate"], torch.tensor([1e-4, 1e-2], dtype=F64))
    assert float(lam["kind"]) == 2.0 and float(lam["shift"]) == 1.0
    assert torch.equal(lam["other"], torch.ones(3))
    assert kinds(HYPERS, LIKE) == [0, 0, 3, 0]
    assert [float(place([0, 0, u, 0], HYPERS, LIKE)["kind"]) for u in (0, 0.34, 1)] == [0, 1, 2]


def test_a_missing_package_says_how_to_install_it():
    assert methods.get("optuna_tpe").packages == ("optuna",)
    assert any("hpo" in line or "optuna" in line for line in optional_packages.recipe("optuna"))


@pytest.mark.parametrize("wild", [1e120, math.inf, math.nan])
def test_a_training_that_ran_away_is_never_the_best(wild):
    """Also where its loss is a number still: evaluation would end the run on it."""
    ctx = context("quadratic")
    ctx.problem.outer_loss = lambda lam, theta, batch: theta["w"].sum() * 0 + wild
    method = methods.get("random")(inner_steps=2)
    first = method.init(ctx)
    state, log = method.step(ctx, first)
    assert state.lam is first.lam and state.memory["best"] == math.inf and log == {}
    assert ctx.meter.counts.trainings == 1


CONDITIONAL = (
    Hyper("solver", (), choices=("sgd", "momentum", "adam")),
    Hyper("momentum", (2,), 0.0, 1.0, only_if=("solver", ("momentum", "adam"))),
    Hyper("nesterov", (), choices=(False, True), only_if=("solver", ("momentum",))),
    Hyper("cap", (), 0.0, 4.0, only_if=("nesterov", (True,))),
)
FIRST = {h.name: torch.full(h.shape, 0.25, dtype=F64) for h in CONDITIONAL[1:]}
FIRST = {"solver": torch.zeros((), dtype=F64), **FIRST, "nesterov": torch.zeros((), dtype=F64)}


@pytest.mark.parametrize(
    ("solver", "nesterov", "on"), [(0, 1, "0"), (1, 0, "012"), (1, 1, "0123"), (2, 1, "01")]
)
def test_a_part_counts_only_under_its_choice(solver, nesterov, on):
    """What does not count has its first value, and a condition holds only where its part counts."""
    point = [(solver + 0.5) / 3, 0.9, 0.8, (nesterov + 0.5) / 2, 0.75]
    lam = place(point, CONDITIONAL, FIRST)
    active = [str(i) in on for i in range(4)]
    assert counted(point, CONDITIONAL, FIRST) == [active[i] for i in (0, 1, 1, 2, 3)]
    wanted = {"solver": solver, "momentum": [0.9, 0.8], "nesterov": nesterov, "cap": 3.0}
    for counts, (name, value) in zip(active, wanted.items(), strict=True):
        expected = torch.tensor(value, dtype=F64) if counts else FIRST[name]
        torch.testing.assert_close(lam[name], expected, check_dtype=False)


def test_a_condition_on_nothing_is_refused():
    wrong = (Hyper("a", (), 0.0, 1.0, only_if=("b", ("x",))), Hyper("b", (), choices=("y", "z")))
    like = {k: torch.zeros((), dtype=F64) for k in "ab"}
    with pytest.raises(ValueError, match=r"'a' counts only if 'b' is one of \('x',\): no such"):
        place([0.5, 0.5], wrong, like)


class Arms(Search):
    """Arm ``ctx.step`` of a categorical lam, round and round."""

    def ask(self, ctx, state, kinds):
        return [(ctx.step % kinds[0] + 0.5) / kinds[0]]


def pulled(losses, n, steps):
    """After so many pulls of n arms, each with the next of ``losses``."""
    ctx = context("quadratic")
    problem, given = ctx.problem, iter(losses)
    problem.hypers = (Hyper("arm", (), choices=tuple(range(n))),)
    problem.init_outer = lambda: {"arm": torch.zeros((), dtype=F64)}
    problem.project = dict
    problem.outer_loss = lambda lam, theta, batch: torch.tensor(next(given), dtype=F64)
    method = Arms(inner_steps=0)
    state, logs = method.init(ctx), []
    for ctx.step in range(steps):
        state, log = method.step(ctx, state)
        logs.append(log)
    return state, logs


def test_the_answer_is_by_means_and_not_by_luck():
    """Arm 0 once has the least loss of all; arm 1 is best on average."""
    losses = [0.0, 0.3, 0.5, 0.9, 0.3, 0.5, 0.9, 0.2, 0.5]
    state, logs = pulled(losses, 3, 9)
    assert float(state.lam["arm"]) == 1
    assert state.memory["best"] == pytest.approx(0.8 / 3)
    assert [log["cumulative_loss"] for log in logs] == pytest.approx(
        [sum(losses[: i + 1]) for i in range(9)]
    )
    first, _ = pulled(losses, 3, 2)
    assert float(first.lam["arm"]) == 0, "tried once each, the least loss is the least mean"


def test_pulls_are_accounted_for_arm_by_arm():
    """The pulls of all arms are the steps, and the sums of losses theirs."""
    gen = torch.Generator().manual_seed(0)
    losses = torch.rand(40, generator=gen, dtype=F64).tolist()
    state, logs = pulled(losses, 7, 40)
    arms = state.memory[ARMS]
    assert sum(arm["count"] for arm in arms) == 40
    assert [arm["count"] for arm in arms] == [6] * 5 + [5] * 2
    for i, arm in enumerate(arms):
        assert arm["total"] == pytest.approx(sum(losses[i::7])) and float(arm["lam"]["arm"]) == i
    assert sum(arm["total"] for arm in arms) == pytest.approx(logs[-1]["cumulative_loss"])
    means = [sum(losses[i::7]) / len(losses[i::7]) for i in range(7)]
    assert float(state.lam["arm"]) == means.index(min(means))


def test_an_arm_that_runs_away_is_never_the_answer():
    state, logs = pulled([math.inf, 0.5, 0.1, 0.6], 2, 4)
    assert float(state.lam["arm"]) == 1 and state.memory["best"] == pytest.approx(0.55)
    assert "cumulative_loss" not in logs[-1]


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("cuts", [(), (3,), (1, 4, 6)])
def test_a_training_in_segments_is_the_whole_one(solver, cuts):
    """Bit for bit, whatever the solver remembers; each step is charged once."""
    ctx = context("two_minima", solver)
    lam, episodes = ctx.problem.init_outer(), ctx.training_episodes()
    whole, end = train(ctx, lam, episodes, steps=9, lr=0.05)
    before = ctx.meter.counts.as_dict()
    paused, done = None, 0
    for steps in (*cuts, 9):
        loss, paused = train(ctx, lam, episodes, steps=steps, lr=0.05, done=done, paused=paused)
        done = steps
    assert loss == whole
    torch.testing.assert_close(paused, end, rtol=0, atol=0)
    after = ctx.meter.counts.as_dict()
    assert after["inner_gradients"] - before["inner_gradients"] == 9
    assert after["trainings"] - before["trainings"] == 1


def test_lam_may_set_the_solver_and_its_constants():
    """Two steps of momentum on h w^2 / 2, by hand, in place of the cell's solver and step size."""
    ctx = context(StepSize(spread=0.0, curvature=2.0))
    rule = InnerRule(0.1, "momentum", {"momentum": 0.5})
    ctx.problem.inner_rule = lambda lam: rule
    _, end = train(ctx, ctx.problem.init_outer(), ctx.training_episodes(), steps=2, lr=7.0)
    w1, v1 = 1 - 0.1 * 2.0, 2.0
    v2 = 0.5 * v1 + 2.0 * w1
    assert float(end[0]["theta"]["w"]) == pytest.approx(w1 - 0.1 * v2, abs=1e-15)
    ctx.problem.inner_rule = lambda lam: InnerRule()
    assert ctx.inner_rule(ctx.problem.init_outer(), 7.0) == (ctx.solver, 7.0)
    ctx.problem.inner_rule = lambda lam: None
    assert ctx.inner_rule(ctx.problem.init_outer(), 7.0) == (ctx.solver, 7.0)


def searched(steps, ctx=None, state=None, **set_):
    ctx = ctx or context("quadratic")
    method = methods.get("optuna_tpe")(inner_steps=60, inner_lr=0.2, **set_)
    state = state or method.init(ctx)
    begun = ctx.step
    for ctx.step in range(begun, steps):
        state, _ = method.step(ctx, state)
    return ctx, state


@needs_optuna
@pytest.mark.parametrize("multivariate", [False, True])
def test_tpe_finds_the_best_lam_and_is_charged(multivariate):
    ctx, state = searched(40, multivariate=multivariate)
    assert float(state.lam["lam"]) == pytest.approx(0.7 / 1.5, abs=0.1)
    assert ctx.meter.counts.trainings == ctx.meter.counts.function_evaluations == 40
    assert ctx.meter.counts.inner_gradients == 40 * 60
    tried = state.memory["tried"]
    assert len(tried) == 40 and state.memory["best"] == min(loss for *_, loss in tried)
    late = [abs(u - (0.7 / 1.5 + 4) / 8) for u, _ in tried[20:]]
    assert sum(x < 0.1 for x in late) >= 8  # a uniform sequence would have four


@needs_optuna
def test_tpe_goes_on_from_its_history_alone():
    _, whole = searched(15, startup=4)
    ctx, half = searched(9, startup=4)
    again = State(half.lam, half.theta, {**half.memory})
    ctx.step = 9
    _, rest = searched(15, ctx, again, startup=4)
    assert rest.memory == whole.memory and torch.equal(rest.lam["lam"], whole.lam["lam"])
    assert len(half.memory["tried"]) == 9  # what came before is not changed


@needs_optuna
def test_tpe_follows_the_seed():
    one, same = searched(6)[1], searched(6)[1]
    ctx = context("quadratic")
    ctx.seeds = type(ctx.seeds).of(1)
    other = searched(6, ctx)[1]
    assert one.memory == same.memory and one.memory["tried"] != other.memory["tried"]


@needs_optuna
def test_tpe_searches_every_kind_of_scalar_and_survives_what_diverges():
    ctx = context("ridge")
    problem, seen = ctx.problem, []
    problem.hypers = HYPERS
    problem.init_outer = lambda: dict(LIKE)
    problem.project = dict

    def outer_loss(lam, theta, batch):
        seen.append(lam)
        far = (lam["rate"].log10() + 2).abs().sum() + (lam["kind"] - 1).abs() + lam["shift"].abs()
        return (far if len(seen) % 5 else far * math.nan).sum()

    problem.inner_loss = lambda lam, theta, batch: theta["w"].square().sum()
    problem.outer_loss = outer_loss
    method = methods.get("optuna_tpe")(inner_steps=0, startup=8)
    state = method.init(ctx)
    for ctx.step in range(60):
        before = state
        state, log = method.step(ctx, state)
        if (ctx.step + 1) % 5 == 0:
            assert log == {} and state.lam is before.lam
            assert state.memory["tried"][-1][-1] == math.inf
    assert {int(lam["kind"]) for lam in seen[:20]} == {0, 1, 2}
    assert sum(int(lam["kind"]) == 1 for lam in seen[30:]) > 15
    assert int(state.lam["kind"]) == 1 and state.memory["best"] < 1.5
    assert all(1e-4 <= float(x) <= 1.0 for lam in seen for x in lam["rate"])


@needs_optuna
@pytest.mark.parametrize("task", ["quadratic", "ridge", "two_minima"])
def test_tpe_beats_the_first_lam_on_tasks_with_a_search_space(task):
    made = tasks.get(task)(**({"features": 3} if task == "ridge" else {}))
    ctx = context(made)
    method = methods.get("optuna_tpe")(inner_steps=20, inner_lr=0.05, startup=5)
    state = method.init(ctx)
    for ctx.step in range(12):
        state, _ = method.step(ctx, state)
    losses = [loss for *_, loss in state.memory["tried"]]
    assert state.memory["best"] == min(losses) < max(losses)
