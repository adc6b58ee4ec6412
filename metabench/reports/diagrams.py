"""Figures over a whole suite: the critical-difference diagram and the performance profile."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metabench.analysis.rankings import ranked, scores
from metabench.analysis.results import Results
from metabench.analysis.stats import bootstrap, iqm, profile
from metabench.core.text import listed
from metabench.reports.figure_style import (
    COLOURS,
    GREY,
    PANEL,
    axis_label,
    empty,
    finish,
    look_of,
    panels,
    plain,
    scale_of,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ranking(results: Results) -> Figure:
    """A critical-difference diagram, with what it may say in words below."""
    order = ranked(results)
    if order.ranking is None:
        return empty("Ranking of the methods", " ".join(order.footnotes))
    from matplotlib.figure import Figure

    names = [
        plain(textwrap.shorten(results.row_label(row), 30, placeholder="…")) for row in order.rows
    ]
    ranks, critical = order.ranking.ranks, order.ranking.critical
    best = sorted(range(len(ranks)), key=lambda i: ranks[i])
    half = math.ceil(len(best) / 2)
    cliques = order.ranking.cliques()
    width = 2 * PANEL[0]
    lines = wrapped(order.footnotes, width)
    top, step = 0.42 + 0.16 * len(cliques), 0.23
    height = 0.75 + top + step * half + 0.14 * len(lines)
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    margin = min(2.5, 0.55 + 0.064 * max(map(len, names)))
    left, right = margin, width - margin

    def at(rank: float) -> float:
        return left + (right - left) * (rank - 1) / (len(ranks) - 1)

    base = 0.75
    axis.plot([left, right], [base, base], color="#333333", lw=1)
    for rank in range(1, len(ranks) + 1):
        axis.plot([at(rank)] * 2, [base - 0.06, base], color="#333333", lw=1)
        axis.text(at(rank), base - 0.1, str(rank), ha="center", va="bottom", fontsize=7.5)
    axis.text(left - 0.15, base - 0.1, "mean rank (1 best)", ha="right", va="bottom", fontsize=7.5)
    shown = min(critical, len(ranks) - 1)
    more = "" if shown == critical else " (longer than the axis)"
    axis.plot([at(1), at(1 + shown)], [0.28, 0.28], color="#333333", lw=1.4)
    for end in (1.0, 1 + shown):
        axis.plot([at(end)] * 2, [0.23, 0.33], color="#333333", lw=1.4)
    axis.text(
        at(1 + shown / 2),
        0.2,
        f"critical difference {critical:.2f}{more}",
        ha="center",
        va="bottom",
        fontsize=7.5,
    )
    for level, clique in enumerate(cliques):
        ends = [ranks[i] for i in clique]
        y = base + 0.16 + 0.16 * level
        axis.plot(
            [at(min(ends)) - 0.05, at(max(ends)) + 0.05],
            [y, y],
            color=GREY,
            lw=3.5,
            solid_capstyle="round",
        )
    for place, i in enumerate(best):
        on_left = place < half
        y = base + top + step * (place if on_left else len(best) - 1 - place)
        edge = left - 0.1 if on_left else right + 0.1
        colour = COLOURS[order.numbers[i] % len(COLOURS)]
        axis.plot([at(ranks[i]), at(ranks[i]), edge], [base, y, y], color=colour, lw=1.1)
        axis.plot([at(ranks[i])], [base], "o", color=colour, ms=4, zorder=3)
        axis.text(
            edge + (-0.06 if on_left else 0.06),
            y,
            f"{names[i]}  {ranks[i]:.2f}",
            ha="right" if on_left else "left",
            va="center",
            fontsize=8,
        )
    axis.text(0.08, height - 0.08, plain("\n".join(lines)), fontsize=7, color=GREY, va="bottom")
    return figure


def profile_figure(results: Results) -> Figure:
    """Share of runs at least as good as each value of the metric."""
    scale = scale_of(results)
    handles: dict[str, Any] = {}
    table = {row.id: scores(results, row.id) for row in results.rows}
    values = [v for groups in table.values() for group in groups for v in group]
    if not values:
        return empty("Performance profile", "No run has finished yet.")
    low, high = min(values), max(values)
    margin = 0.02 * (high - low or abs(high) or 1.0)
    grid = [low - margin, *sorted(set(values)), high + margin]
    better = "at least" if results.suite.goal == "max" else "at most"
    notes = [
        f"Share of finished runs (columns weigh the same) whose {results.suite.evaluation} "
        f"{results.suite.metric.replace('_', ' ')} is {better} the value on the axis. Above: the "
        "interquartile mean of all columns' runs, and, where each has several, the 95 % interval "
        "of a bootstrap stratified by column."
    ]
    short = [
        row.label or row.id for row in results.rows if 0 < len(table[row.id]) < len(results.columns)
    ]
    if short:
        notes.append(f"Not in every column: {listed(short)}.")
    figure, (axis,) = panels(["Performance profile"])
    for number, row in enumerate(results.rows):
        groups = table[row.id]
        if not groups:
            continue
        step = "steps-pre" if results.suite.goal == "max" else "steps-post"
        look = look_of(number) | {"marker": "", "drawstyle": step}
        share = profile(groups, grid, results.suite.goal)
        (handle,) = axis.plot([v * scale for v in grid], [100 * s for s in share], **look)
        handles[f"{row.label or row.id}: {_robust_mean(groups, scale)}"] = handle
    axis.set_ylim(-3, 103)
    axis.set_xlabel(axis_label(results, results.suite.evaluation))
    axis.set_ylabel("runs, %")
    return finish(figure, notes, handles)


def _robust_mean(groups: Sequence[Sequence[float]], scale: float) -> str:
    """The interquartile mean of all runs and its interval, in the axis' unit."""
    runs = [value for group in groups for value in group]
    if min(map(len, groups)) < 2:  # resampling one run gives that run: no interval
        return f"{iqm(runs) * scale:.4g}"
    low, high = bootstrap(groups, lambda drawn: iqm(drawn.tolist()))
    return f"{iqm(runs) * scale:.4g} [{low * scale:.4g}, {high * scale:.4g}]"
