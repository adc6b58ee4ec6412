"""Where one method stands among the others of an arena: who it is shown better or worse than.

One method is compared with each of the others, so that Holm's correction is over as many tests as
there are others. With six common problems or more the test is Wilcoxon's over problems, and speaks
of problems like these. With fewer it cannot reach 5 %: then seeds are the repetitions (paired
t-test of the mean over the problems), and the verdict is about these problems alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.arena import Standing
from metabench.analysis.arena_pairs import Scores, duel
from metabench.analysis.comparisons import ALPHA, ROUND_OFF
from metabench.analysis.comparisons import FEWEST as FEWEST_SEEDS
from metabench.analysis.rankings import FEWEST as FEWEST_PROBLEMS

Verdict = Literal["better", "worse", "not told apart", "equal", "not tested"]


@dataclass(frozen=True)
class Against:
    """One method against another: how probable it is that it scores higher on a seed of a problem,
    with the 95 % interval, and ``p`` (Holm's; None: not tested) of the test over "problems" or
    "seeds"."""

    other: str
    wins: float
    low: float
    high: float
    p: float | None
    over: Literal["problems", "seeds"]
    verdict: Verdict


@dataclass(frozen=True)
class Place:
    """Where a method stands in a track, tuned or as shipped: on these problems of the track's
    ``of``, with those who played them all; ``left_out``: the others, with the reasons by
    problem."""

    track: str
    tuned: bool
    method: str
    problems: Sequence[str]
    of: int
    standings: Sequence[Standing]
    against: Sequence[Against]
    left_out: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    @property
    def own(self) -> Standing:
        """The row of the method."""
        return next(s for s in self.standings if s.row == self.method)

    def verdicts(self, verdict: Verdict) -> list[str]:
        """The others with this verdict, in the order of the standings."""
        found = {a.other for a in self.against if a.verdict == verdict}
        return [s.row for s in self.standings if s.row in found]


def against(scores: Scores, mine: str) -> list[Against]:
    """``mine`` against every other method on the problems that both have."""
    raw: dict[str, tuple[float | None, float]] = {}
    for other in scores:
        if other != mine:
            raw[other] = _test(scores[mine], scores[other])
    tested = [other for other, (p, _) in raw.items() if p is not None]
    corrected = dict(zip(tested, stats.holm([raw[o][0] or 0.0 for o in tested]), strict=True))
    out = []
    for other, (_, gain) in raw.items():
        found = duel(scores, mine, other)
        if found is None:
            continue
        over: Literal["problems", "seeds"] = (
            "problems" if found.problems >= FEWEST_PROBLEMS else "seeds"
        )
        p = corrected.get(other)
        out.append(
            Against(other, found.wins, found.low, found.high, p, over,
                    _verdict(scores[mine], scores[other], p, gain))
        )  # fmt: skip
    return out


Values = Mapping[str, Sequence[float]]
"""Problem to the scores of a method, in the order of the seeds."""


def _verdict(mine: Values, other: Values, p: float | None, gain: float) -> Verdict:
    if _equal(mine, other):
        return "equal"
    if p is None:
        return "not tested"
    if p >= ALPHA:
        return "not told apart"
    return "better" if gain > 0 else "worse"


def _pairs(mine: Values, other: Values) -> list[tuple[Sequence[float], Sequence[float]]]:
    return [(mine[name], other[name]) for name in mine if name in other]


def _equal(mine: Values, other: Values) -> bool:
    """Whether nothing but round-off tells two methods apart."""
    return all(
        math.isclose(x, y, rel_tol=ROUND_OFF, abs_tol=ROUND_OFF)
        for a, b in _pairs(mine, other)
        for x, y in zip(a, b, strict=True)
    )


def _test(mine: Values, other: Values) -> tuple[float | None, float]:
    """p of one method against another, not corrected (None: nothing to test), and a number that is
    above 0 where the first is better."""
    pairs = _pairs(mine, other)
    if not pairs or _equal(mine, other):
        return None, 0.0
    if len(pairs) >= FEWEST_PROBLEMS:
        a, b = ([stats.mean(pair[i]) for pair in pairs] for i in (0, 1))
        return stats.wilcoxon(a, b), _signed_ranks([x - y for x, y in zip(a, b, strict=True)])
    seeds = min(len(a) for a, _ in pairs)
    one, two = ([stats.mean([pair[i][s] for pair in pairs]) for s in range(seeds)] for i in (0, 1))
    gain = stats.mean(one) - stats.mean(two)
    return (stats.paired_t(one, two) if seeds >= FEWEST_SEEDS else None), gain


def _signed_ranks(differences: Sequence[float]) -> float:
    """Wilcoxon's statistic: the ranks of the sizes with the signs of the differences, added up."""
    left = [d for d in differences if d]
    sizes = stats.ranks([abs(d) for d in left], "min")
    return math.fsum(math.copysign(r, d) for r, d in zip(sizes, left, strict=True))
