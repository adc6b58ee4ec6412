"""The footnote of a table that says where states are chosen by what was fitted to them."""

from __future__ import annotations

from typing import Any

from metabench.analysis.results import Results
from metabench.core.cell import Cell, instances
from metabench.core.registry import methods
from metabench.core.text import listed
from metabench.reports.renderers import Footnote


def selection_footnotes(results: Results) -> list[Footnote]:
    """The columns with a state that is the best on the examples that the outer level learns on, and
    why: a sentence for each reason."""
    columns: dict[str, list[str]] = {}
    for column in results.columns:
        chosen = [
            run.cell
            for run in results.runs
            if run.column == column.id
            and run.record is not None
            and run.cell.budget["select"] == "best_valid"
            and run.cell.budget.get("outer_steps") != 0
            and _learns(run.cell)
        ]
        task = instances(chosen[0])[0] if chosen else None
        if task is not None and task.outer_on_validation:
            why = task.lacks_selection
            columns.setdefault(f": {why}" if why else "", []).append(column.label or column.id)
    return [
        Footnote(
            "State selection sees what the outer level learns on ("
            + ("all columns" if len(at) == len(results.columns) else listed(at))
            + f"){why}."
        )
        for why, at in columns.items()
    ]


def _learns(cell: Cell) -> bool:
    """Whether its method needs something of a task: others learn nothing outside."""
    method: Any = methods.get(cell.method)
    return bool(method(**cell.method_settings).needs)
