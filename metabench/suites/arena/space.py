"""What the settings of trials are drawn from: ranges, and points of the unit cube."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import FiniteFloat, with_config

from metabench.suites.schema import strict

SCRAMBLE = 0
"""Seed of the Halton sequence."""
DIGITS = 3
"""Significant digits of a drawn setting."""


@with_config(strict)
@dataclass(frozen=True)
class Range:
    """What one setting is drawn from: numbers between two bounds, or choices."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log: bool = False
    whole: bool = False
    """Whole numbers only."""
    per_smoothness: bool = False
    """Divided by the problem's L."""
    choices: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [x for x in (self.low, self.high) if x is not None]
        if len(given) != (0 if self.choices else 2):
            raise ValueError("a range has low and high, or choices")
        if given and not given[0] < given[1]:
            raise ValueError(f"low = {self.low} is to be below high = {self.high}")
        if self.log and given and given[0] <= 0:
            raise ValueError(f"a logarithmic range cannot begin at {self.low}")
        said = [n for n in ("log", "whole", "per_smoothness") if getattr(self, n)]
        if self.choices and said:
            raise ValueError(f"choices are taken as they are: {said[0]} is for low and high")
        if self.whole and self.per_smoothness:
            raise ValueError("a whole number divided by L is none: whole or per_smoothness")
        if self.whole and (odd := [x for x in given if x != int(x)]):
            raise ValueError(f"whole numbers are drawn between whole numbers, not {odd[0]}")

    def at(self, u: float, smoothness: float) -> Any:
        """The value at ``u`` in [0, 1) on a problem with this L."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        assert self.low is not None and self.high is not None
        if self.whole:
            # Each whole number has an interval of its own, also on a logarithmic scale.
            low, high = self.low, self.high + 1
            x = math.exp(math.log(low) + u * math.log(high / low)) if self.log else (
                low + u * (high - low)
            )  # fmt: skip
            return int(min(self.high, max(self.low, math.floor(x))))
        if self.log:
            x = math.exp(math.log(self.low) + u * math.log(self.high / self.low))
        else:
            x = self.low + u * (self.high - self.low)
        return float(f"{x / (smoothness if self.per_smoothness else 1.0):.{DIGITS}g}")


def drawn(dimensions: int, trials: int) -> list[list[float]]:
    """Points of the unit cube for trials 1, 2, ..., by a scrambled Halton sequence: the first are
    the same for any number of trials."""
    if not dimensions:
        return []
    from scipy.stats import qmc

    sampler = qmc.Halton(dimensions, scramble=True, seed=SCRAMBLE)
    points: list[list[float]] = sampler.random(trials).tolist()
    return points
