"""The performance profile: for each value of the metric, the share of runs at least as good.

Agarwal et al.: Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021,
section 4.2, with the interquartile mean of section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metabench.analysis.rankings import scores
from metabench.analysis.results import Results
from metabench.analysis.stats import bootstrap, iqm, profile
from metabench.core.text import listed
from metabench.reports.figure_style import axis_label, empty, finish, look_of, panels, scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def profile_figure(results: Results) -> Figure:
    """For each value of the metric, the share of finished runs at least as good."""
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
    footnotes = [
        f"Share of finished runs (columns weigh the same) whose {results.suite.evaluation} "
        f"{results.suite.metric.replace('_', ' ')} is {better} the value on the axis. Above: the "
        "interquartile mean of all columns' runs, and, where each has several, the 95 % interval "
        "of a bootstrap stratified by column."
    ]
    short = [
        row.label or row.id for row in results.rows if 0 < len(table[row.id]) < len(results.columns)
    ]
    if short:
        footnotes.append(f"Not in every column: {listed(short)}.")
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
    return finish(figure, footnotes, handles)


def _robust_mean(groups: Sequence[Sequence[float]], scale: float) -> str:
    """The interquartile mean of all runs and its interval, in the axis' unit."""
    runs = [value for group in groups for value in group]
    if min(map(len, groups)) < 2:  # resampling one run gives that run: no interval
        return f"{iqm(runs) * scale:.4g}"
    low, high = bootstrap(groups, lambda drawn: iqm(drawn.tolist()))
    return f"{iqm(runs) * scale:.4g} [{low * scale:.4g}, {high * scale:.4g}]"
