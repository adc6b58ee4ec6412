"""What papers claim of their rows, tested on ours: a sentence a claim, with its verdict.

A claim is that one row is better than another, or no worse. It is tested by the 95 % t-interval of
the mean difference over the seeds that both rows have: they are paired, since a seed fixes the data
split, the first values and the test episodes. There is no correction for several claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.estimates import with_pm
from metabench.analysis.results import Results
from metabench.reports.footnotes import counted
from metabench.reports.renderers import Note
from metabench.suites.suite import Claim

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
    interval, over how many common seeds."""

    claim: Claim
    better: str
    column: str
    gain: float | None
    pm: float | None
    seeds: int
    verdict: Verdict


def verdicts(results: Results) -> list[Tested]:
    """Every claim of the suite in every column that it is made of, in the suite's order."""
    out = []
    sign = 1 if results.suite.goal == "max" else -1
    for claim in results.suite.claims:
        for better in claim.better:
            for column in claim.columns or [c.id for c in results.columns]:
                one, other = (
                    results.crossings[row, column].estimates(*results.metric)
                    for row in (better, claim.than)
                )
                gains = [sign * (one[s].mean - other[s].mean) for s in one if s in other]
                gain = stats.mean(gains) if gains else None
                pm = stats.half_width(gains) if gains else None
                sizes = [abs(e[s].mean) for e in (one, other) for s in e]
                verdict = _verdict(gain, pm, ROUND_OFF * max(sizes, default=0.0), claim.or_equal)
                out.append(Tested(claim, better, column, gain, pm, len(gains), verdict))
    return out


def _verdict(gain: float | None, pm: float | None, nothing: float, or_equal: bool) -> Verdict:
    # Two seeds with as many right answers of fifty have an interval of no width, and prove nothing.
    if gain is None or pm is None or pm <= nothing < abs(gain):
        return "not tested"
    if gain - pm > nothing:
        return "holds"
    if gain + pm < -nothing:
        return "contradicted"
    return "not contradicted" if or_equal else "not shown"


def claim_notes(results: Results) -> list[Note]:
    """A sentence a claim and row, after one that says how they are tested; none without claims or
    before there are numbers."""
    found = verdicts(results)
    if all(t.gain is None for t in found):
        return []
    kinds = {t.verdict for t in found}
    meanings = "; ".join(f"{v}: {means}" for v, means in VERDICTS.items() if v in kinds)
    unit = ", in points," if results.suite.percent else ""
    out = [
        Note(
            f"Claims: mean gain{unit} over common seeds ± half-width of its paired 95 % "
            f"t-interval. {meanings[0].upper()}{meanings[1:]}. Several claims are not corrected "
            "for being several."
        )
    ]
    pairs = [(claim, better) for claim in results.suite.claims for better in claim.better]
    for claim, better in pairs:
        these = [t for t in found if t.claim is claim and t.better == better]
        than = "no worse than" if claim.or_equal else "better than"
        said = f"{results.row_label(better)} {than} {results.row_label(claim.than)}"
        told = "; ".join(
            f"{verdict}{_places(results, some)}"
            for verdict in VERDICTS
            if (some := [t for t in these if t.verdict == verdict])
        )
        out.append(Note(f"Claim ({claim.source}): {said}: {told}."))
    return out


def _places(results: Results, some: list[Tested]) -> str:
    """(column gain; column gain), the column left out where there is one alone, and how many seeds
    there are where they are not all."""
    scale, least = (100.0, 1) if results.suite.percent else (1.0, None)
    labels = {c.id: c.label or c.id for c in results.columns}
    words = []
    for t in some:
        if t.gain is None or t.pm is None:
            gain = counted(t.seeds, "common seed")
        else:
            gain = with_pm(t.gain, t.pm, scale, least)
            if t.seeds < (planned := len(results.crossings[t.better, t.column].runs)):
                gain += f", n={t.seeds} of {planned}"  # a seed that diverged is no witness
        words.append(f"{labels[t.column]} {gain}" if len(labels) > 1 else gain)
    return f" ({'; '.join(words)})"
