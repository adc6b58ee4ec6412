"""Trackers of live curves: what they are told, and that none costs a cell anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metabench import Tracker, api
from metabench.cli.main import app
from metabench.core import registry
from metabench.core.cell import make_cell
from metabench.core.environment import optional_packages
from metabench.core.errors import MetabenchError, SettingError, Stopped, UnknownName
from metabench.run.events import Event, Finished, Measured, Started, Untracked
from metabench.run.runner import run_cell
from metabench.run.tracking import TrackedRun, Tracking, opened
from metabench.store.record import Record
from metabench.store.store import Store

BUDGET = {
    "outer_steps": 6,
    "eval_every": 2,
    "valid_episodes": 1,
    "test_episodes": 1,
}
Told = list[tuple[Any, ...]]


class Memory(Tracker):
    """Keeps what it is told."""

    registered_name = "memory"

    def __init__(self, place: str = "") -> None:
        super().__init__(place)
        self.told: Told = []
        self.runs: list[TrackedRun] = []

    def start(self, run: TrackedRun) -> None:
        self.runs.append(run)
        self.told.append(("start", run.step, list(run.rows)))

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        self.told.append(("log", step, dict(numbers)))

    def finish(self, run: TrackedRun, status: str, numbers: Mapping[str, float]) -> None:
        self.told.append(("finish", status, dict(numbers)))

    def close(self) -> None:
        self.told.append(("close",))

    @property
    def rows(self) -> dict[int, dict[str, float]]:
        """Step to numbers, of all that was logged."""
        return {what[1]: what[2] for what in self.told if what[0] == "log"}


def cell_of(seed: int = 0) -> Any:
    return make_cell("quadratic", "bilevel", seed=seed, set={"budget": BUDGET})


def tracking(store: Store, *trackers: Tracker, listener: Any = lambda _: None) -> Tracking:
    return Tracking(trackers, listener, names={}, group="g", store=store.root, end_seconds=0.5)


def tracked(
    store: Store, memory: Memory, stop: int | None = None, listener: Any = lambda _: None
) -> Record | None:
    """A run of the cell; ``stop``: until that many rows have been measured."""
    rows = [0]

    def count(event: Event) -> None:
        rows[0] += isinstance(event, Measured)
        listener(event)

    with tracking(store, memory, listener=count) as told:
        try:
            return run_cell(
                cell_of(),
                store,
                listener=told,
                checkpoint_seconds=0,
                stop=lambda: stop is not None and rows[0] >= stop,
            )
        except Stopped:
            return None


def rows_of(store: Store, record: Record) -> dict[int, dict[str, float]]:
    """The curve of a record as a tracker would have it."""
    run = TrackedRun("", "", "", "", {}, 0, store.curve(record))
    return dict(run.rows)


def test_a_tracker_gets_the_curve_of_the_record_and_its_final_numbers(tmp_path: Path) -> None:
    store, memory = Store(tmp_path), Memory()
    record = tracked(store, memory)
    assert record is not None
    assert memory.told[0] == ("start", 0, [])
    assert memory.rows == rows_of(store, record) and set(memory.rows) == {0, 2, 4, 6}
    kind, status, final = memory.told[-2]
    assert (kind, status, memory.told[-1]) == ("finish", "done", ("close",))
    assert final["final/test/loss"] == record.metrics["test"]["loss"].mean
    assert final["final/cost/inner_gradients"] == record.cost["inner_gradients"]
    (run,) = memory.runs
    assert run.settings["budget.outer_steps"] == 6 and run.settings["task"] == "quadratic"
    assert run.settings["method.inner_steps"] == record.cell.method_settings["inner_steps"]
    again = Memory()  # what is read and not run is not tracked
    assert tracked(store, again) is not None and again.told == [("close",)]


def test_rows_come_while_the_cell_runs(tmp_path: Path) -> None:
    store, memory, seen = Store(tmp_path), Memory(), []

    def look(event: Event) -> None:
        if isinstance(event, Measured) and event.row["step"] == 4:
            for _ in range(200):
                if 2 in memory.rows:
                    break
                time.sleep(0.01)
            seen.append((set(memory.rows), store.get(cell_of().key)))

    tracked(store, memory, listener=look)
    ((steps, record),) = seen
    assert {0, 2} <= steps and record is None


def test_a_resumed_cell_goes_on_with_its_curve(tmp_path: Path) -> None:
    store, first, second = Store(tmp_path / "a"), Memory(), Memory()
    assert tracked(store, first, stop=2) is None
    assert first.told[-2] == ("finish", "interrupted", {})
    record = tracked(store, second)
    assert record is not None
    kind, step, before = second.told[0]
    assert (kind, step) == ("start", 2) and dict(before) == first.rows
    assert first.rows | second.rows == rows_of(store, record)
    assert first.rows.keys().isdisjoint(second.rows)
    assert first.runs[0].id == second.runs[0].id
    elsewhere = Memory()
    tracked(Store(tmp_path / "b"), elsewhere)
    assert elsewhere.runs[0].id != first.runs[0].id
    whole = rows_of(Store(tmp_path / "b"), Store(tmp_path / "b").records()[0])

    def without_clock(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
        return {s: {k: v for k, v in r.items() if k != "cost/seconds"} for s, r in rows.items()}

    assert without_clock(first.rows | second.rows) == without_clock(whole)


def test_a_cell_that_begins_anew_after_a_record_is_another_run(tmp_path: Path) -> None:
    store, first, second = Store(tmp_path), Memory(), Memory()

    def run(memory: Memory, limit: float | None) -> Record:
        with tracking(store, memory) as told:
            return run_cell(cell_of(), store, listener=told, time_limit=limit)

    assert run(first, 0.0).status == "timeout"  # its checkpoint stays: the same run goes on
    assert [t[:2] for t in first.told] == [("start", 0), ("finish", "timeout"), ("close",)]
    assert run(second, None).status == "done"
    assert first.runs[0].id == second.runs[0].id
    event = Started(cell_of(), 0, {}, trial=2)
    third = Memory()
    with tracking(store, third) as told:
        told(event)
    assert third.runs[0].id != first.runs[0].id
    assert third.told[-2] == ("finish", "interrupted", {})  # nobody left it open


class Failing(Memory):
    """Fails at one of its calls."""

    registered_name = "failing"

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        super().log(run, step, numbers)
        raise SystemExit("no such\nserver")


class Hanging(Memory):
    """Never comes back from a call."""

    registered_name = "hanging"
    gate = threading.Event()

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        self.gate.wait(20)


def test_a_tracker_that_fails_or_hangs_is_told_once_and_costs_nothing(tmp_path: Path) -> None:
    store, memory, failing, hanging = Store(tmp_path), Memory(), Failing(), Hanging()
    events: list[Event] = []
    begun = time.monotonic()
    with tracking(store, failing, hanging, memory, listener=events.append) as told:
        record = run_cell(cell_of(), store, listener=told)
    assert time.monotonic() - begun < 15
    Hanging.gate.set()
    assert record.status == "done" and memory.rows == rows_of(store, record)
    assert [e for e in events if isinstance(e, Untracked)] == [
        Untracked("failing", "SystemExit: no such server"),
        Untracked("hanging", "it has not taken what was logged within 0.5 seconds"),
    ]
    assert len(failing.told) == 2  # and it is left alone from then on
    assert any(isinstance(e, Finished) for e in events)


PLUGIN = """
from metabench import Tracker, tracker

