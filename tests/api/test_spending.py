"""Hours by method and row, and estimates against what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from metabench.api import spending
from metabench.cluster.submission import Group, Member, Submission
from metabench.core.cell import Cell
from metabench.store.record import Record
from metabench.store.store import CLUSTER, Store
from metabench.suites.planning import Planned


def record(seed: int, method: str, seconds: float, device: str = "cpu") -> Record:
    cell = Cell("ridge", method, "sgd", seed)
    spent = {"seconds": seconds, "evaluation_seconds": 600.0}
    return Record(
        key=cell.key, cell=cell, status="done", cost=spent, environment={"device": device}
    )


def test_hours_by_method_and_by_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for made in (
        record(0, "a", 3000.0, "cuda:0"), record(1, "a", 6600.0), record(0, "b", 40000.0),
    ):  # fmt: skip
        store.write(made)
    dear, cheap = spending.by_method(store.records())
    assert (dear.name, cheap.name) == ("b on ridge", "a on ridge")
    assert (cheap.gpu_hours, cheap.cpu_hours, cheap.cells) == (1.0, 2.0, 2)
    left = Planned("row", "c", Cell("ridge", "a", "sgd", 9), "open", estimated_seconds=1800.0)
    done = [Planned("row", "c", record(i, "a", 0.0).cell, "done") for i in range(2)]
    (row,) = spending.by_row([*done, left], store, {"open"})
    assert (row.gpu_hours, row.cpu_hours, row.left_hours, row.left_cells) == (1.0, 2.0, 0.5, 1)
    whole = spending.total([dear, cheap, row])
    assert whole.cells == 5 and whole.left_hours == 0.5
    assert spending.total([dear]).left_hours is None


def test_every_rank_of_a_cell_costs() -> None:
    made = record(0, "a", 3000.0, "cuda:0")
    made.environment["ranks"] = 4
    (cost,) = spending.by_method([made])
    assert (cost.gpu_hours, cost.cpu_hours) == (4.0, 0.0)


def test_past_estimates_are_held_against_what_was_measured(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    folder = store.root / CLUSTER / "one"
    folder.mkdir(parents=True)
    Submission(folder, "suite", "paper", {"name": "site"}, "", "", 1.0, 3).write()
    members = []
    for seed, estimated in enumerate((2000.0, 4000.0, None)):
        made = record(seed, "a", 1400.0)
        store.write(made)
        members.append(Member("r", "c", made.cell, estimated))
    Group(members, 60, 8.0, "", "").write(folder / "group-0.json")
    (found,) = spending.estimates(store)
    assert (found.cells, found.low, found.high) == (2, 0.5, 1.0)
    assert found.median == pytest.approx(0.75)
