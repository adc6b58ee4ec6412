"""Every pair of an arena's methods: how probable it is that one scores higher than the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metabench.analysis.arena.pairs import Duel
from metabench.analysis.arena.track import TrackResults
from metabench.analysis.rankings import FEWEST
from metabench.core.errors import NotDrawn
from metabench.core.text import counted
from metabench.reports.arena.strips import as_saved, order_of
from metabench.reports.figures.style import (
    LEGEND,
    finish,
    panels,
    plain,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 0.52, 0.36
"""Inches of one pair."""
LONGEST = 1.6
"""Inches of a name."""
LEVEL = 0.05
STAR = "*"


def against(track: TrackResults, row: str, column: str) -> Duel | None:
    """What is known of ``row`` against ``column``, whichever of them stands first in the file."""
    from dataclasses import replace

    if (found := track.duels.get((row, column))) is not None:
        return found
    other = track.duels.get((column, row))
    if other is None:
        return None
    return replace(other, wins=1 - other.wins, low=1 - other.high, high=1 - other.low)


def pairs_figure(track: TrackResults) -> Figure:
    """The probability that the method of a row scores higher than that of a column, with its
    interval. Raises NotDrawn for a method alone."""
    import matplotlib as mpl

    methods = order_of(track)
    if len(methods) < 2:
        raise NotDrawn(f"no pairs in track {track.track}: {methods[0]} is alone")
    figure, (axis,) = panels(["How probable a higher score is"])
    as_saved(figure)
    n = len(methods)
    names = [plain("\n".join(wrapped([track.label(m)], LONGEST, LEGEND))) for m in methods]
    longest = max(text_width(line, LEGEND) for name in names for line in name.split("\n"))
    figure.set_size_inches(
        max(5.1, 0.5 + longest + CELL[0] * n), 0.6 + 0.75 * longest + CELL[1] * n
    )
    colours = mpl.colormaps["PuOr_r"]
    for i, row in enumerate(methods):
        for j, column in enumerate(methods):
            found = against(track, row, column)
            if row == column or found is None:
                axis.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color="#f2f2f2", lw=0)
                continue
            # Pale colours only, so that the numbers can be read on them.
            shade = colours(0.25 + 0.5 * found.wins)
            axis.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=shade, lw=0)
            sure = found.p is not None and found.p < LEVEL
            axis.text(
                j + 0.5, i + 0.36, f"{found.wins:.2f}{STAR * sure}", ha="center", va="center",
                fontsize=8, fontweight="bold" if sure else "normal",
            )  # fmt: skip
            limits = f"{found.low:.2f}–{found.high:.2f}"
            axis.text(j + 0.5, i + 0.75, limits, ha="center", va="center", fontsize=5.5)
    axis.set_xlim(0, n)
    axis.set_ylim(n, 0)
    axis.grid(False)
    axis.set_xticks([j + 0.5 for j in range(n)], names, rotation=40, ha="right")
    axis.set_yticks([i + 0.5 for i in range(n)], names)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_ylabel("how probably this one ...")
    axis.set_xlabel("... scores higher than this one")
    return finish(figure, pairs_caption(track))


def pairs_caption(track: TrackResults) -> list[str]:
    """What the figure of pairs shows and cannot say."""
    n = len(track.problems)
    if n < FEWEST:
        how = (
            f"a bootstrap over seeds of these {n} problem{'s' * (n != 1)}: nothing is tested below "
            f"{FEWEST} problems, and nothing is said of others."
        )
    else:
        how = (
            "a bootstrap over problems, then seeds. Bold with a star: p below 5 % in the Wilcoxon "
            "test over problems, corrected for all pairs (Holm)."
        )
        pairs = len(track.duels)
        least = 2.0 ** (1 - n) * pairs
        if least >= LEVEL:
            how += (
                f" With {n} problems and {counted(pairs, 'pair')} no p can be below "
                f"{min(1.0, least):.2g}: a star takes more problems, or fewer methods."
            )
    return [
        "The probability that the method of the row has a higher test score than that of the "
        "column, on the same seed of a problem drawn at random; ties count half, and a run "
        f"without numbers loses. Below it: its 95 % interval by {how}",
        "It cannot say by how much one is better: a gain of a hair on every seed counts as 1. An "
        "interval of 1.00–1.00 says that all runs agree, not that the next one will."
        + ("" if n < FEWEST else " Without a star two methods have not been told apart."),
    ]
