from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, State
from metabench.core import registry
from metabench.core.cell import make_cell
from metabench.run import engines, loop
from metabench.run.costs import warm_up
from metabench.run.evaluation import Stopwatch
from metabench.run.runner import run_cell
from metabench.store.record import curve_outcome
from metabench.store.store import Store

BUDGET = {"outer_steps": 2, "eval_every": 1, "valid_episodes": 2, "test_episodes": 2}


@dataclass(frozen=True)
class ColdStart(GradientMethod):
    """Takes its time in the first init and the first step of a process."""

    do: str = "nothing"
    needs: ClassVar[frozenset[str]] = frozenset()
    seen: ClassVar[list[str]] = []

    def once(self, what: str) -> None:
        """Sleep, the first time."""
        if what not in self.seen:
            self.seen.append(what)
            time.sleep(0.3)

    def init(self, ctx: Context) -> State:
        self.once("init")
        return State(ctx.problem.init_outer(), None, {})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        self.once("step")
        if self.do == "fail":
            self.seen.append("failure")
            raise RuntimeError(f"a bug, {self.seen.count('failure')}")
        if self.do == "long" and ctx.meter.counts.inner_gradients == 0:
            for _ in range(100):
                ctx.meter.add(inner_gradients=1)
                time.sleep(0.01)
        ctx.meter.add(inner_gradients=1)
        ctx.notes.setdefault("steps", []).append(ctx.step)
        return State({k: v + 1 for k, v in state.lam.items()}, None, {}), {}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry.methods.register("cold_start")(ColdStart)
    ColdStart.seen.clear()
    yield
    del registry.methods._classes["cold_start"]


def test_what_a_process_does_once_is_no_training_time() -> None:
    record = run_cell(make_cell("ridge", "cold_start", set={"budget": BUDGET}))
    assert ColdStart.seen == ["init", "step"]
    assert 0 < record.cost["seconds"] < 0.3 <= record.environment["warm_up_seconds"]
    assert record.cost["inner_gradients"] == 2 and record.notes["steps"] == [0, 1]


def test_a_long_first_step_is_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "MOST_SECONDS", 0.1)
    ColdStart.seen += ["init", "step"]
    settings = {"method": {"do": "long"}, "budget": BUDGET}
    record = run_cell(make_cell("ridge", "cold_start", set=settings))
    assert record.environment["warm_up_seconds"] < 0.7 < 1.0 <= record.cost["seconds"]
    assert record.cost["inner_gradients"] == 102


def test_a_failure_of_the_warm_up_is_that_of_the_first_step() -> None:
    settings = {"method": {"do": "fail"}, "budget": BUDGET}
    record = run_cell(make_cell("ridge", "cold_start", set=settings))
    assert (record.status, record.reason, record.steps) == ("failed", "RuntimeError: a bug, 2", 0)


def test_a_capture_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "check_capturable", lambda *_: None)
    settings = {"method": {"do": "fail"}, "budget": BUDGET}
    record = run_cell(make_cell("ridge", "cold_start", set=settings), engine="graph")
    assert (record.status, record.reason, record.steps) == ("failed", "RuntimeError: a bug, 1", 0)


def test_a_long_step_is_given_up_under_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "check_capturable", lambda *_: None)
    monkeypatch.setattr(warm_up, "MOST_SECONDS", 0.0)
    cell = make_cell("ridge", "cold_start", set={"budget": BUDGET})
    record = run_cell(cell, engine="graph")
    assert record.status == "done" and record.cost["inner_gradients"] == 2


def test_a_device_that_fails_does_not_hide_why(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))

    def broken() -> float:
        raise RuntimeError("the device has failed before")

    with pytest.raises(ValueError, match="why"), watch:
        monkeypatch.setattr(watch, "_now", broken)
        raise ValueError("why")
    assert watch.seconds > 0
    watch._since = 0.0
    with pytest.raises(RuntimeError, match="failed before"):
        watch.__exit__(None)


def test_nothing_is_warmed_up_where_no_step_is_to_come() -> None:
    budget = {**BUDGET, "outer_steps": 0}
    record = run_cell(make_cell("ridge", "cold_start", set={"budget": budget}))
    assert ColdStart.seen == ["init"] and "warm_up_seconds" not in record.environment


PAIRS = [
    ("ridge", "bilevel", None),
    ("glyphs", "reptile", None),
    ("ridge", "sgld", None),
    ("quadratic", "pbgd", None),
    ("quadratic", "random", None),
    ("quadratic", "optuna_tpe", None),
    ("tagi_regression", "random", None),
    ("spectral_risk", "fixed", "prospect"),
    ("dirac_gan", "ift", "complex_momentum"),
    ("control", "fixed", None),
    ("prisoners", "ridge_rider", None),
]


@pytest.mark.parametrize(("task", "method", "solver"), PAIRS)
def test_a_warm_up_moves_no_bit_of_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, method: str, solver: str | None
) -> None:
    cell = make_cell(task, method, solver=solver, set={"budget": BUDGET})
    warm, cold = Store(tmp_path / "warm"), Store(tmp_path / "cold")
    one = run_cell(cell, warm)
    assert one.status == "done" and "warm_up_seconds" in one.environment

    def nothing(*_: Any) -> tuple[float, None]:
        return 0.0, None

    monkeypatch.setattr(loop, "warm_up", nothing)
    two = run_cell(cell, cold)
    assert one.outcome() == two.outcome()
    assert curve_outcome(warm.curve(one)) == curve_outcome(cold.curve(two))
    assert (one.lam, one.notes) == (two.lam, two.notes)
