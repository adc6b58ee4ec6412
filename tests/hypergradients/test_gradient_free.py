"""What random search and TPE share, and TPE's own: points, charges, history."""

import math

import pytest
import torch
from oracles import F64, context

from metabench.contract.method import State
from metabench.contract.problem import Hyper
from metabench.core import optional_packages
from metabench.core.registry import methods, tasks
from metabench.hypergradients.gradient_free import kinds, place

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
