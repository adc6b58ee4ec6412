"""The footnotes of a table that test what papers claim of its rows."""

from __future__ import annotations

from metabench.analysis.paper_claims import VERDICTS, Tested, verdicts
from metabench.analysis.results import Results
from metabench.core.text import counted, listed, with_pm
from metabench.reports.tables.renderers import Footnote

OURS = "this project's "
"""What a source begins with that is no paper."""


def claim_footnotes(results: Results) -> list[Footnote]:
    """A sentence that says how the papers' claims are tested, then one for each claim and row; none
    where there are no claims or no numbers yet."""
    found = verdicts(results)
    if all(t.gain is None for t in found):
        return []
    kinds = {t.verdict for t in found}
    meanings = "; ".join(f"{v}: {means}" for v, means in VERDICTS.items() if v in kinds)
    if any(c.within for c in results.suite.claims):
        meanings += (
            "; of a claim to be near: the interval lies inside, reaches beyond, lies outside"
        )
    if any(t.bound != "exact" for t in found):
        meanings += (
            "; at least, at most: a run that does not reach the level counts with what it has "
            "spent, so that the gain is a bound, without an interval"
        )
    unit = ", in points," if results.suite.percent else ""
    out = [
        Footnote(
            f"Claims: mean gain{unit} over common seeds ± half-width of its paired 95 % "
            f"t-interval. {meanings[0].upper()}{meanings[1:]}. The tests are those of the marks, "
            "corrected for all pairs of a column; the interval is not."
        )
    ]
    pairs = [(claim, better) for claim in results.suite.claims for better in claim.better]
    for claim, better in pairs:
        these = [t for t in found if t.claim is claim and t.better == better]
        than = "no worse than" if claim.or_equal else "better than"
        if claim.by == "reach":
            than = "reaches the level at " + (
                "no more cost than" if claim.or_equal else "less cost than"
            )
        if claim.within:
            than = f"within {100 * claim.within:g} % of"
        said = f"{results.row_label(better)} {than} {results.row_label(claim.than)}"
        told = "; ".join(
            f"{verdict}{_places(results, some)}"
            for verdict in VERDICTS
            if (some := [t for t in these if t.verdict == verdict])
        )
        out.append(Footnote(f"{_owner(claim.source)}: {said}: {told}."))
    return out


def _owner(source: str) -> str:
    """Claim (the paper: ...), or what this project asks or expects (...)."""
    whose, _, what = source.partition(": ")
    if not whose.startswith(OURS):
        return f"Claim ({source})"
    return f"{whose[0].upper()}{whose[1:]} ({what})" if what else f"{whose[0].upper()}{whose[1:]}"


def _places(results: Results, some: list[Tested]) -> str:
    """(column gain; column gain). A table of one column leaves its name out. The number of seeds is
    told where some are missing."""
    percent = results.suite.percent and all(t.claim.by == "metric" for t in some)
    scale, least = (100.0, 1) if percent else (1.0, None)
    labels = {c.id: c.label or c.id for c in results.columns}
    words = []
    for t in some:
        if t.gain is None or t.pm is None:
            gain = counted(t.seeds, "common seed")
        else:
            gain = _gain_in_words(t, scale, least)
            if t.seeds < (planned := len(results.table_cells[t.better, t.column].runs)):
                gain += f", n={t.seeds} of {planned}"  # a diverged seed gives no gain
            gain += _unreached_in_words(results, t)
        words.append(f"{labels[t.column]} {gain}" if len(labels) > 1 else gain)
    return f" ({'; '.join(words)})"


def _gain_in_words(tested: Tested, scale: float, least: int | None) -> str:
    """A gain with its interval, or the bound that is known of it."""
    assert tested.gain is not None
    if tested.bound == "exact":
        return with_pm(tested.gain, tested.pm, scale, least)
    if tested.bound == "unknown":
        return "no gain known"
    return f"{tested.bound} {with_pm(tested.gain, None, scale, least)}"


def _unreached_in_words(results: Results, tested: Tested) -> str:
    """By which of the two rows, and in how many seeds, the level is not reached."""
    known = ((tested.better, tested.failed), (tested.claim.than, tested.missed))
    told = [
        f"by {results.row_label(row)} in {counted(seeds, 'seed')}" for row, seeds in known if seeds
    ]
    return f", not reached {listed(told)}" if told else ""
