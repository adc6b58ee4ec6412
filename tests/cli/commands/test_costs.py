"""Costs and merges."""

from __future__ import annotations

import re
from pathlib import Path

from metabench.core.cell import Cell
from metabench.store.record import Record
from metabench.store.store import Store


def test_costs_and_merges_are_printed(type_, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cell = Cell("ridge", "bilevel", "sgd", 0)
    spent = {"seconds": 3000.0, "evaluation_seconds": 600.0}
    on_gpu = {"device": "cuda:0"}
    made = Record(key=cell.key, cell=cell, status="done", cost=spent, environment=on_gpu)
    Store(tmp_path / "runs").write(made)
    done = type_("cost")
    assert done.exit_code == 0 and re.search(r"bilevel on ridge +1 +1 +0 +1", done.output)
    assert type_("cost", "quickstart", "--budget", "smoke").exit_code == 0
    done = type_("store", "merge", str(tmp_path / "runs"), "--into", str(tmp_path / "other"))
    assert done.exit_code == 0 and done.output.strip() == "1 copied"
    done = type_("store", "merge", str(tmp_path / "none"), "--into", str(tmp_path / "other"))
    assert done.exit_code == 2 and "there is no store" in done.output
