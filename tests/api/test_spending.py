"""Hours by method and row, and estimates against what was measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metabench import api
from metabench.api import spending
from metabench.cli.main import app
from metabench.cluster.submission import Group, Member, Submission
from metabench.core.cell import Cell
from metabench.core.text import duration
from metabench.store.record import Record
from metabench.store.store import CLUSTER, Store
from metabench.suites.planning import TO_RUN, Planned


def record(seed: int, method: str, seconds: float, device: str = "cpu") -> Record:
    cell = Cell("ridge", method, "sgd", seed)
    spent = {"seconds": seconds, "evaluation_seconds": 600.0}
    return Record(
        key=cell.key, cell=cell, status="done", cost=spent, environment={"device": device}
    )


def of_a(made: Record) -> bool:
    return made.cell.method == "a"


def test_hours_by_method_and_by_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for made in (
        record(0, "a", 3000.0, "cuda:0"), record(1, "a", 6600.0), record(0, "b", 40000.0),
    ):  # fmt: skip
        store.write(made)
    dear, cheap = spending.by_method(store.records())
    assert (dear.name, cheap.name) == ("b on ridge", "a on ridge")
    assert (cheap.gpu_hours, cheap.cpu_hours, cheap.cells) == (1.0, 2.0, 2)
    open_ = partial(Planned, "row", "c", Cell("ridge", "a", "sgd", 9), "open")
    done = [Planned("row", "c", r.cell, "done", record=r) for r in store.records() if of_a(r)]
    left = [
        open_(estimated_seconds=1800.0),
        open_(published_seconds=7200.0, published_on="a laptop"),
        open_(),
    ]
    (row,) = spending.by_row([*done, *left], {"open"})
    assert (row.gpu_hours, row.cpu_hours) == (1.0, 2.0)
    assert row.left == spending.Left(1, 0.5, 1, 2.0, ("a laptop",), 1) and row.left.cells == 3
    whole = spending.total([dear, cheap, row, row])
    assert whole.cells == 7
    assert whole.left == spending.Left(2, 1.0, 2, 4.0, ("a laptop",), 2)
    assert spending.total([dear]).left.cells == 0


def test_what_is_left_is_what_the_plan_says(tmp_path: Path) -> None:
    planned = api.plan("omniglot", store=tmp_path)
    rows = spending.by_row(planned, TO_RUN)
    published = sum(p.published_seconds or 0.0 for p in planned) / 3600
    assert spending.total(rows).left.published_hours == pytest.approx(published) and published > 1
    typed = CliRunner().invoke(app, ["cost", "omniglot", "--store", str(tmp_path)]).stdout
    (row,) = [line for line in typed.splitlines() if line.startswith("all ")]
    assert row.endswith(f"{len(planned)} cells, published {duration(published * 3600)}")
    assert "on the machine of the published run (" in " ".join(typed.split())
    assert "h on CPUs" in typed and "hours by the clock" in typed


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
