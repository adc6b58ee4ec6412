"""Which numbers of a table are round-off, and equal where rows are compared."""

from __future__ import annotations

from collections.abc import Mapping

from metabench.analysis.estimates import Entry
from metabench.analysis.results import Results
from metabench.reports.tables.renderers import Footnote


def resolution_footnotes(
    results: Results, entries: Mapping[str, Mapping[str, Entry]]
) -> list[Footnote]:
    """What the suite's resolution does to this table; none where no number is below it."""
    least = results.suite.resolution
    metric = results.metric
    # A metric may be below 0 where the suite has none.
    below = least > 0 and any(
        estimate.mean < least
        for cell in results.table_cells.values()
        for estimate in cell.estimates(*metric).values()
    )
    if not below:
        return []
    told = f"A run's number below {least:g} is round-off: it counts as {least:g} in tests"
    several = any(sum(e.best for e in column.values()) > 1 for column in entries.values())
    more = ", so that several can be the best of a column" if several else ""
    return [Footnote(f"{told}, marks and claims, and is shown as it is{more}.")]
