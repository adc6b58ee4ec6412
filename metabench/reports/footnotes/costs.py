"""The footnotes that say what the rows of a table cost: how far from equal, at which prices, and
whose training no cost counts."""

from __future__ import annotations

import math

from metabench.analysis import stats
from metabench.analysis.estimates import EQUIVALENTS, costs, derivatives
from metabench.analysis.results import Results
from metabench.core.text import listed, rounded
from metabench.reports.footnotes.places import rows_in_words
from metabench.reports.tables.renderers import Footnote
from metabench.store.prices import of_cell

APART = 2.0
"""Ratio of costs from which on it is said."""


def cost_footnotes(results: Results) -> list[Footnote]:
    """A line with each row's cost as a multiple of the least, the geometric mean over columns; none
    where no two rows of a column differ by more than ``APART``. Rows that cost nothing are no part
    of it."""
    priced = _by_column(results, priced=True)
    found = priced or _by_column(results, priced=False)
    ratios: dict[str, list[float]] = {}
    most, where = 1.0, ""
    for column, known in found.items():
        least, greatest = min(known.values()), max(known.values())
        if greatest / least > most:
            most, where = greatest / least, column
        for row, cost in known.items():
            ratios.setdefault(row, []).append(math.log(cost / least))
    if most <= APART:
        return []
    told = ", ".join(
        f"{results.row_label(row)} {rounded(math.exp(stats.mean(logs)))}"
        for row, logs in sorted(ratios.items(), key=lambda item: stats.mean(item[1]))
    )
    kind = (
        "inner-gradient equivalents at measured prices"
        if priced
        else "gradients and products in all, each counted as one"
    )
    place = f" in {where}" if len(results.columns) > 1 else ""
    of_columns = " of each column, geometric mean over columns" if len(found) > 1 else ""
    return [
        Footnote(
            f"Costs are not equal: rows differ up to {rounded(most)}-fold{place} ({kind}). In "
            f"units of the cheapest row{of_columns}: {told}."
        )
    ]


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


def price_footnotes(results: Results) -> list[Footnote]:
    """The prices behind inner-gradient equivalents, and how to measure them where they are not
    known."""
    problems: dict[str, list[str]] = {}
    missing = False
    for column in results.columns:
        for row in results.rows:
            for record in results.table_cells[row.id, column.id].done[:1]:
                prices = of_cell(results.prices, record.cell)
                missing = missing or prices is None
                if prices is not None:
                    said = ", ".join(
                        f"{WORDS[k]} {rounded(v)}" for k, v in prices.of.items() if k in WORDS
                    )
                    labels = problems.setdefault(said, [])
                    if (label := column.label or column.id) not in labels:
                        labels.append(label)
    out = [
        Footnote(f"Prices in inner gradients ({listed(labels)}): {said}.")
        for said, labels in problems.items()
    ]
    if missing and any(table_cell.done for table_cell in results.table_cells.values()):
        out.append(
            Footnote(
                "No inner-gradient equivalents without prices for every problem: the "
                "command calibrate measures them."
            )
        )
    return out


WORDS = {
    "outer_gradients": "outer gradient",
    "hvps": "Hessian product",
    "mixed_products": "mixed product",
    "function_evaluations": "function evaluation",
}


def _by_column(results: Results, *, priced: bool) -> dict[str, dict[str, float]]:
    """Label of a column to row to its cost, columns with two rows that cost something; empty where
    a price is missing and prices are asked for."""
    out = {}
    for column in results.columns:
        known = {}
        for row in results.rows:
            plain = derivatives(results, row.id, column.id)
            if not plain:
                continue
            cost = costs(results, row.id, column.id).get(EQUIVALENTS) if priced else plain
            if cost is None:
                return {}
            known[row.id] = cost
        if len(known) > 1:
            out[column.label or column.id] = known
    return out
