"""Learning curves of several seeds as lines with a spread: what plots draw, without plotting."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metabench.analysis import stats
from metabench.store.record import Curve


@dataclass(frozen=True)
class Line:
    """A mean over seeds with what surrounds it, and how many seeds there were at most.

    ``low`` and ``high`` equal ``y`` where only one seed has a value.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


Points = dict[float, tuple[float, float]]


def points(curve: Curve, x: str, y: str) -> Points:
    """Step to (x, y) where a curve has both columns."""
    if x not in curve or y not in curve:
        return {}
    rows = zip(curve["step"], curve[x], curve[y], strict=True)
    return {s: (a, b) for s, a, b in rows if s is not None and a is not None and b is not None}


def line(curves: Sequence[Curve], y: str, x: str = "step", spread: str = "interval") -> Line | None:
    """The mean over curves of column ``y`` against the mean of ``x``, step by step; None where no
    curve has both. Where that mean goes back, because some runs have many short steps, the curves
    are put together at equal ``x`` instead.

    ``spread`` "interval": the 95 % t-interval over seeds; "range": least and greatest seed;
    "logarithms": the geometric mean and the t-interval of logarithms, of values above 0. A step
    counts where at least half of the curves have it.
    """
    known = [found for found in (points(curve, x, y) for curve in curves) if found]
    if not known:
        return None
    found = _together(known, spread)
    if any(b < a for a, b in pairwise(found.x)):
        return _together(_at_equal_x(known), spread)
    return found


MOST_LOG = 700.0
"""exp of more is no number."""
MOST_POINTS = 50
"""Of a line at equal x."""


def _at_equal_x(known: Sequence[Points]) -> list[Points]:
    """Each curve at common values of x, as far as it goes: its last value by then."""
    every = sorted({x for found in known for x, _ in found.values()})
    grid = every[:: max(1, len(every) // MOST_POINTS)]
    out = []
    for found in known:
        rows = sorted(found.values(), key=lambda row: row[0])
        xs = [x for x, _ in rows]
        inside = [x for x in grid if xs[0] <= x <= xs[-1]]
        out.append({x: (x, rows[bisect_right(xs, x) - 1][1]) for x in inside})
    return out


def _together(known: Sequence[Points], spread: str) -> Line:
    """The mean over curves where at least half of them have a point, and their spread."""
    steps = sorted({s for found in known for s in found})
    rows = []
    for step in steps:
        at = [found[step] for found in known if step in found]
        if 2 * len(at) < len(known):
            continue
        values = [value for _, value in at]
        rows.append((stats.mean([where for where, _ in at]), *_spread(values, spread)))
    xs, ys, lows, highs = zip(*rows, strict=True)
    return Line(xs, ys, lows, highs, len(known))


def _spread(values: list[float], spread: str) -> tuple[float, float, float]:
    """Mean, low and high of the values of a step."""
    if spread == "logarithms":
        found = _spread([math.log(v) for v in values], "interval")
        centre, low, high = (math.exp(min(v, MOST_LOG)) for v in found)
        return centre, low, high
    centre = stats.mean(values)
    if spread == "range":
        return centre, min(values), max(values)
    half = stats.half_width(values) or 0.0
    return centre, centre - half, centre + half


_SUMMARY = re.compile(r"^lam/(?P<name>.+)\.mean$")


@dataclass(frozen=True)
class Part:
    """One line of a trajectory of lam.

    An entry of a small lam; or (``large``) the root mean square of the entries of a part of a
    large one, less what it was at the start.
    """

    label: str
    line: Line
    large: bool = False

    @property
    def moved(self) -> float:
        """Distance travelled; of an entry in units of its largest value."""
        size = 1.0 if self.large else max(map(abs, self.line.y)) or 1.0
        return sum(abs(b - a) for a, b in pairwise(self.line.y)) / size


def trajectory(curves: Sequence[Curve]) -> list[Part]:
    """Every part of lam that the curves hold, in the order of their names and numbers."""
    names = sorted({n for curve in curves for n in curve if n.startswith("lam/")}, key=_natural)
    large = {
        match["name"]
        for name in names
        if (match := _SUMMARY.match(name)) and f"lam/{match['name']}.std" in names
    }
    summaries = {f"lam/{n}.{what}" for n in large for what in ("mean", "std", "min", "max")}
    parts = [
        Part(name.removeprefix("lam/"), found)
        for name in names
        if name not in summaries and (found := line(curves, name, spread="range"))
    ]
    for name in sorted(large, key=_natural):
        sizes = [_growth(curve, name) for curve in curves]
        found = line(sizes, "size", spread="range")
        if found is not None:
            parts.append(Part(name, found, large=True))
    return [part for part in parts if len(part.line.x) > 1]


def _growth(curve: Curve, name: str) -> Curve:
    """Root mean square of a part's entries, from their mean and deviation, less its first value."""
    means, deviations = curve.get(f"lam/{name}.mean", []), curve.get(f"lam/{name}.std", [])
    sizes = [
        None if m is None or d is None else math.hypot(m, d)
        for m, d in zip(means, deviations, strict=True)
    ]
    first = next((s for s in sizes if s is not None), 0.0)
    return {"step": curve["step"], "size": [None if s is None else s - first for s in sizes]}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]


def spaced(values: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Positions between ``low`` and ``high`` near ``values`` (in any order), at least ``least``
    apart, for labels; where they do not fit, evenly spread."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    if len(order) > 1:
        least = min(least, (high - low) / (len(order) - 1))
    out = [min(max(v, low), high) for v in values]
    # Clusters first spread around their centre, then both ends are kept inside.
    for _ in range(2 * len(order)):
        for a, b in pairwise(order):
            short = least - (out[b] - out[a])
            if short > 0:
                out[a], out[b] = out[a] - short / 2, out[b] + short / 2
    floor = low
    for i in order:
        out[i] = floor = max(out[i], floor)
        floor += least
    ceiling = high
    for i in reversed(order):
        out[i] = ceiling = min(out[i], ceiling)
        ceiling -= least
    return out
