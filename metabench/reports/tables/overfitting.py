"""The table of what each method does better on validation examples, which lam was fitted to."""

from __future__ import annotations

from metabench.analysis.overfitting import fitted, gaps, learns, mean_gap, one_number
from metabench.analysis.results import Results
from metabench.core.text import listed, with_pm
from metabench.reports.tables.renderers import Footnote, Grid, Item


def gap_grid(results: Results) -> Grid | None:
    """Validation minus test by method and column: the columns where some run has both numbers and
    they differ, and the rows that learn on validation examples there. None where that is none, and
    where no method learns outside."""
    known, places = gaps(results), fitted(results)
    columns = [c for c in results.columns if any(at[1] == c.id for at in known)]
    shown = [r for r in results.rows if any((r.id, c.id) in places for c in columns)]
    ids = {row.id for row in shown}
    if not columns or not any(run.row in ids and learns(run) for run in results.runs):
        return None
    scale, least = (100.0, 1) if results.suite.percent else (1.0, None)
    rows = []
    for row in shown:
        line = [Item(row.label or row.id)]
        for column in columns:
            found = known.get((row.id, column.id))
            text = with_pm(*mean_gap(found), scale, least) if found else "—"
            planned = len(results.table_cells[row.id, column.id].runs)
            if found and len(found) < planned:
                text += f" (n={len(found)} of {planned})"
            line.append(Item(text, place=(row.id, column.id)))
        rows.append(line)
    metric = results.suite.metric.replace("_", " ")
    return Grid(
        f"Over-fitting of the outer level: {results.suite.title} (budget {results.budget})",
        [("", 1), *[(column.label or column.id, 1) for column in columns]],
        [f"{metric}, validation minus {results.suite.evaluation}", *["ours"] * len(columns)],
        rows,
        [Footnote(text) for text in _footnotes(results, {row.id for row in shown})],
        frozenset(),
        1,
        f"{results.suite.name}-{results.budget}-overfitting",
    )


def _footnotes(results: Results, shown: set[str]) -> list[str]:
    """How to read the table, and what is not in it."""
    side = "above" if results.suite.goal == "max" else "below"
    said = (
        f"The outer level learns on the validation examples: far {side} 0 it has learned them and "
        "not the task. Mean over seeds of the tested state; ± is the half-width of the 95 % "
        "t-interval."
    )
    if any(run.row in shown and not learns(run) for run in results.runs):
        said += " A row that learns nothing shows how far the two splits differ by themselves."
    out = [said]
    if others := [row.label or row.id for row in results.rows if row.id not in shown]:
        out.append(f"Not here, as they have no validation examples of their own: {listed(others)}.")
    if same := one_number(results):
        labels = listed(results.column_label(column) for column in same)
        out.append(f"Not here, as validation and test are one number in every run: {labels}.")
    return out
