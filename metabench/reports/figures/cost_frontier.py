"""The plot "frontier": the table's metric of each row against what a whole run cost.

Rows of a suite that share a ``series`` are the points of one line, joined in the suite's order: one
method with a growing inner budget. Axes are logarithmic where values differ much.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from metabench.analysis.results import Results
from metabench.core.text import human, listed
from metabench.reports.figures.style import (
    GREY,
    axis_label,
    empty,
    finish,
    label_left,
    look_of,
    panels,
    scale_of,
)
from metabench.store.record import Record
from metabench.suites.planning import NEVER_RUN
from metabench.suites.schema import DERIVATIVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {
    "derivatives": "gradients and products in all",
    "hvps": "Hessian products",
    "mixed_products": "mixed products",
    "seconds": "seconds",
    "peak_tensor_bytes": "tensors held at once",
    "peak_memory_bytes": "peak memory of the process",
}
WIDE = 30.0
"""An axis is logarithmic where the largest value is more than so many times the smallest."""
HEIGHT = 1.35


class Point(NamedTuple):
    """Medians over finished seeds of cost and metric; the metric's least and greatest value."""

    x: float
    y: float
    low: float
    high: float
    seeds: int


def cost_of(record: Record, name: str) -> float | None:
    """A cost of a run; "derivatives" is the sum of ``DERIVATIVES``."""
    if name == "derivatives":
        found = [record.cost.get(n) for n in DERIVATIVES]
        return sum(n for n in found if n is not None) if any(found) else None
    return record.cost.get(name)


def costs_known(results: Results) -> list[str]:
    """Costs that some finished run has, above 0."""
    done = [r for table_cell in results.table_cells.values() for r in table_cell.done]
    names = {name for record in done for name, value in record.cost.items() if value}
    return sorted(names | ({"derivatives"} if names & {*DERIVATIVES} else set()))


def lines(results: Results, column: str, cost: str) -> dict[str, list[Point]]:
    """Label of a series, or of a row that is in none, to its points, in the suite's order."""
    evaluation, metric = results.metric
    out: dict[str, list[Point]] = {}
    for row in results.suite.rows:
        table_cell = results.table_cells[row.id, column]
        found = table_cell.estimates(evaluation, metric)
        spent = [cost_of(r, cost) for r in table_cell.done if r.cell.seed in found]
        known = [v for v in spent if v is not None]
        points = out.setdefault(row.series or row.label or row.id, [])
        if known and found:
            ys = [e.mean for e in found.values()]
            points.append(Point(median(known), median(ys), min(ys), max(ys), len(table_cell.done)))
    return out


def frontier(results: Results, cost: str) -> Figure:
    """The table's metric of every row against its cost: a line for each series, a panel for each
    column."""
    words = WORDS.get(cost, cost.replace("_", " "))
    found = {column.id: lines(results, column.id, cost) for column in results.columns}
    drawn = [p for known in found.values() for points in known.values() for p in points]
    if not drawn:
        return empty(words.capitalize(), "No run with this metric and this cost has finished yet.")
    figure, axes = panels([column.label or column.id for column in results.columns])
    figure.set_figheight(figure.get_figheight() * HEIGHT)
    scale = scale_of(results)
    handles: dict[str, Any] = {}
    for column, axis in zip(results.columns, axes, strict=True):
        known = found[column.id]
        for number, (label, points) in enumerate(known.items()):
            if not points:
                continue
            look = look_of(number)
            xs, ys = [p.x for p in points], [p.y * scale for p in points]
            lows, highs = [p.low * scale for p in points], [p.high * scale for p in points]
            axis.vlines(xs, lows, highs, color=look["color"], lw=0.8, alpha=0.6)
            (handle,) = axis.plot(xs, ys, **look | {"lw": 1.1, "ms": 3.6})
            handles.setdefault(label, handle)
        _scaled(axis, [p for points in known.values() for p in points], cost)
        axis.set_xlabel(words)
    label_left(axes, axis_label(results, "").strip())
    several = any(p.seeds > 1 for p in drawn)
    footnotes = [
        "Each line: one method, its inner budget growing from point to point in the table's order; "
        + ("median of finished seeds, stroke from the least to the greatest." if several else
           "one finished seed.")
    ]  # fmt: skip
    return finish(figure, footnotes + _incomplete(results), handles)


def _incomplete(results: Results) -> list[str]:
    """How many points of each line lack seeds, by column."""
    footnotes = []
    for column in results.columns:
        lost: dict[str, int] = {}
        for row in results.suite.rows:
            states = results.table_cells[row.id, column.id].states
            if states.keys() - {"done", *NEVER_RUN}:
                label = row.series or row.label or row.id
                lost[label] = lost.get(label, 0) + 1
        if lost:
            points = listed(f"{n} of {label}" for label, n in lost.items())
            footnotes.append(f"{column.label or column.id}: points that lack seeds: {points}.")
    return footnotes


def _scaled(axis: Axes, points: list[Point], cost: str) -> None:
    """Logarithmic axes where values differ much; a cost of 0 is shown at the left end."""
    from matplotlib.ticker import MultipleLocator

    if not points:
        axis.text(0.5, 0.5, "no runs", transform=axis.transAxes, ha="center", color=GREY)
        return
    xs, ys = [p.x for p in points if p.x > 0], [p.y for p in points]
    if min(ys) > 0 and max(ys) > WIDE * min(ys):
        axis.set_yscale("log")
    if cost.endswith("_bytes") and xs:
        if max(xs) > 4 * min(xs):
            axis.set_xscale("log", base=2)
        else:
            wide = max(max(xs) - min(xs), 1024.0)
            axis.xaxis.set_major_locator(MultipleLocator(2.0 ** math.floor(math.log2(wide / 2))))
        axis.xaxis.set_major_formatter(lambda value, _: human(cost, value))
    elif xs and max(xs) > WIDE * min(xs):
        if len(xs) == len(points):
            axis.set_xscale("log")
            return
        axis.set_xscale("symlog", linthresh=min(xs), linscale=0.4)
        axis.set_xlim(-0.15 * min(xs), 1.4 * max(xs))
        decades = range(math.ceil(math.log10(min(xs))), math.floor(math.log10(max(xs))) + 1)
        axis.set_xticks([0, *(10.0**n for n in decades)])
