"""A panel of validation metrics against steps or costs: a line and a band for each row.

The axis is logarithmic where positive values span powers of ten; bands are intervals of logarithms
there. Few or very scattered seeds are thin lines of their own instead of a band; where these would
bury the means, the last point has its interval as a bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metabench.analysis.curves import Line, line
from metabench.analysis.results import Results
from metabench.core.text import counted, listed
from metabench.reports.figures.style import GREY, look_of, scale_of
from metabench.store.record import Curve
from metabench.suites.schema import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPAN = 100.0
"""An axis is logarithmic where the largest value is more than so many times the smallest."""
FEWEST = 3
"""Seeds that a band is drawn of."""
WIDEST = 0.25
"""A band that is on average so much of the panel's height is not drawn."""
MOST_SEEDS = 40
"""Thin lines of single seeds in a panel: more would bury the means."""
ASIDE = 2.5
"""Points from one row's bar at the last x to the next row's."""
ROOM = 0.015
"""Of a panel's width, beside the lines, for each such bar."""
FEWEST_POINTS = 3
"""Of a curve: a start and one look at a run are two numbers, which a table tells as well."""
CLOSE = 0.01
"""Two lines that stay so near, as part of the panel's height, are said to coincide."""


class Track(NamedTuple):
    """What is drawn of a row: its number, name, finished curves, mean line and first point."""

    number: int
    label: str
    curves: list[Curve]
    mean: Line
    first: int

    @property
    def level(self) -> bool:
        """Whether it does not move along x."""
        return len(set(self.mean.x)) < 2


@dataclass
class Drawn:
    """What has been drawn of validation metrics: handles by label, and what footnotes tell."""

    handles: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    alike: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    panels: int = 0
    seeds: int = 0
    bands: set[str] = field(default_factory=set)
    """Of which kinds bands are: "interval", "logarithms"."""
    thin: bool = False
    bars: bool = False
    floored: bool = False
    logarithmic: bool = False
    points: int = 0
    """Of the longest line that moves along x."""
    varied: bool = False
    """Whether the values of some panel differ."""

    def footnotes(self, level: str) -> list[str]:
        """What lines and shades are, what coincides and what is missing; ``level`` explains the
        level lines."""
        out = [self._spread()] if self.seeds > 1 else ["One finished seed: other seeds may differ."]
        if self.floored:
            out.append("Values of 0 or less are drawn at the bottom of a logarithmic axis.")
        if self.levels:
            out.append(f"Dashed level lines: {listed(dict.fromkeys(self.levels))}, {level}.")
        if self.alike:
            together = [f"{listed(them)} ({self._where(at)})" for them, at in self.alike.items()]
            out.append(f"Lines that coincide: {'; '.join(together)}.")
        if self.missing:
            out.append(f"Incomplete: {'; '.join(self.missing)}.")
        return out

    def nothing(self) -> str:
        """Why these lines show nothing that a table does not tell; empty where they do."""
        if self.points < FEWEST_POINTS:
            return "no run is looked at more than once on its way"
        return "" if self.varied else "all values are equal"

    def _spread(self) -> str:
        kinds = {"interval": "over seeds", "logarithms": "of logarithms on logarithmic axes"}
        parts = ["Mean over finished seeds"]
        if self.logarithmic:
            parts[0] += ", geometric on logarithmic axes"
        if self.bands:
            what = ", ".join(text for kind, text in kinds.items() if kind in self.bands)
            parts.append(f"shade: 95 % t-interval {what}")
        if self.thin:
            parts.append("thin lines: single seeds, where they are fewer than three or far apart")
        if self.bars:
            parts.append(
                "bars at the end: that interval of the last point, where seeds are far apart and "
                "too many to draw"
                if self.bands
                else "bars at the end: 95 % t-interval of the last point; seeds are far apart"
            )
        return "; ".join(parts) + "."

    def _where(self, panels: list[str]) -> str:
        if len(panels) == self.panels:
            return "in every panel" if self.panels > 1 else "all along"
        return listed(panels) if len(panels) < 3 else f"in {len(panels)} of {self.panels} panels"


