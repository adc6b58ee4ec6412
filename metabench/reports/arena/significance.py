"""What the tests of ranks say below an arena's table, and which of its rows they mark.

The same tests as in the critical-difference diagram: Friedman and Nemenyi, a block a problem.
"""

from __future__ import annotations

from collections.abc import Callable

from metabench.analysis import stats
from metabench.analysis.rankings import Ranked
from metabench.core.text import counted, listed
from metabench.reports.tables.renderers import WORSE


def shown_better(order: Ranked) -> dict[str, int] | None:
    """Row to how many rows it is shown to be worse than; None where nothing is tested."""
    if order.ranking is None:
        return None
    return {row: len(order.ranking.better(i)) for i, row in enumerate(order.rows)}


def said(order: Ranked, label: Callable[[str], str]) -> str:
    """The footnote: the tests and what they show, or why nothing is tested."""
    found, (first, *more) = order.ranking, order.footnotes
    if found is None:
        return first
    level = f"{100 * stats.ALPHA:.0f} %"
    apart = f"more than {found.critical:.2f} apart"
    if found.rejected:
        differ = f"differ at {level} for all pairs together (Nemenyi) where they lie {apart}"
    else:
        differ = f"would have to lie {apart} to differ (Nemenyi, {level} for all pairs together)"
    parts = (
        f"Tests of the ranks, a block a problem ({found.blocks}, means over seeds): Friedman's "
        f"chi-squared is {found.statistic:.1f} with {counted(len(order.rows) - 1, 'degree')} of "
        f"freedom, p = {found.p:.2g}. Two mean ranks {differ}.",
        _shown(order, label),
        *more,
    )
    return " ".join(parts)


def _shown(order: Ranked, label: Callable[[str], str]) -> str:
    """Which rows are worse than which."""
    better = shown_better(order) or {}
    below: dict[int, list[str]] = {}
    for row in sorted(better, key=lambda row: -better[row]):
        if better[row]:
            below.setdefault(better[row], []).append(f'"{label(row)}"')
    if not below:
        return "No row is shown to be worse than another."
    told = "; ".join(
        f"{listed(rows)} than the first{f' {n} rows' if n > 1 else ' row'}"
        for n, rows in below.items()
    )
    return (
        f"{WORSE}: shown to be worse than some other row: {told}. Without a mark: not told apart."
    )
