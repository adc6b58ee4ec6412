"""The critical-difference diagram: the mean ranks of a suite's methods on one axis.

Demšar: Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006, figure 1. Bars
join methods whose mean ranks differ by less than the critical difference.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from metabench.analysis.rankings import Ranked, ranked
from metabench.analysis.results import Results
from metabench.analysis.stats import Ranking
from metabench.core.errors import NotDrawn
from metabench.reports.figures.style import COLOURS, FOOTNOTE, GREY, PANEL, plain, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 2 * PANEL[0]
BASE = 0.75
"""Height of the axis of ranks, in inches from the top."""
STEP = 0.23
"""Between the labels of methods, in inches."""
CLIQUE = 0.16
"""Between the bars of methods that do not differ, in inches."""
BLACK = "#333333"
SMALL = 7.5
EDGE = 0.08
"""Around the footnotes, in inches."""


class _Scale(NamedTuple):
    """Where ranks from 1 to ``most`` lie between ``left`` and ``right``, in inches."""

    left: float
    right: float
    most: int

    def at(self, rank: float) -> float:
        return self.left + (self.right - self.left) * (rank - 1) / (self.most - 1)


class _Method(NamedTuple):
    name: str
    rank: float
    colour: str


def ranking(results: Results) -> Figure:
    """A critical-difference diagram, with the tests behind it in words below. Raises NotDrawn where
    there are too few problems for it."""
    order = ranked(results)
    if order.ranking is None:
        raise NotDrawn(f"no diagram of ranks of {results.suite.name}: {order.footnotes[0]}")
    return diagram(order, order.ranking, results.row_label)


def diagram(
    order: Ranked, found: Ranking, label: Callable[[str], str], more: Sequence[str] = ()
) -> Figure:
    """The diagram of a ranking that was tested (``found``); ``label`` names its rows; ``more``
    footnotes come after its own."""
    from matplotlib.figure import Figure

    methods = [
        _Method(
            plain(textwrap.shorten(label(row), 30, placeholder="…")),
            rank,
            COLOURS[number % len(COLOURS)],
        )
        for row, rank, number in zip(order.rows, found.ranks, order.numbers, strict=True)
    ]
    cliques = found.cliques()
    lines = wrapped([*order.footnotes, *more], WIDTH - 2 * EDGE)
    top = BASE + (0.42 + CLIQUE * len(cliques))
    height = top + STEP * math.ceil(len(methods) / 2) + 0.14 * len(lines)
    figure = Figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.set_xlim(0, WIDTH)
    axis.set_ylim(height, 0)
    margin = min(2.5, 0.55 + 0.064 * max(len(m.name) for m in methods))
    scale = _Scale(margin, WIDTH - margin, len(methods))
    _draw_scale(axis, scale)
    _draw_difference(axis, scale, found.critical)
    for level, clique in enumerate(cliques):
        ends = [found.ranks[i] for i in clique]
        xs = [scale.at(min(ends)) - 0.05, scale.at(max(ends)) + 0.05]
        ys = [BASE + CLIQUE + CLIQUE * level] * 2
        axis.plot(xs, ys, color=GREY, lw=3.5, solid_capstyle="round")
    _draw_methods(axis, scale, methods, top)
    at = EDGE, height - EDGE
    axis.text(*at, plain("\n".join(lines)), fontsize=FOOTNOTE, color=GREY, va="bottom")
    return figure


def _draw_scale(axis: Axes, scale: _Scale) -> None:
    axis.plot([scale.left, scale.right], [BASE, BASE], color=BLACK, lw=1)
    for rank in range(1, scale.most + 1):
        x = scale.at(rank)
        axis.plot([x] * 2, [BASE - 0.06, BASE], color=BLACK, lw=1)
        axis.text(x, BASE - 0.1, str(rank), ha="center", va="bottom", fontsize=SMALL)
    at = scale.left - 0.15, BASE - 0.1
    axis.text(*at, "mean rank (1 best)", ha="right", va="bottom", fontsize=SMALL)


def _draw_difference(axis: Axes, scale: _Scale, critical: float) -> None:
    """The critical difference as a bar above the axis, cut where it is longer than the axis."""
    shown = min(critical, scale.most - 1)
    more = "" if shown == critical else " (longer than the axis)"
    ends = [scale.at(1), scale.at(1 + shown)]
    axis.plot(ends, [0.28, 0.28], color=BLACK, lw=1.4)
    for end in ends:
        axis.plot([end] * 2, [0.23, 0.33], color=BLACK, lw=1.4)
    text = f"critical difference {critical:.2f}{more}"
    axis.text(scale.at(1 + shown / 2), 0.2, text, ha="center", va="bottom", fontsize=SMALL)


def _draw_methods(axis: Axes, scale: _Scale, methods: Sequence[_Method], top: float) -> None:
    """The names: the better half at the left, the others at the right, from ``top`` down."""
    half = math.ceil(len(methods) / 2)
    for place, method in enumerate(sorted(methods, key=lambda m: m.rank)):
        on_left = place < half
        y = top + STEP * (place if on_left else len(methods) - 1 - place)
        edge = scale.left - 0.1 if on_left else scale.right + 0.1
        x = scale.at(method.rank)
        axis.plot([x, x, edge], [BASE, y, y], color=method.colour, lw=1.1)
        axis.plot([x], [BASE], "o", color=method.colour, ms=4, zorder=3)
        axis.text(
            edge + (-0.06 if on_left else 0.06),
            y,
            f"{method.name}  {method.rank:.2f}",
            ha="right" if on_left else "left",
            va="center",
            fontsize=8,
        )
