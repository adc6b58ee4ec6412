"""The footnotes of a table that say where states are chosen by what was fitted to them, and why
nobody can be told how far lam was."""

from __future__ import annotations

from metabench.analysis.overfitting import why_none
from metabench.analysis.results import Results
from metabench.core.text import listed
from metabench.reports.footnotes.places import places_in_words
from metabench.reports.tables.renderers import Footnote


def selection_footnotes(results: Results) -> list[Footnote]:
    """Where a state is the best on the examples that the outer level learns on, and why: a sentence
    for each reason. Columns are named where all their chosen states are meant, rows else."""
    judged: dict[str, set[str]] = {}
    seen: dict[str, dict[str, set[str]]] = {}
    order = {column.id: n for n, column in enumerate(results.columns)}
    for run in sorted(results.runs, key=lambda run: order[run.column]):
        chosen = (
            run.record is not None
            and run.cell.budget["select"] == "best_valid"
            and run.cell.budget.get("outer_steps") != 0
            and run.declaration.learns
        )
        if not chosen:
            continue
        judged.setdefault(run.column, set()).add(run.row)
        if run.declaration.outer_on_validation:
            why = run.declaration.lacks_selection
            columns = seen.setdefault(f": {why}" if why else "", {})
            columns.setdefault(run.column, set()).add(run.row)
    out = []
    for why, columns in seen.items():
        whole = [c for c in results.columns if columns.get(c.id, set()) == judged.get(c.id)]
        said = [c.label or c.id for c in whole]
        told = ["all columns" if len(said) == len(results.columns) else listed(said)] * bool(said)
        others = columns.keys() - {c.id for c in whole}
        places = {(row, column): ("",) for column in others for row in columns[column]}
        told += [words for words, _ in places_in_words(results, places)]
        out += [
            Footnote(f"State selection sees what the outer level learns on ({at}){why}.")
            for at in told
        ]
    return out


def gap_footnotes(results: Results) -> list[Footnote]:
    """Why no table of the outer level's over-fitting stands below this one, where there is none."""
    why = why_none(results)
    return [Footnote(f"No table of the outer level's over-fitting: {why}.")] if why else []
