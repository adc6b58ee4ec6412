"""The footnotes that say where each row of a table comes from and how it departs from that."""

from __future__ import annotations

from metabench.analysis.results import Results
from metabench.core.text import listed
from metabench.reports.tables.renderers import Footnote


def reference_footnotes(results: Results) -> list[Footnote]:
    """A line for each row with a reference; rows of one reference share it, and those of one line
    of a figure its name. They would push the numbers off a terminal: it has the formats that have
    them in their place."""
    series: dict[str, set[str]] = {}
    for row in results.rows:
        series.setdefault(row.series, set()).add(row.reference)
    rows: dict[str, dict[str, None]] = {}
    for row in results.rows:
        alike = row.series and len(series[row.series]) == 1
        label = row.series if alike else row.label or row.id
        rows.setdefault(row.reference.rstrip("."), {})[label] = None
    rows.pop("", None)
    if not rows:
        return []
    out = [
        Footnote(f"Row{'s'[: len(labels) > 1]} {listed(labels)}: {said}.", only="page")
        for said, labels in rows.items()
    ]
    told = "What each row is taken from, and where it departs from that: format markdown or html."
    return [*out, Footnote(told, only="terminal")]