@tracker("paper")
class Paper(Tracker):
    def start(self, run): self.write("start", run.name, run.group)
    def log(self, run, step, numbers): self.write("log", run.name, step, sorted(numbers)[0])
    def finish(self, run, status, numbers): self.write("finish", run.name, status)
    def write(self, *words):
        with open(self.place, "a") as file:
            print(*words, sep="|", file=file)
"""


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_strangers_tracker_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """A package declares it in ``metabench.trackers``; cells in worker processes are told, too."""
    monkeypatch.setattr(registry.trackers, "_classes", dict(registry.trackers._classes))
    (tmp_path / f"paper_tracker_{jobs}.py").write_text(PLUGIN)
    info = tmp_path / "paper-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paper\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[metabench.trackers]\npaper = paper_tracker_{jobs}:Paper\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "told.txt"
    suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel"])
    summary = api.run(
        suite,
        budget="smoke",
        seeds=[0, 1],
        store=tmp_path / "store",
        jobs=jobs,
        log=[f"paper={out}"],
    )
    assert summary.count("done") == 2
    lines = [line.split("|") for line in out.read_text().splitlines()]
    for seed in (0, 1):
        mine = [line for line in lines if line[1].startswith(f"bilevel/quadratic seed {seed}")]
        assert [line[0] for line in mine] == ["start", "log", "log", "finish"]
        assert mine[0][2] == "quadratic-x-bilevel smoke" and mine[-1][2] == "done"
        assert [line[2] for line in mine[1:3]] == ["0", "5"]


def test_what_cannot_be_used_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownName, match="near: tensorboard"):
        opened(["tensorbord"])
    with pytest.raises(SettingError, match="'tensorboard' is asked for twice"):
        opened(["tensorboard=a", "tensorboard=b"])
    monkeypatch.setattr(
        optional_packages, "why_not", lambda name: f"{name} is not installed", raising=True
    )
    said = r"tracker 'wandb': wandb is not installed; repair: pip install -e \"\.\[wandb\]\""
    with pytest.raises(MetabenchError, match=said):
        opened(["wandb"])
    typed = ["run", "--task", "quadratic", "--method", "bilevel", "--budget", "smoke"]
    typed += ["--store", str(tmp_path / "store")]
    for log, code in (("wandb", 1), ("tensorbord", 2)):
        done = CliRunner().invoke(app, [*typed, "--log", log])
        assert done.exit_code == code and f"tracker '{log}'" in done.output
    assert not (tmp_path / "store").exists()
    typed = ["reproduce", "quickstart", "--cluster", "mysite", "--log", "tensorboard"]
    assert "jobs of a cluster are not watched" in CliRunner().invoke(app, typed).output
