"""Learning curves of several seeds as lines with a spread: what plots draw, without plotting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metabench import stats
from metabench.record import Curve


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


def points(curve: Curve, x: str, y: str) -> dict[float, tuple[float, float]]:
    """Step to (x, y) where a curve has both columns."""
    if x not in curve or y not in curve:
        return {}
    rows = zip(curve["step"], curve[x], curve[y], strict=True)
    return {s: (a, b) for s, a, b in rows if s is not None and a is not None and b is not None}


def line(curves: Sequence[Curve], y: str, x: str = "step", spread: str = "interval") -> Line | None:
    """The mean over curves of column ``y`` against the mean of ``x``, step by step; None where no
    curve has both.

    ``spread`` "interval": the 95 % t-interval over seeds; "range": least and greatest seed. A
    step counts where at least half of the curves have it.
    """
    known = [found for found in (points(curve, x, y) for curve in curves) if found]
    if not known:
        return None
    steps = sorted({s for found in known for s in found})
    rows = []
    for step in steps:
        at = [found[step] for found in known if step in found]
        if 2 * len(at) < len(known):
            continue
        values = [value for _, value in at]
        centre = stats.mean(values)
        half = stats.half_width(values) or 0.0
        low, high = (
            (centre - half, centre + half) if spread == "interval" else (min(values), max(values))
        )
        rows.append((stats.mean([where for where, _ in at]), centre, low, high))
    xs, ys, lows, highs = zip(*rows, strict=True)
    return Line(xs, ys, lows, highs, len(known))


_SUMMARY = re.compile(r"^lam/(?P<name>.+)\.(?P<what>mean|std|min|max)$")


@dataclass(frozen=True)
class Part:
    """One line of a trajectory of lam: an entry of a small lam, or the mean of the entries of a
    part of a large one, with their standard deviation."""

    label: str
    line: Line
    deviation: tuple[float, ...] | None = None

    @property
    def moved(self) -> float:
        """Distance travelled, in units of the largest value."""
        size = max(map(abs, self.line.y)) or 1.0
        pairs = zip(self.line.y, self.line.y[1:], strict=False)
        return sum(abs(b - a) for a, b in pairs) / size


def trajectory(curves: Sequence[Curve]) -> list[Part]:
    """Every part of lam that the curves hold, in the order of their names and numbers."""
    names = sorted({n for curve in curves for n in curve if n.startswith("lam/")}, key=_natural)
    out = []
    for name in names:
        summary = _SUMMARY.match(name)
        whole = summary is not None and f"lam/{summary['name']}.std" in names
        if whole and summary is not None and summary["what"] != "mean":
            continue
        found = line(curves, name, spread="range")
        if found is None or len(found.x) < 2:
            continue
        if not whole or summary is None:
            out.append(Part(name.removeprefix("lam/"), found))
            continue
        spread = line(curves, f"lam/{summary['name']}.std")
        same = spread is not None and spread.x == found.x
        out.append(Part(summary["name"], found, spread.y if spread and same else None))
    return out


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]


def spaced(values: Sequence[float], least: float) -> list[float]:
    """Positions near ``values`` (in any order) that are at least ``least`` apart, for labels."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[tuple[list[int], float]] = []
    for i in order:
        members, centre = [i], values[i]
        while groups:
            before, middle = groups[-1]
            gap = (centre - least * (len(members) - 1) / 2) - (
                middle + least * (len(before) - 1) / 2
            )
            if gap >= least:
                break
            groups.pop()
            total = len(before) + len(members)
            centre = (middle * len(before) + centre * len(members)) / total
            members = before + members
        groups.append((members, centre))
    out = [0.0] * len(values)
    for members, centre in groups:
        for place, i in enumerate(members):
            out[i] = centre + least * (place - (len(members) - 1) / 2)
    return out
