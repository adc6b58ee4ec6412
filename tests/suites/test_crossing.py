from __future__ import annotations

import pytest

from metabench.core import registry
from metabench.core.capabilities import why_not
from metabench.core.cell import instances
from metabench.core.registry import Registry
from metabench.suites import loading
from metabench.suites.suite import SuiteCell

CROSSING = loading.load("crossing")


def built_in(known: Registry) -> set[str]:
    return {entry.name for entry in known.entries() if entry.origin == "built-in"}


def test_every_built_in_task_has_one_column_and_every_method_one_row() -> None:
    for known, named in (
        (registry.tasks, [column.task for column in CROSSING.columns]),
        (registry.methods, [row.method for row in CROSSING.rows]),
    ):
        assert len(named) == len(set(named))
        missing = built_in(known) - set(named)
        assert not missing, f"results/suites/crossing.toml has no {known.kind} {sorted(missing)}"
        assert set(named) <= built_in(known)


def test_every_method_applies_somewhere_and_every_task_has_a_learner() -> None:
    """A hole is one of a pair: never a whole row or a whole column."""
    applies = [c for c in CROSSING.cells("smoke") if why_not(*instances(c.cell)[:2]) is None]
    assert {c.row for c in applies} == {row.id for row in CROSSING.rows}
    for column in CROSSING.columns:
        assert {c.row for c in applies if c.column == column.id} - {"fixed"}


@pytest.mark.parametrize("item", CROSSING.cells("smoke"), ids=lambda c: f"{c.row}-{c.column}")
def test_every_hole_has_a_short_reason_that_says_nothing_twice(item: SuiteCell) -> None:
    reason = why_not(*instances(item.cell)[:2])
    if reason is None:
        return
    parts = reason.split("; ")
    assert len(parts) == len(set(parts))
    assert len(reason) <= 300
