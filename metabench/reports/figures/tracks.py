"""Panels of validation metrics against steps or costs: a line and a band for each row.

Axes are logarithmic where a linear one would hide most lines; bands are intervals of logarithms
there. Few or very scattered seeds are thin lines of their own instead of a band; where these would
bury the means, the last point has its interval as a bar, in every panel of the figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metabench.analysis.curves import Line, line
from metabench.analysis.results import Results
from metabench.core.text import counted
from metabench.reports.figures.drawn import FEWEST_POINTS, Drawn
from metabench.reports.figures.scales import ends, floor_of, logarithmic
from metabench.reports.figures.style import GREY, look_of, scale_of
from metabench.store.record import Curve
from metabench.suites.schema import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3
"""Seeds that a band is drawn of."""
WIDEST = 0.25
"""A band that is on average so much of the panel's height is not drawn."""
MOST_SEEDS = 40
"""Thin lines of single seeds in a panel: more would bury the means, and no panel has any then."""
ASIDE = 2.5
"""Points from one row's bar at the last x to the next row's."""
ROOM = 0.015
"""Of a panel's width, beside the lines, for each such bar."""
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
class Panel:
    """A column's lines, and how they are drawn on its axis."""

    name: str
    axis: Axes
    tracks: list[Track]
    scale: float
    logarithmic: bool = False
    floor: float | None = None
    """What stands for 0 on a logarithmic axis, where some seed has that."""

    @property
    def shown(self) -> list[list[float]]:
        """The values that each line shows."""
        return [[v * self.scale for v in t.mean.y[_from(t) :]] for t in self.tracks]

    @cached_property
    def whole(self) -> float:
        """How high the means are, on the axis's own scale."""
        values = [v for line in self.shown for v in line]
        return float(np.ptp(self._across(values))) or 1.0

    def height(self, values: Sequence[float]) -> Any:
        """Heights as parts of the panel's."""
        return self._across([v * self.scale for v in values]) / self.whole

    def _across(self, values: Sequence[float]) -> Any:
        return np.log(values) if self.logarithmic else np.asarray(values)

    @cached_property
    def loose(self) -> list[Track]:
        """Rows whose seeds are too few or too far apart for a band."""
        return [t for t in self.tracks if not t.level and _scattered(t, self.height)]


def draw_tracks(
    results: Results,
    curves: Callable[[str, str], list[Curve]],
    x: str,
    axes: Sequence[Axes],
    start: Callable[[Line], int],
    drawn: Drawn,
) -> None:
    """Draw the validation metric of every row against ``x``, a column on each axis, each row from
    the point ``start``; one that does not move along x becomes a level line. ``curves`` gives those
    of a row and column."""
    y = f"valid/{results.suite.metric}"
    panels = [
        Panel(
            column.label or column.id,
            axis,
            _tracks_of(results, curves, column, (y, x), start, drawn),
            scale_of(results),
        )
        for column, axis in zip(results.columns, axes, strict=True)
    ]
    if not results.suite.percent:
        small = results.suite.goal == "min"
        for panel, log in zip(panels, logarithmic([p.shown for p in panels], small), strict=True):
            if log:
                _to_logarithms(panel, (y, x), drawn)
    seeds = (v for p in panels for t in p.tracks for c in t.curves for v in c.get(y, []))
    # No interval reaches below 0 where no value of the metric does.
    least = -math.inf if any(v is not None and v < 0 for v in seeds) else 0.0
    bounds = least, 100.0 if results.suite.percent else math.inf
    crowded = any(sum(t.mean.seeds for t in panel.loose) > MOST_SEEDS for panel in panels)
    for panel in panels:
        _draw(panel, (y, x), bounds, crowded, drawn)


