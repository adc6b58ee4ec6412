"""The footnotes of a table that say where states are chosen by what was fitted to them, and why
nobody can be told how far lam was."""

from __future__ import annotations

from metabench.analysis.overfitting import why_none
from metabench.analysis.results import Results
from metabench.core.text import listed
from metabench.reports.tables.renderers import Footnote


def selection_footnotes(results: Results) -> list[Footnote]:
    """The columns with a state that is the best on the examples that the outer level learns on, and
    why: a sentence for each reason."""
    columns: dict[str, list[str]] = {}
    for column in results.columns:
        chosen = [
            run.declaration
            for run in results.runs
            if run.column == column.id
            and run.record is not None
            and run.cell.budget["select"] == "best_valid"
            and run.cell.budget.get("outer_steps") != 0
            and run.declaration.learns
        ]
        if chosen and chosen[0].outer_on_validation:
            why = chosen[0].lacks_selection
            columns.setdefault(f": {why}" if why else "", []).append(column.label or column.id)
    return [
        Footnote(
            "State selection sees what the outer level learns on ("
            + ("all columns" if len(at) == len(results.columns) else listed(at))
            + f"){why}."
        )
        for why, at in columns.items()
    ]


def gap_footnotes(results: Results) -> list[Footnote]:
    """Why no table of the outer level's over-fitting stands below this one, where there is none."""
    why = why_none(results)
    return [Footnote(f"No table of the outer level's over-fitting: {why}.")] if why else []
