"""The performance profile: for each normalised score, the share of runs at least as good.

Agarwal et al.: Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021,
section 4.2, with the interquartile mean of section 4.3. Scores are 0 without learning and 1 at the
bound of a column: values in other units are never pooled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from metabench.analysis.rankings import normalised
from metabench.analysis.results import Results
from metabench.analysis.stats import bootstrap, iqm, profile
from metabench.core.errors import NotDrawn
from metabench.core.text import listed, rounded
from metabench.reports.figures.style import finish, look_of, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW, HIGH = -0.25, 1.02
"""The axis at its longest: what is worse by more than a quarter of the way stands at its left end.
It is shorter where scores are."""
ROOM = 0.05
"""Beside the least and the greatest score, as part of what lies between them."""


def profile_figure(results: Results) -> Figure:
    """For each score, the share of finished runs at least as good. Raises NotDrawn where no column
    has a score."""
    scores = normalised(results)
    if not scores.by_row:
        why = "; ".join(scores.left_out) or "no run has finished yet"
        raise NotDrawn(f"no performance profile of {results.suite.name}: {why}")
    values = {v for groups in scores.by_row.values() for group in groups for v in group}
    low, high = _ends(values)
    grid = [low, *sorted(v for v in values if low < v < high), high]
    footnotes = [
        "Share of finished runs (columns weigh the same) whose score is at least the one on the "
        "axis: 0 what no learning has, 1 the bound. In the legend: the interquartile mean of all "
        "columns' runs, and, where each has several, the 95 % interval of a bootstrap stratified "
        "by column."
    ]
    if scores.left_out:
        footnotes.append(f"Left out: {'; '.join(scores.left_out)}.")
    short = [
        results.row_label(row)
        for row, groups in scores.by_row.items()
        if len(groups) < len(scores.columns)
    ]
    if short:
        footnotes.append(f"Not in every column: {listed(short)}.")
    figure, (axis,) = panels(["Performance profile"])
    handles: dict[str, Any] = {}
    for number, row in enumerate(results.rows):
        if row.id not in scores.by_row:
            continue
        groups = scores.by_row[row.id]
        look = look_of(number) | {"marker": "", "drawstyle": "steps-pre"}
        share = profile(groups, grid)
        (handle,) = axis.plot(grid, [100 * s for s in share], **look)
        handles[f"{row.label or row.id}: {_robust_mean(groups)}"] = handle
    axis.set_ylim(-3, 103)
    axis.set_xlim(low, high)
    axis.set_xlabel("score (0 no learning, 1 the bound)")
    axis.set_ylabel("runs, %")
    return finish(figure, footnotes, handles)


def _ends(scores: Collection[float]) -> tuple[float, float]:
    """Where the axis begins and ends."""
    low, high = (min(max(end(scores), LOW), HIGH) for end in (min, max))
    room = ROOM * (high - low) or ROOM
    return max(LOW, low - room), min(HIGH, high + room)


def _robust_mean(groups: Sequence[Sequence[float]]) -> str:
    """The interquartile mean of all runs and its interval."""
    runs = [value for group in groups for value in group]
    if min(map(len, groups)) < 2:  # resampling one run gives that run: no interval
        return rounded(iqm(runs), 3)
    low, high = bootstrap(groups, lambda drawn: iqm(drawn.tolist()))
    return f"{rounded(iqm(runs), 3)} [{rounded(low, 3)}, {rounded(high, 3)}]"
