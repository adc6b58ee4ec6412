"""What papers claim of their rows, tested on ours: a sentence a claim, with its verdict.

A claim is that one row is better than another, or no worse. It is tested by the 95 % t-interval of
the mean difference over the seeds that both rows have: they are paired, since a seed fixes the data
split, the first values and the test episodes. There is no correction for several claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.results import Results
from metabench.suites.schema import PaperClaim

Verdict = Literal["holds", "not shown", "not contradicted", "contradicted", "not tested"]
VERDICTS: dict[Verdict, str] = {
    "holds": "the interval lies above 0",
    "not shown": "0 is inside",
    "not contradicted": "0 is inside, and no more is claimed",
    "contradicted": "it lies below 0",
    "not tested": "fewer than two seeds that both have, or seeds that agree in every digit",
}
"""In the order in which a table tells them, and what each means."""
ROUND_OFF = 1e-9
"""The part of a metric that is no difference: without luck two right rows end there, not at 0."""


@dataclass(frozen=True)
class Tested:
    """A claim in one column: how much better the row is, unscaled, with the half-width of the
    interval, over how many common seeds. ``failed`` of them: the row claimed to be better does not
    reach the level that the other does."""

    claim: PaperClaim
    better: str
    column: str
    gain: float | None
    pm: float | None
    seeds: int
    verdict: Verdict
    failed: int = 0


def verdicts(results: Results) -> list[Tested]:
    """Every claim of the suite in every column that it is made of, in the suite's order."""
    out = []
    for claim in results.suite.claims:
        for better in claim.better:
            for column in claim.columns or [c.id for c in results.columns]:
                one, other = (_numbers(results, claim, row, column) for row in (better, claim.than))
                failed = _failed(results, claim, better, column)
                up = results.suite.goal == "max" and claim.by == "metric"
                sign = 1 if up else -1
                gains = [sign * (one[s] - other[s]) for s in one if s in other]
                gain = stats.mean(gains) if gains else None
                pm = stats.half_width(gains) if gains else None
                sizes = [abs(e[s]) for e in (one, other) for s in e]
                verdict = _verdict(gain, pm, ROUND_OFF * max(sizes, default=0.0), claim.or_equal)
                if claim.within is not None:
                    verdict = _nearness(claim.within, gain, pm, [abs(v) for v in other.values()])
                if failed:
                    verdict = "not shown"
                out.append(Tested(claim, better, column, gain, pm, len(gains), verdict, failed))
    return out


def _numbers(results: Results, claim: PaperClaim, row: str, column: str) -> dict[int, float]:
    """Seed to what the claim compares. A run that does not reach the level counts as reaching it at
    its end: less than its true cost, which is fair to ``than`` alone (:func:`_failed`)."""
    if claim.by == "reach":
        return {seed: found.cost for seed, found in results.reached.get((row, column), {}).items()}
    found = results.table_cells[row, column].estimates(*results.metric)
    return {seed: e.mean for seed, e in found.items()}


def _failed(results: Results, claim: PaperClaim, better: str, column: str) -> int:
    """Seeds in which ``better`` does not reach the level."""
    if claim.by != "reach":
        return 0
    return sum(not found.reached for found in results.reached.get((better, column), {}).values())


def _verdict(gain: float | None, pm: float | None, nothing: float, or_equal: bool) -> Verdict:
    # Two seeds with as many right answers of fifty have an interval of no width, and prove nothing.
    if gain is None or pm is None or pm <= nothing < abs(gain):
        return "not tested"
    if gain - pm > nothing:
        return "holds"
    if gain + pm < -nothing:
        return "contradicted"
    return "not contradicted" if or_equal else "not shown"


def _nearness(
    within: float, gain: float | None, pm: float | None, sizes: Sequence[float]
) -> Verdict:
    """Of a claim to be near: whether the interval of the difference lies within a part of the mean
    size of what is compared with."""
    if gain is None or pm is None:
        return "not tested"
    allowed = within * stats.mean(sizes)
    if abs(gain) + pm <= allowed:
        return "holds"
    return "contradicted" if abs(gain) - pm > allowed else "not shown"
