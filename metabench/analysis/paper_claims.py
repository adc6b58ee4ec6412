"""What papers claim of their rows, tested on ours: a sentence a claim, with its verdict.

A claim is that one row is better than another, or no worse. Its test is that of the table's marks
(:mod:`metabench.analysis.comparisons`): paired over seeds, Holm's correction over all pairs of the
column. A claim that holds is a row with a mark, and no claim and mark contradict each other. Of a
claim to be near (``within``) the plain 95 % interval decides: it asks another question, how far
apart two rows can be, and no mark answers that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.comparisons import FEWEST, Comparisons, Pair, compare
from metabench.analysis.estimates import comparisons, lost
from metabench.analysis.results import Results
from metabench.suites.schema import PaperClaim

Verdict = Literal["holds", "not shown", "not contradicted", "contradicted", "not tested"]
VERDICTS: dict[Verdict, str] = {
    "holds": "shown to be better",
    "not shown": "no difference is shown",
    "not contradicted": "no difference is shown, and no more is claimed",
    "contradicted": "shown to be worse",
    "not tested": f"fewer than {FEWEST} seeds that both have, or the same difference in every seed",
}
"""In the order in which a table tells them, and what each means."""


@dataclass(frozen=True)
class Tested:
    """A claim in one column: how much better the row is, unscaled, with the half-width of the
    interval, over how many common seeds. In ``failed`` of them the row claimed to be better does
    not reach the level, in ``missed`` the other does not: such a run counts with what it has spent,
    less than its true cost."""

    claim: PaperClaim
    better: str
    column: str
    gain: float | None
    pm: float | None
    seeds: int
    verdict: Verdict
    failed: int = 0
    missed: int = 0

    @property
    def bound(self) -> Literal["exact", "at least", "at most", "unknown"]:
        """What ``gain`` is of the true one, whose runs all reach the level."""
        if self.failed and self.missed:
            return "unknown"
        return "at most" if self.failed else "at least" if self.missed else "exact"


def verdicts(results: Results) -> list[Tested]:
    """Every claim of the suite in every column that it is made of, in the suite's order."""
    made = {"metric": comparisons, "reach": reach_comparisons}
    families: dict[tuple[str, str], Comparisons] = {}
    out = []
    for claim in results.suite.claims:
        for better in claim.better:
            for column in claim.columns or [c.id for c in results.columns]:
                at = claim.by, column
                if at not in families:
                    families[at] = made[claim.by](results, column)
                out.append(_tested(results, claim, better, column, families[at]))
    return out


def _tested(
    results: Results, claim: PaperClaim, better: str, column: str, family: Comparisons
) -> Tested:
    failed, missed = _unreached(results, claim, better, column)
    same = results.same
    row, other = same.get(better, better), same.get(claim.than, claim.than)
    pair = family.of(row, other)
    if pair is None:
        return Tested(claim, better, column, None, None, 0, "not tested", failed, missed)
    incomplete = lost(results, column) & {row, other}
    if claim.within is not None and (failed or missed or incomplete):
        # Bounds of costs do not say how near they are, nor do the survivors of lost runs.
        verdict: Verdict = "not shown"
    elif claim.within is not None:
        verdict = _nearness(claim.within, pair, _sizes(results, claim, column))
    elif pair.p is None:
        verdict = "not tested"
    elif pair.shown:
        verdict = "holds" if pair.gain > 0 else "contradicted"
    else:
        verdict = "not contradicted" if claim.or_equal else "not shown"
    return Tested(claim, better, column, pair.gain, pair.pm, pair.seeds, verdict, failed, missed)


def reach_comparisons(results: Results, column: str) -> Comparisons:
    """Every pair of rows of a column, tested by the cost to reach the level. A run that does not
    reach it counts as reaching it at its end, less than its true cost, so that a row with such runs
    is never shown to be better; nor is one with lost runs."""
    values = {
        row.id: {s: found.cost for s, found in results.reached.get((row.id, column), {}).items()}
        for row in results.rows
    }
    cut = {
        row.id
        for row in results.rows
        if any(not found.reached for found in results.reached.get((row.id, column), {}).values())
    }
    return compare(values, "min").never_better(cut | lost(results, column))


def _sizes(results: Results, claim: PaperClaim, column: str) -> list[float]:
    """Of what ``than`` has."""
    at = claim.than, column
    if claim.by == "reach":
        return [abs(found.cost) for found in results.reached.get(at, {}).values()]
    return [abs(e.mean) for e in results.table_cells[at].estimates(*results.metric).values()]


def _unreached(results: Results, claim: PaperClaim, better: str, column: str) -> tuple[int, int]:
    """Of the seeds that both have, those in which ``better`` does not reach the level, and those in
    which ``than`` does not."""
    if claim.by != "reach":
        return 0, 0
    one, two = (results.reached.get((row, column), {}) for row in (better, claim.than))
    common = one.keys() & two.keys()
    return sum(not one[s].reached for s in common), sum(not two[s].reached for s in common)


def _nearness(within: float, pair: Pair, sizes: Sequence[float]) -> Verdict:
    """Of a claim to be near: whether the interval of the difference lies within a part of the mean
    size of what is compared with."""
    if pair.pm is None or pair.seeds < FEWEST:
        return "not tested"
    allowed = within * stats.mean(sizes)
    if abs(pair.gain) + pair.pm <= allowed:
        return "holds"
    return "contradicted" if abs(pair.gain) - pair.pm > allowed else "not shown"
