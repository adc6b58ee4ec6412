"""Statistics of few runs: intervals, robust means, paired tests, rankings, profiles.

Scores are one number a run. scipy does the work; nothing here knows of records or tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

Goal = Literal["max", "min"]
ALPHA = 0.05
"""The level of every test."""


def mean(values: Sequence[float]) -> float:
    """The mean; raises ValueError where there are no values or one is not finite."""
    if not len(values) or not all(math.isfinite(v) for v in values):
        raise ValueError(f"no mean of {list(values)}")
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1 in the denominator; None for one value."""
    centre, n = mean(values), len(values)
    if n == 1:
        return None
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half-width of the t-interval of the mean; None for one value."""
    spread, n = std(values), len(values)
    if spread is None:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + level) / 2)) * spread / math.sqrt(n)


def iqm(values: Sequence[float]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter of the values
    (a quarter is rounded down), as in Agarwal et al. 2021."""
    mean(values)  # refuses what has none
    cut = len(values) // 4
    return mean(sorted(values)[cut : len(values) - cut])


def bootstrap(
    groups: Sequence[Sequence[float]],
    statistic: Callable[[Array], float],
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of ``statistic`` of all values, resampled within each group.

    One group a task, so that no resample has more runs of one task than there were (stratified;
    Agarwal et al. 2021). ``statistic`` takes the values of all groups as one array.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=float) for group in groups]
    drawn = [
        statistic(np.concatenate([generator.choice(a, len(a)) for a in arrays]))
        for _ in range(samples)
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def iqm_interval(
    groups: Sequence[Sequence[float]], *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """:func:`bootstrap` of the interquartile mean, all resamples at once."""
    import numpy as np

    generator = np.random.default_rng(seed)
    drawn = [generator.choice(np.asarray(g, dtype=float), (samples, len(g))) for g in groups]
    ordered = np.sort(np.concatenate(drawn, axis=1), axis=1)
    cut = ordered.shape[1] // 4
    means = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test; None below two pairs, and where differences that are all
    the same leave nothing to chance."""
    difference = [x - y for x, y in zip(a, b, strict=True)]
    if len(difference) < 2:
        return None
    spread = std(difference) or 0.0
    if spread <= 1e-15 * max(map(abs, [*a, *b])):
        return None
    from scipy.special import stdtr

    t = mean(difference) / (spread / math.sqrt(len(difference)))
    return float(2 * stdtr(len(difference) - 1, -abs(t)))


def detectable(spread: float, n: int, alpha: float, power: float) -> float:
    """The true mean of n paired differences of deviation ``spread`` that a two-sided t-test at
    ``alpha`` shows with probability ``power``."""
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    return float(nctdtrinc(n - 1, 1 - power, critical)) * spread / math.sqrt(n)


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test, without equal pairs; None where all are.

    With n pairs p is never below 2^(1 - n): at least 6 are needed to reach 5 %.
    """
    difference = [x - y for x, y in zip(a, b, strict=True) if x != y]
    if not difference:
        return None
    from scipy.stats import wilcoxon as test

    return float(test(difference).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for being many (Holm 1979), in the order given."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over blocks, 1 the best, and what differences of them mean.

    ``p``: of the Friedman test that all are alike, whose ``statistic`` is chi-squared with one
    degree of freedom less than there are methods. ``critical``: where that test rejects, two mean
    ranks further apart than this differ at 5 % for all pairs together (Nemenyi).
    """

    ranks: tuple[float, ...]
    blocks: int
    p: float
    critical: float
    statistic: float

    @property
    def rejected(self) -> bool:
        """Whether the Friedman test finds a difference; where it does not, no pair has one."""
        return self.p < ALPHA

    def better(self, i: int) -> list[int]:
        """The methods that method ``i`` is shown to be worse than."""
        return [
            j
            for j in range(len(self.ranks))
            if self.rejected and self.ranks[i] - self.ranks[j] > self.critical
        ]

    def cliques(self) -> list[tuple[int, ...]]:
        """Largest groups of methods (indices, best first) that no test tells apart."""
        order = sorted(range(len(self.ranks)), key=lambda i: self.ranks[i])
        groups: list[tuple[int, ...]] = []
        for start in range(len(order)):
            group = tuple(i for i in order[start:] if order[start] not in self.better(i))
            if len(group) > 1 and not any(set(group) <= set(g) for g in groups):
                groups.append(group)
        return groups


def ranks(values: Sequence[float], goal: Goal = "max") -> list[float]:
    """The rank of each value, 1 the best; values that round-off alone tells apart share a rank."""
    size = max(map(abs, values), default=0.0) or 1.0
    order = sorted(values, reverse=goal == "max")
    first = [order[0]] if order else []
    for value in order[1:]:
        first.append(first[-1] if abs(value - first[-1]) <= 1e-9 * size else value)
    place = dict(zip(order, first, strict=True))
    shared = [place[v] for v in values]
    # Of k that share a value, the best has rank 1 + those before, and all the mean of theirs.
    of = {v: first.index(v) + (first.count(v) + 1) / 2 for v in first}
    return [of[v] for v in shared]


def ranking(scores: Sequence[Sequence[float]], goal: Goal = "max") -> Ranking:
    """Friedman test and Nemenyi's critical difference (Demsar 2006).

    ``scores`` [blocks][methods], no holes, ties shared. Raises ValueError below three methods or
    two blocks, where the test is not defined.
    """
    import numpy as np
    from scipy.stats import chi2, rankdata

    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 3:
        raise ValueError(f"a ranking needs 3 methods and 2 blocks, not {table.shape[::-1]}")
    n, k = table.shape
    ranks = rankdata(-table if goal == "max" else table, axis=1)
    sums = ranks.sum(axis=0)
    tied = sum(
        float((counts**3 - counts).sum())
        for counts in (np.unique(row, return_counts=True)[1] for row in ranks)
    )
    # Corrected for ties as in scipy.stats.friedmanchisquare, which warns on few blocks.
    scale = 1 - tied / (n * k * (k * k - 1))
    statistic = (12 / (n * k * (k + 1)) * float((sums**2).sum()) - 3 * n * (k + 1)) / (scale or 1)
    return Ranking(
        tuple(float(r) for r in ranks.mean(axis=0)),
        n,
        float(chi2.sf(statistic, k - 1)) if scale else 1.0,
        critical_difference(k, n),
        statistic if scale else 0.0,
    )


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's: two of so many mean ranks over so many blocks differ at 5 % where they lie further
    apart (Demsar 2006, section 3.2.2)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - ALPHA, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def profile(
    groups: Sequence[Sequence[float]], thresholds: Sequence[float], goal: Goal = "max"
) -> list[float]:
    """Share of runs that are at least as good as each threshold, every group weighing the same
    (performance profile; Agarwal et al. 2021 have strictly better)."""

    def share(group: Sequence[float], at: float) -> float:
        good = [(v >= at) if goal == "max" else (v <= at) for v in group]
        return sum(good) / len(good)

    return [mean([share(group, at) for group in groups]) for at in thresholds]
