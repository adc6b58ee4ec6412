"""Where one method stands among the others of an arena: who it is shown better or worse than.

One method is compared with each of the others, so that Holm's correction is over as many tests as
there are others. There are two verdicts, which generalise to different things. Where seeds are the
repetitions (paired t-test of the mean over the problems) it is about these problems alone. Where
problems are (Wilcoxon's test, from six on) it is about problems like these, and with many others on
few problems it cannot reach 5 % however large the difference is (:attr:`Place.least_p`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.arena.pairs import Runs, duel, matched
from metabench.analysis.arena.scores import Cells, Standing
from metabench.analysis.comparisons import ALPHA, ROUND_OFF
from metabench.analysis.comparisons import FEWEST as FEWEST_SEEDS
from metabench.analysis.rankings import FEWEST as FEWEST_PROBLEMS

Verdict = Literal["better", "worse", "not told apart", "equal", "not tested"]
Over = Literal["seeds", "problems"]
"""What the repetitions of a test are."""


@dataclass(frozen=True)
class Outcome:
    """What a test says of one method against another; ``p`` is Holm's, None: not tested."""

    p: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Against:
    """One method against another: how probable it is that it scores higher on a seed of a problem,
    with the 95 % interval over ``over``; and what the test over "seeds" says, from six problems on
    also the one over "problems"."""

    other: str
    wins: float
    low: float
    high: float
    over: Over
    tested: Mapping[Over, Outcome]


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

    @property
    def overs(self) -> list[Over]:
        """Which tests there are."""
        return [*dict.fromkeys(over for a in self.against for over in a.tested)]

    @property
    def least_p(self) -> float | None:
        """The least p, after Holm's correction, that the test over problems can have with so many
        problems and others; None where there is none."""
        tests = sum(
            "problems" in a.tested and a.tested["problems"].p is not None for a in self.against
        )
        return min(1.0, tests * 2.0 ** (1 - len(self.problems))) if tests else None

    def verdicts(self, verdict: Verdict, over: Over = "seeds") -> list[str]:
        """The others with this verdict of the test over "seeds" or "problems", in the order of the
        standings."""
        found = {
            a.other for a in self.against if over in a.tested and a.tested[over].verdict == verdict
        }
        return [s.row for s in self.standings if s.row in found]


def against(scores: Cells, mine: str) -> list[Against]:
    """``mine`` against every other method on the problems that both have."""
    others = [other for other in scores if other != mine]
    tested: dict[str, dict[Over, Outcome]] = {other: {} for other in others}
    for over, test in _TESTS.items():
        for other, found in _corrected(scores, mine, others, test).items():
            tested[other][over] = found
    out = []
    for other in others:
        if (one := duel(scores, mine, other)) is not None:
            out.append(Against(other, one.wins, one.low, one.high, one.over, tested[other]))
    return out


Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""The scores of two methods on each problem that both have."""
Result = tuple[float | None, float]
"""p of one method against another, not corrected (None: nothing to test), and a number that is
above 0 where the first is better."""
Test = Callable[[Pairs], Result | None]


def _verdict(equal: bool, p: float | None, gain: float) -> Verdict:
    if equal:
        return "equal"
    if p is None:
        return "not tested"
    if p >= ALPHA:
        return "not told apart"
    return "better" if gain > 0 else "worse"


def _equal(mine: Runs, other: Runs) -> bool:
    """Whether nothing but round-off tells two methods apart."""
    return all(
        math.isclose(x, y, rel_tol=ROUND_OFF, abs_tol=ROUND_OFF)
        for a, b in matched(mine, other)
        for x, y in zip(a, b, strict=True)
    )


def _corrected(scores: Cells, mine: str, others: Sequence[str], test: Test) -> dict[str, Outcome]:
    """The verdicts of a test against each of the others that it is defined for, p by Holm."""
    raw = {
        o: found for o in others if (found := test(matched(scores[mine], scores[o]))) is not None
    }
    equal = {o: _equal(scores[mine], scores[o]) for o in raw}
    known = [o for o, (p, _) in raw.items() if p is not None and not equal[o]]
    corrected = dict(zip(known, stats.holm([raw[o][0] or 0.0 for o in known]), strict=True))
    return {
        o: Outcome(p := corrected.get(o), _verdict(equal[o], p, gain))
        for o, (_, gain) in raw.items()
    }


def _over_problems(pairs: Pairs) -> Result | None:
    if len(pairs) < FEWEST_PROBLEMS:
        return None
    a, b = ([stats.mean(pair[i]) for pair in pairs] for i in (0, 1))
    return stats.wilcoxon(a, b), _signed_ranks([x - y for x, y in zip(a, b, strict=True)])


def _over_seeds(pairs: Pairs) -> Result | None:
    if not pairs:
        return None
    seeds = min(len(a) for a, _ in pairs)
    one, two = ([stats.mean([pair[i][s] for pair in pairs]) for s in range(seeds)] for i in (0, 1))
    gain = stats.mean(one) - stats.mean(two)
    return (stats.paired_t(one, two) if seeds >= FEWEST_SEEDS else None), gain


_TESTS: Mapping[Over, Test] = {"seeds": _over_seeds, "problems": _over_problems}


def _signed_ranks(differences: Sequence[float]) -> float:
    """Wilcoxon's statistic: the ranks of the sizes with the signs of the differences, added up."""
    left = [d for d in differences if d]
    sizes = stats.ranks([abs(d) for d in left], "min")
    return math.fsum(math.copysign(r, d) for r, d in zip(sizes, left, strict=True))
