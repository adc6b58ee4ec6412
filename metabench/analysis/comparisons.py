"""Which rows of a column differ: one family of tests, from which marks and verdicts are read.

Every pair of rows is tested by the paired t-test over the seeds that both have: a seed fixes the
data split, the first values and the test episodes. Holm's correction is over all pairs of the
column, and not over those with the best row alone: which row looks best is known only from the same
numbers, and with nine equal rows best-against-rest tests would call one worse in 9 to 13 tables of
a hundred, where they promise 5 (``tests/analysis/test_comparisons.py`` simulates both).

A row that some other is shown to be better than is shown to be worse. So a claim that holds and a
mark in the table are the same test, and cannot contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import NamedTuple

from metabench.analysis import stats

ALPHA = stats.ALPHA
POWER = 0.8
FEWEST = 3
"""Common seeds from which on a pair is tested: two leave one degree of freedom."""
ROUND_OFF = 1e-9
"""The part of a metric that is no difference: without luck two right rows end there, not at 0."""

Values = Mapping[str, Mapping[int, float]]
"""Row to seed to number."""


@dataclass(frozen=True)
class Pair:
    """How much better one row is than another: mean gain over ``seeds`` common seeds, half-width of
    its 95 % t-interval, deviation of the differences, and ``p`` (Holm's; None: not tested)."""

    gain: float
    pm: float | None
    spread: float | None
    seeds: int
    p: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the two rows are shown to differ."""
        return self.p is not None and self.p < ALPHA

    @property
    def reversed(self) -> Pair:
        """The same test, seen from the other row."""
        return replace(self, gain=-self.gain)


class Detectable(NamedTuple):
    """Of the pairs of a column: each has differences that scatter by themselves."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Comparisons:
    """Every pair of rows of a column that have common seeds; gains are above 0 where the first row
    is better."""

    pairs: Mapping[tuple[str, str], Pair]
    logs: bool = False
    """Whether gains are differences of logarithms."""

    def of(self, row: str, other: str) -> Pair | None:
        """How much better ``row`` is than ``other``; None where they have no common seed."""
        found = self.pairs.get((other, row))
        return self.pairs.get((row, other)) if found is None else found.reversed

    def never_better(self, rows: Collection[str]) -> Comparisons:
        """The same with no pair shown in which one of ``rows`` is the better one: what is known of
        these flatters them."""
        pairs = {
            (a, b): replace(pair, p=1.0)
            if pair.shown and (a if pair.gain > 0 else b) in rows
            else pair
            for (a, b), pair in self.pairs.items()
        }
        return replace(self, pairs=pairs)

    @property
    def tests(self) -> int:
        """How many pairs are tested."""
        return sum(pair.p is not None for pair in self.pairs.values())

    @property
    def worse(self) -> set[str]:
        """The rows that some other is shown to be better than."""
        return {(b if pair.gain > 0 else a) for (a, b), pair in self.pairs.items() if pair.shown}

    @property
    def detectable(self) -> Detectable | None:
        """The difference that is shown with 80 % power in Holm's first step, by the deviation of
        each tested pair's differences; None where nothing is tested."""
        tested = [p for p in self.pairs.values() if p.p is not None and p.spread is not None]
        if not tested:
            return None
        sizes = [
            stats.detectable(p.spread or 0.0, p.seeds, ALPHA / len(tested), POWER) for p in tested
        ]
        return Detectable(min(sizes), median(sizes), max(sizes))


def compare(
    values: Values, goal: stats.Goal = "max", *, logs: bool = False, resolution: float = 0.0
) -> Comparisons:
    """Every pair of rows tested; with ``logs`` on logarithms, where all numbers are positive;
    numbers below ``resolution``, unless it is 0, count as that."""
    if resolution:
        values = {
            row: {seed: resolved(v, resolution) for seed, v in of.items()}
            for row, of in values.items()
        }
    logs = logs and all(v > 0 for row in values.values() for v in row.values())
    if logs:
        values = {r: {s: math.log(v) for s, v in row.items()} for r, row in values.items()}
    sign = 1 if goal == "max" else -1
    pairs, raw = {}, {}
    for a, b in combinations(values, 2):
        common = [seed for seed in values[a] if seed in values[b]]
        if not common:
            continue
        one, two = [values[a][s] for s in common], [values[b][s] for s in common]
        pairs[a, b], p = paired(one, two, sign, logs=logs)
        if p is not None:
            raw[a, b] = p
    for at, p in zip(raw, stats.holm([*raw.values()]), strict=True):
        pairs[at] = replace(pairs[at], p=p)
    return Comparisons(pairs, logs)


def resolved(value: float, resolution: float) -> float:
    """A number as it is compared: what is below the resolution counts as that; 0: none is."""
    return max(value, resolution) if resolution else value


def paired(
    one: Sequence[float], two: Sequence[float], sign: int = 1, *, logs: bool = False
) -> tuple[Pair, float | None]:
    """How much ``one`` is above ``two`` (``sign`` -1: below), number by number, and the p of the
    paired t-test before any correction (None: not tested); ``logs``: they are logarithms."""
    gains = [sign * (x - y) for x, y in zip(one, two, strict=True)]
    spread = stats.std(gains)
    pair = Pair(stats.mean(gains), stats.half_width(gains), spread, len(gains))
    nothing = ROUND_OFF * (1.0 if logs else max(map(abs, [*one, *two])))
    if len(gains) < FEWEST or spread is None or spread <= nothing:
        return pair, None
    return pair, stats.paired_t(one, two) or 0.0
