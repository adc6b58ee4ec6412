"""Launches that cannot start a worker: one error, and no cell is blamed for it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metabench.core.cell import make_cell
from metabench.core.errors import MetabenchError, SettingError
from metabench.core.registry import load_plugin
from metabench.run.workers import pool as module
from metabench.run.workers.local_launcher import launch
from metabench.run.workers.pool import STARTS, Died, NotStarted, Pool
from metabench.run.workers.worker import WorkerOptions
from metabench.store.store import Store

CELLS = [
    make_cell("quadratic", "bilevel", seed=s, set={"budget": {"outer_steps": 1}}) for s in (0, 1)
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_a_script_from_standard_input_is_told_to_become_a_file_and_no_cell_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(NotStarted, match=r"<stdin> is no file: save it in one, or .*jobs=1"):
        launch(CELLS, store, jobs=2)
    assert store.records() == []


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("given", ["abc", "0", "-1", "1.5", "\N{ARABIC-INDIC DIGIT TWO}"])
def test_threads_that_are_no_number_are_an_error_of_the_launch(
    store: Store, monkeypatch: pytest.MonkeyPatch, jobs: int, given: str
) -> None:
    monkeypatch.setenv("METABENCH_THREADS", given)
    with pytest.raises(SettingError, match=f"^METABENCH_THREADS cannot be '{given}': give a whole"):
        launch(CELLS, store, jobs=jobs)
    assert store.records() == []


def test_a_plugin_whose_path_workers_could_not_be_told_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None
) -> None:
    path = tmp_path / "a:b" / "mine.py"
    path.parent.mkdir()
    path.write_text('"""Mine."""\n')
    with pytest.raises(MetabenchError, match=r"a:b/mine\.py': its path has ':' in it, .*rename it"):
        load_plugin(path)
    assert "METABENCH_PLUGINS" not in os.environ


def test_what_fails_in_a_worker_before_its_first_cell_is_one_error_without_a_record(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_PLUGINS", str(tmp_path / "gone.py"))
    with pytest.raises(NotStarted, match=r"^worker processes cannot start: no plug-in file .*gone"):
        launch(CELLS, store, jobs=2)
    assert store.records() == [] and not list(store.root.glob("*/*/*"))


def test_workers_that_are_killed_as_they_start_are_tried_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "death", lambda _: "its process died (signal 9, SIGKILL)")
    pool = Pool(1, lambda _: WorkerOptions(""))
    dead: Any = SimpleNamespace(ready=False, process=SimpleNamespace(exitcode=-signal.SIGKILL))
    for _ in range(STARTS - 1):
        died = pool._died(dead, CELLS[0])
        assert isinstance(died, Died) and not died.began
    with pytest.raises(NotStarted, match="SIGKILL") as told:
        pool._died(dead, CELLS[0])
    assert told.value.cell == CELLS[0]
    # A worker that had started died over its cell.
    dead.ready = True
    assert pool._died(dead, CELLS[0]).began
    # A script without its guard, for which waiting does not help.
    guard: Any = SimpleNamespace(ready=False, process=SimpleNamespace(exitcode=1))
    with pytest.raises(NotStarted, match='needs if __name__ == "__main__":'):
        pool._died(guard, CELLS[0])
