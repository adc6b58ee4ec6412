"""The table of what each method does better on validation examples, which lam was fitted to."""

from __future__ import annotations

from metabench.analysis.overfitting import fitted_columns, gap
from metabench.analysis.results import Results
from metabench.core.text import with_pm
from metabench.reports.tables.renderers import Footnote, Grid, Item


def gap_grid(results: Results) -> Grid | None:
    """Validation minus test by method and column; None where no column's outer level learns on its
    validation split, or no run has both numbers."""
    known = fitted_columns(results)
    columns = [column for column in results.columns if column.id in known]
    scale, least = (100.0, 1) if results.suite.percent else (1.0, None)
    rows, some = [], False
    for row in results.rows:
        line = [Item(row.label or row.id)]
        for column in columns:
            found = gap(results, row.id, column.id)
            some = some or found is not None
            text = with_pm(*found, scale, least) if found else "—"
            line.append(Item(text, place=(row.id, column.id)))
        rows.append(line)
    if not some:
        return None
    side = "above" if results.suite.goal == "max" else "below"
    metric = results.suite.metric.replace("_", " ")
    return Grid(
        f"Over-fitting of the outer level: {results.suite.title} (budget {results.budget})",
        [("", 1), *[(column.label or column.id, 1) for column in columns]],
        [f"{metric}, validation minus {results.suite.evaluation}", *["ours"] * len(columns)],
        rows,
        [
            Footnote(
                f"The outer level learns on the validation examples: far {side} 0 it has learned "
                "them and not the task. Mean over seeds of the tested state; ± is the half-width "
                "of the 95 % t-interval. A row that learns nothing shows how far the two splits "
                "differ by themselves."
            )
        ],
        frozenset(),
        1,
        f"{results.suite.name}-{results.budget}-overfitting",
    )
