"""Strips: a line a method, a dot a problem (or a seed), and a mark for the centre of them.

Methods stand in the order of the standings, the best mean rank at the top, in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metabench.analysis.arena.track import TrackResults
from metabench.reports.figures.style import (
    GREY,
    LEGEND,
    look_of,
    panels,
    plain,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.21
"""Inches that a method takes."""
AROUND = 0.75
"""Inches of a panel's title and axis."""
SPREAD = 0.5
"""Of a line, over which its dots are spread so that none hides another."""
WIDEST_LABEL = 1.5
"""Inches; longer names are broken."""


@dataclass(frozen=True)
class Strip:
    """What is drawn of a method: dots, None where a problem has none; the centre, and its interval
    where there is one."""

    dots: Sequence[float | None]
    centre: float | None = None
    interval: tuple[float, float] | None = None


def order_of(track: TrackResults) -> list[str]:
    """The tuned methods in the order of the standings."""
    return [line.standing.row for line in track.lines()]


def as_saved(figure: Figure) -> Figure:
    """The figure at the resolution of its file: names beside an axis take more room there than the
    layout would give them."""
    import matplotlib as mpl

    figure.set_dpi(mpl.rcParams["savefig.dpi"])
    return figure


def strip_panels(
    track: TrackResults, titles: Sequence[str], most: int = 2
) -> tuple[Figure, list[Axes]]:
    """Panels that are as high as the methods need, named at the left."""
    figure, axes = panels(titles, most)
    as_saved(figure)
    methods = order_of(track)
    down = round(len(titles) / _across(axes) + 0.499)
    lines = sum(len(_name(track, m).split("\n")) for m in methods)
    figure.set_figheight(down * (AROUND + LINE * max(3, lines)))
    for axis in axes:
        names = [_name(track, m) for m in methods] if _is_first(axis) else [""] * len(methods)
        axis.set_yticks([-i for i in range(len(methods))], names)
        axis.set_ylim(-len(methods) + 0.4, 0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
    return figure, axes


def _across(axes: Sequence[Axes]) -> int:
    place = axes[0].get_subplotspec()
    return int(place.get_gridspec().ncols) if place is not None else 1


def _is_first(axis: Axes) -> bool:
    place = axis.get_subplotspec()
    return place is None or bool(place.is_first_col())


def _name(track: TrackResults, method: str) -> str:
    label = track.label(method)
    if text_width(label, LEGEND) <= WIDEST_LABEL:
        return plain(label)
    return plain("\n".join(wrapped([label], WIDEST_LABEL, LEGEND)))


def draw_strips(
    track: TrackResults, axis: Axes, strips: Mapping[str, Strip], *, dots: str = "problem"
) -> dict[str, Any]:
    """Draw each method's strip into a panel of :func:`strip_panels`; handles of a legend for what
    a dot (``dots``) and a mark are."""
    handles: dict[str, Any] = {}
    for place, method in enumerate(order_of(track)):
        strip, colour = strips[method], colour_of(track, method)
        at = [-place + dy for dy in spread(len(strip.dots))]
        known = [(x, y) for x, y in zip(strip.dots, at, strict=True) if x is not None]
        axis.axhline(-place, color="#eeeeee", lw=0.8, zorder=0.5)
        if known:
            xs, ys = zip(*known, strict=True)
            axis.plot(xs, ys, "o", color=colour, ms=2.6, alpha=0.55, mew=0)
            handles.setdefault(f"a {dots}", _handle("o", GREY, 2.6))
        if strip.interval is not None:
            axis.hlines(-place, *strip.interval, color=colour, lw=1.6)
        if strip.centre is not None:
            axis.plot([strip.centre], [-place], "D", color=colour, ms=4.6, mec="white", mew=0.5)
    return handles


def _handle(marker: str, colour: str, size: float, **more: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=marker, color=colour, ms=size, ls="none", **more)


def mark(kind: str) -> Any:
    """A legend's handle: "centre", "shipped" (hollow) or "censored"."""
    looks = {"centre": ("D", 4.6), "shipped": ("D", 4.2), "censored": (">", 4.0)}
    marker, size = looks[kind]
    hollow = {} if kind == "centre" else {"mfc": "white", "mew": 0.9}
    return _handle(marker, GREY, size, **hollow)


def colour_of(track: TrackResults, method: str) -> str:
    """The colour of a method, by its place in the file."""
    look = look_of(track.numbers[track.methods.index(method)])
    return str(look["color"])


def spread(n: int) -> list[float]:
    """Heights of n dots about a line, in parts of a line, the first at the top."""
    return [SPREAD * (0.5 - i / (n - 1)) for i in range(n)] if n > 1 else [0.0] * n
