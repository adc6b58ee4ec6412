"""What became of the cells of a stage, beside runs in this process without any disturbance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metabench.cluster import submission as folder
from metabench.core.cell import Cell
from metabench.store.cell_folder import CHECKPOINT, LEASE
from metabench.store.record import curve_outcome
from metabench.store.store import Store

from .stage import FOLDER, PAUSE, SLOW, Stage


@dataclass(frozen=True)
class Verdict:
    """What became of the cells of a stage."""

    cells: int
    lost: int
    doubled: int
    identical: int
    left_over: list[str]
    attempts: int

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.identical == self.cells and not (self.lost or self.doubled or self.left_over)


def judge(stage: Stage) -> Verdict:
    """Compare every record with the undisturbed one; look for what was left behind."""
    cells = stage.cells()
    lost, identical = compared(cells, stage.store, stage.reference)
    left = left_over(stage.store)
    histories = [
        folder.attempts(s.folder, c.key) for c in cells for s in folder.submissions(stage.store)
    ]
    done: dict[str, int] = {}
    for cell in cells:
        for s in folder.submissions(stage.store):
            for a in folder.attempts(s.folder, cell.key):
                real = a.end == "recorded" and a.what == "done"
                done[cell.key] = done.get(cell.key, 0) + real
    doubled = sum(n > 1 for n in done.values())
    return Verdict(len(cells), lost, doubled, identical, left, sum(map(len, histories)))


def compared(cells: Sequence[Cell], store: Store, reference: Store) -> tuple[int, int]:
    """How many cells have no finished record, and how many have that of an undisturbed run."""
    identical = lost = 0
    for cell in cells:
        record = store.get(cell.key)
        if record is None or record.status != "done":
            lost += 1
            continue
        wanted = undisturbed(cell, reference)
        same = record.outcome() == wanted.outcome() and curve_outcome(
            store.curve(record)
        ) == curve_outcome(reference.curve(wanted))
        identical += same
    return lost, identical


def left_over(store: Store) -> list[str]:
    """What is in a store that a finished run does not leave there."""
    left = [str(b) for b in store.problems()]
    for pattern in (f"*/*/{LEASE}", f"*/*/{CHECKPOINT}", "*/*/.*.tmp"):
        left += [str(f.relative_to(store.root)) for f in store.root.glob(pattern)]
    return left


def undisturbed(cell: Cell, reference: Store) -> Any:
    """The record of a cell, run here without any disturbance."""
    from metabench.run.runner import run_cell

    record = reference.get(cell.key)
    if record is not None and record.status == "done":
        return record
    before = {name: os.environ.pop(name) for name in (PAUSE, FOLDER, SLOW) if name in os.environ}
    try:
        return run_cell(cell, reference)
    finally:
        os.environ.update(before)
