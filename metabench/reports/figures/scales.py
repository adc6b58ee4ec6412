"""Which vertical axes are logarithmic, and where they begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

SPAN = 100.0
"""An axis is logarithmic where the largest value is more than so many times the smallest."""
HIDDEN = 8.0
"""And, of a metric that is to be small, where it is more than so many times what half of the lines
have: on a linear axis these are one line at the bottom."""
WIDER = 10.0
"""Intervals and single seeds widen a logarithmic axis by no more than this factor each way."""

Lines = Sequence[Sequence[float]]
"""The values of each line of a panel."""


def logarithmic(panels: Sequence[Lines], small: bool) -> list[bool]:
    """Whether each panel of one metric has a logarithmic axis: all have one where one needs it and
    all can have it. ``small``: whether the metric is to be small."""
    needed = [_needed(lines, small) for lines in panels]
    able = all(_able(lines) for lines in panels if lines)
    return [bool(lines) and any(needed) for lines in panels] if able else needed


def floor_of(lines: Lines, least: float) -> float | None:
    """What stands for 0 on a logarithmic axis; None where ``least``, the least of any seed, is
    more."""
    if least > 0:
        return None
    return min(v for values in lines for v in values if v > 0) / 2.0


def ends(lines: Lines, around: Sequence[float], floor: float | None) -> tuple[float, float]:
    """Where a logarithmic axis of these positive lines begins and ends; ``around`` are values of
    intervals and seeds, ``floor`` stands for 0 and is the bottom."""
    low, high = (end(v for values in lines for v in values) for end in (min, max))
    down = max(min([low, *around]), low / WIDER) if floor is None else floor
    up = min(max([high, *around]), high * WIDER)
    room = max(1.1, (up / down) ** 0.04)
    return down / room if floor is None else down, up * room


def _able(lines: Lines) -> bool:
    """Whether no value is negative and some is positive."""
    values = [v for line in lines for v in line]
    return min(values) >= 0 and max(values) > 0


def _needed(lines: Lines, small: bool) -> bool:
    if not lines or not _able(lines):
        return False
    above = [v for line in lines for v in line if v > 0]
    usual = median(median(line) for line in lines)
    return max(above) > SPAN * min(above) or (small and max(above) > HIDDEN * usual)
