"""The footnote that names the rows whose training no cost counts."""

from __future__ import annotations

from metabench.analysis.results import Results
from metabench.reports.footnotes.places import rows_in_words
from metabench.reports.tables.renderers import Footnote


def uncounted_footnotes(results: Results) -> list[Footnote]:
    """A line with the rows that have taken no outer step anywhere; none where all have, or where
    the budget counts evaluations."""
    if any(run.cell.budget.get("charge_looks") for run in results.runs):
        return []
    rows = []
    for row in results.rows:
        done = [r for c in results.columns for r in results.table_cells[row.id, c.id].done]
        if done and not any(record.steps for record in done):
            rows.append(row.id)
    if not rows:
        return []
    return [
        Footnote(
            "Evaluation counts as no cost, and rows without an outer step train nothing outside "
            f"it: {rows_in_words(results, rows)}."
        )
    ]