def panel(
    results: Results,
    curves: Callable[[str, str], list[Curve]],
    column: Column,
    x: str,
    axis: Axes,
    start: Callable[[Line], int],
    drawn: Drawn,
) -> None:
    """Draw the validation metric of every row against ``x``, each from the point ``start``; a row
    that does not move along x becomes a level line. ``curves`` gives those of a row and column."""
    y, name = f"valid/{results.suite.metric}", column.label or column.id
    tracks = []
    for number, row in enumerate(results.rows):
        known = curves(row.id, column.id)
        found = line(known, y, x)
        if found is None:
            continue
        label = row.label or row.id
        tracks.append(Track(number, label, known, found, start(found)))
        runs = len(results.table_cells[row.id, column.id].runs)
        if found.seeds < runs:
            drawn.missing.append(f"{label} ({name}: {found.seeds} of {counted(runs, 'seed')})")
    drawn.panels += 1
    if not tracks:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, "no curves", transform=axis.transAxes, ha="center", color=GREY)
        return
    scale = scale_of(results)
    shown = [v * scale for track in tracks for v in track.mean.y[_from(track) :]]
    limits = None if results.suite.percent else decades(shown)
    if limits:
        drawn.logarithmic = True
        axis.set_yscale("log")
        axis.set_ylim(*limits)
        drawn.floored = drawn.floored or min(shown) <= 0
        tracks = [_of_logarithms(track, y, x, limits[0] / scale) for track in tracks]
        shown = [v * scale for track in tracks for v in track.mean.y[_from(track) :]]
    # Heights are compared as parts of the panel, on its own scale.
    across = np.log if limits else np.asarray
    whole = float(np.ptp(across(np.asarray(shown)))) or 1.0

    def height(values: Sequence[float]) -> Any:
        return across(np.asarray(values) * scale) / whole

    ends = {v for t in tracks for v in (*t.mean.low[_from(t) :], *t.mean.high[_from(t) :])}
    drawn.varied = drawn.varied or len(ends) > 1
    loose = [t for t in tracks if not t.level and _scattered(t, height)]
    crowded = sum(t.mean.seeds for t in loose) > MOST_SEEDS
    if crowded:
        axis.margins(x=0.05 + ROOM * len(loose))
    for track in tracks:
        drawn.seeds = max(drawn.seeds, track.mean.seeds)
        drawn.points = max(drawn.points, 0 if track.level else len(track.mean.x))
        if track.level:
            drawn.levels.append(track.label)
            handle = _level(axis, track, scale)
        else:
            place = loose.index(track) + 1 if track in loose else 0
            spread = "band" if not place else "bar" if crowded else "seeds"
            handle = _moving(results, axis, track, spread, place, drawn, (y, x))
        drawn.handles.setdefault(track.label, handle)
    _note_coincident(tracks, height, drawn, name)


def decades(values: Sequence[float]) -> tuple[float, float] | None:
    """Limits of a logarithmic axis, where positive values span more than ``SPAN``, and none is
    negative; None elsewhere."""
    above = [v for v in values if v > 0]
    if not above or min(values) < 0 or max(above) <= SPAN * min(above):
        return None
    room = max(2.0, (max(above) / min(above)) ** 0.05)
    return min(above) / room, room * max(above)


def _from(track: Track) -> int:
    """The first point that is drawn: of a level line the last."""
    return len(track.mean.y) - 1 if track.level else track.first


def _of_logarithms(track: Track, y: str, x: str, floor: float) -> Track:
    """The same with geometric means and intervals of logarithms; ``floor`` instead of less."""
    raised = [
        curve | {y: [None if v is None else max(v, floor) for v in curve[y]]}
        if y in curve
        else curve
        for curve in track.curves
    ]
    mean = line(raised, y, x, spread="logarithms")
    assert mean is not None
    return track._replace(curves=raised, mean=mean)


def _level(axis: Axes, track: Track, scale: float) -> Any:
    look = look_of(track.number)
    dashes = (0, (5, 2))
    value = track.mean.y[-1] * scale
    # The marker of the row at the right end only.
    return axis.axhline(value, **look | {"linestyle": dashes, "lw": 1.2}, markevery=[1])


