"""The footnotes that say what difference a table would have shown, and which numbers of it are
round-off, and equal where rows are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metabench.analysis.comparisons import POWER, Comparisons, Detectable, resolved
from metabench.analysis.estimates import Entry
from metabench.analysis.results import Results
from metabench.core.text import rounded
from metabench.reports.tables.renderers import Footnote

MANY = 6
"""Columns from which on a footnote gives a range and not a number for each."""
MOST_FACTOR = 1000.0
"""A larger factor is told as more than this one: its digits say nothing."""


def detectable_footnotes(
    results: Results,
    entries: Mapping[str, Mapping[str, Entry]],
    families: Mapping[str, Comparisons],
) -> list[Footnote]:
    """The differences that each column would have shown, from the steadiest of its pairs to the
    least steady; or, of a column that shows none, that most would have to be larger than all that
    occur in it. ``entries``: column to row to number."""
    found: dict[bool, dict[str, Detectable]] = {False: {}, True: {}}
    hopeless: list[str] = []
    for column in results.columns:
        family = families[column.id]
        if (sizes := family.detectable) is None:
            continue
        name = column.label or column.id
        means = [resolved(e.mean, results.suite.resolution) for e in entries[column.id].values()]
        if not family.worse and sizes.median > _range(means, family.logs):
            hopeless.append(name)
        else:
            found[family.logs][name] = sizes
    power = f"{100 * POWER:.0f} %"
    start = f"A difference is shown with {power} power from about this on"
    out = [
        Footnote(start + _in_words(results, sizes, logs)) for logs, sizes in found.items() if sizes
    ]
    if hopeless:
        every = len(hopeless) == len(results.columns)
        many = f"{'all' if every else f'{len(hopeless)} of'} {len(results.columns)} columns"
        where = many if len(hopeless) > MANY else "; ".join(hopeless)
        out.append(
            Footnote(
                "No difference of a size that occurs here would be shown, between most methods, "
                f"with {power} power{f': {where}' if len(results.columns) > 1 else ''}. It would "
                "have to be larger than that of the best and the worst mean."
            )
        )
    return out


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


def _in_words(results: Results, found: Mapping[str, Detectable], logs: bool) -> str:
    """What columns would have shown, and of which pairs that is."""
    points = results.suite.percent and not logs
    unit, factor = ", in points" * points, "a factor of " * logs

    def shown(size: float) -> str:
        return _factor(size) if logs else rounded(100 * size if points else size, 3)

    if len(found) > MANY:
        low = min(found, key=lambda name: found[name].least)
        high = max(found, key=lambda name: found[name].most)
        told = f"{shown(found[low].least)} ({low}) to {shown(found[high].most)} ({high})"
        return f"{unit}: {factor}{told}, least to most of all columns' pairs."
    words = []
    for name, sizes in found.items():
        ends = " to ".join(dict.fromkeys((shown(sizes.least), shown(sizes.most))))
        words.append(f"{f'{name} ' * (len(results.columns) > 1)}{factor}{ends}")
    return f"{unit}: {'; '.join(words)} (least to most of the column's pairs)."


def _factor(size: float) -> str:
    """The factor that a difference of logarithms is."""
    if size > math.log(MOST_FACTOR):
        return f"more than {MOST_FACTOR:,.0f}"
    return rounded(math.exp(size), 3)


def _range(means: Sequence[float], logs: bool) -> float:
    """From the smallest to the largest mean of a column; ``logs``: of their logarithms."""
    if logs:
        means = [math.log(mean) for mean in means]
    return max(means) - min(means)