def _tracks_of(
    results: Results,
    curves: Callable[[str, str], list[Curve]],
    column: Column,
    columns: tuple[str, str],
    start: Callable[[Line], int],
    drawn: Drawn,
) -> list[Track]:
    tracks = []
    for number, row in enumerate(results.rows):
        known = curves(row.id, column.id)
        found = line(known, *columns)
        if found is None:
            continue
        label = row.label or row.id
        tracks.append(Track(number, label, known, found, start(found)))
        runs = len(results.table_cells[row.id, column.id].runs)
        if found.seeds < runs:
            name = column.label or column.id
            drawn.missing.append(f"{label} ({name}: {found.seeds} of {counted(runs, 'seed')})")
    return tracks


def _to_logarithms(panel: Panel, columns: tuple[str, str], drawn: Drawn) -> None:
    values = [v for t in panel.tracks for c in t.curves for v in c.get(columns[0], [])]
    least = min(v for v in values if v is not None)
    panel.logarithmic, panel.floor = True, floor_of(panel.shown, least)
    drawn.logarithmic, drawn.floored = True, drawn.floored or panel.floor is not None
    floor = (panel.floor or 0.0) / panel.scale
    panel.tracks = [_of_logarithms(t, *columns, floor) for t in panel.tracks]


def _draw(
    panel: Panel,
    columns: tuple[str, str],
    bounds: tuple[float, float],
    crowded: bool,
    drawn: Drawn,
) -> None:
    axis, tracks, loose = panel.axis, panel.tracks, panel.loose
    drawn.panels += 1
    if not tracks:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, "no curves", transform=axis.transAxes, ha="center", color=GREY)
        return
    if panel.logarithmic:
        axis.set_yscale("log")
        around = _around(panel, columns[0], crowded)
        axis.set_ylim(*ends(panel.shown, around, panel.floor))
    far = {v for t in tracks for v in (*t.mean.low[_from(t) :], *t.mean.high[_from(t) :])}
    drawn.varied = drawn.varied or len(far) > 1
    if crowded:
        axis.margins(x=0.05 + ROOM * len(loose))
    for track in tracks:
        drawn.seeds = max(drawn.seeds, track.mean.seeds)
        if track.level:
            drawn.levels.append(track.label)
            handle = _level(axis, track, panel.scale)
        else:
            drawn.lines += 1
            drawn.courses += len(track.mean.x) >= FEWEST_POINTS
            place = loose.index(track) + 1 if track in loose else 0
            spread = "band" if not place else "bar" if crowded else "seeds"
            handle = _moving(panel, track, spread, place, bounds, drawn, columns)
        drawn.handles.setdefault(track.label, handle)
    _note_coincident(tracks, panel.height, drawn, panel.name)


def _around(panel: Panel, y: str, crowded: bool) -> list[float]:
    """Values of what is drawn around means: bands, single seeds, bars at the end."""
    out: list[float] = []
    for track in panel.tracks:
        mean, scattered = track.mean, track in panel.loose
        if scattered and not crowded:
            out += [v for c in track.curves for v in c.get(y, [])[track.first :] if v is not None]
        elif not track.level:
            at = -1 if scattered else track.first
            out += [*mean.low[at:], *mean.high[at:]]
    return [v * panel.scale for v in out]


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
    panel: Panel,
    track: Track,
    spread: str,
    place: int,
    bounds: tuple[float, float],
    drawn: Drawn,
    columns: tuple[str, str],
) -> Any:
    """A mean from its first point, and its "band", its "seeds" or the "bar" of its last point, at
    this ``place`` beside others'; one point has a stroke. No interval leaves the ``bounds``."""
    axis, scale, look, first = panel.axis, panel.scale, look_of(track.number), track.first
    found, kind = track.mean, "logarithms" if panel.logarithmic else "interval"
    xs, ys = found.x[first:], [v * scale for v in found.y[first:]]
    every = max(1, len(xs) // 6)
    (handle,) = axis.plot(xs, ys, **look, markevery=(track.number % every, every))
    if found.seeds < 2:
        return handle
    if spread == "seeds":
        drawn.thin = True
        _seeds(axis, track, scale, columns)
        return handle
    below = [max(bounds[0], v * scale) for v in found.low[first:]]
    above = [min(bounds[1], v * scale) for v in found.high[first:]]
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