def _moving(
    results: Results,
    axis: Axes,
    track: Track,
    spread: str,
    place: int,
    drawn: Drawn,
    columns: tuple[str, str],
) -> Any:
    """A mean from its first point, and its "band", its "seeds" or the "bar" of its last point, at
    this ``place`` beside others'; one point has a stroke."""
    scale, look, first = scale_of(results), look_of(track.number), track.first
    found, kind = track.mean, "logarithms" if axis.get_yscale() == "log" else "interval"
    xs, ys = found.x[first:], [v * scale for v in found.y[first:]]
    every = max(1, len(xs) // 6)
    (handle,) = axis.plot(xs, ys, **look, markevery=(track.number % every, every))
    lows, highs = found.low[first:], found.high[first:]
    if found.seeds < 2:
        return handle
    if spread == "seeds":
        drawn.thin = True
        _seeds(axis, track, scale, columns)
        return handle
    below, above = ([v * scale for v in values] for values in (lows, highs))
    if results.suite.percent:
        below, above = [max(0.0, v) for v in below], [min(100.0, v) for v in above]
    if spread == "bar":
        drawn.bars = True
        _end_bar(axis, look["color"], place, xs[-1], below[-1], above[-1])
        return handle
    drawn.bands.add(kind)
    if len(xs) > 1:
        axis.fill_between(xs, below, above, color=look["color"], alpha=0.15, lw=0)
    else:
        axis.vlines(xs, below, above, color=look["color"], alpha=0.4, lw=1.2)
    return handle


def _scattered(track: Track, height: Callable[[Sequence[float]], Any]) -> bool:
    """Whether a row has seeds too few or too far apart for a band."""
    lows, highs = (values[track.first :] for values in (track.mean.low, track.mean.high))
    if track.mean.seeds < 2:
        return False
    return track.mean.seeds < FEWEST or float(np.mean(height(highs) - height(lows))) > WIDEST


def _end_bar(axis: Axes, colour: str, place: int, x: float, low: float, high: float) -> None:
    """A stroke from ``low`` to ``high``, beside those of other rows that end at the same ``x``."""
    from matplotlib.transforms import ScaledTranslation

    figure = axis.get_figure()
    assert figure is not None
    aside = ScaledTranslation(ASIDE * place / 72, 0, figure.dpi_scale_trans)
    axis.plot([x, x], [low, high], color=colour, lw=1.2, transform=axis.transData + aside)
    # Only what is drawn in plain data coordinates widens an axis by itself.
    axis.update_datalim([(x, low), (x, high)])
    axis.autoscale_view()


def _seeds(axis: Axes, track: Track, scale: float, columns: tuple[str, str]) -> None:
    """Each seed as a thin line; a point where it has one only."""
    look = look_of(track.number)
    for curve in track.curves:
        found = line([curve], *columns)
        if found is None:
            continue
        # The first point of the mean is that of the seeds: 0 is not on a logarithmic axis.
        xs, ys = found.x[track.first :], [v * scale for v in found.y[track.first :]]
        point = "." if len(xs) == 1 else None
        axis.plot(xs, ys, color=look["color"], lw=0.6, alpha=0.5, marker=point, ms=3, zorder=1.5)


def _note_coincident(
    tracks: list[Track], height: Callable[[Sequence[float]], Any], drawn: Drawn, name: str
) -> None:
    groups: list[list[Track]] = []
    for track in tracks:
        near = [g for g in groups if any(_coincide(track, other, height) for other in g)]
        groups = [g for g in groups if g not in near] + [[*(t for g in near for t in g), track]]
    for group in groups:
        if len(group) > 1:
            labels = tuple(t.label for t in sorted(group, key=lambda t: t.number))
            drawn.alike.setdefault(labels, []).append(name)


def _coincide(a: Track, b: Track, height: Callable[[Sequence[float]], Any]) -> bool:
    """Whether one line hides the other wherever both are."""
    if a.level or b.level:
        both = a.level and b.level
        return both and abs(float(np.diff(height([a.mean.y[-1], b.mean.y[-1]]))[0])) < CLOSE
    ax, bx = (np.asarray(t.mean.x[t.first :]) for t in (a, b))
    ay, by = (height(t.mean.y[t.first :]) for t in (a, b))
    if len(ax) < 2 or len(bx) < 2:
        return False
    inside = (ax >= bx[0]) & (ax <= bx[-1])
    # A line that only begins like another is seen where it goes on.
    if inside.sum() < 2 or np.ptp(ax[inside]) < 0.9 * max(np.ptp(ax), np.ptp(bx)):
        return False
    return bool(np.abs(np.interp(ax[inside], bx, by) - ay[inside]).max() < CLOSE)
