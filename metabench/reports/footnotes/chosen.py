"""The footnote that says how the settings of a table's rows were chosen."""

from __future__ import annotations

from collections.abc import Iterable

from metabench.analysis.results import Results
from metabench.core.text import counted, listed
from metabench.reports.tables.renderers import Footnote
from metabench.suites.schema import HOW, How


def chosen_footnotes(results: Results) -> list[Footnote]:
    """One line: every way in which settings were chosen, with the rows that it holds for."""
    seeds = {run.cell.seed for run in results.runs}
    rows: dict[str, list[str]] = {}
    for row in results.rows:
        said = how_in_words(row.how(results.budget), seeds)
        rows.setdefault(said, []).append(row.label or row.id)
    told = (
        f"{said} ({listed(labels) if len(rows) > 1 else 'all rows'})"
        for said, labels in sorted(rows.items(), key=lambda item: -len(item[1]))
    )
    by_hand = "; but what is set by hand" if results.overrides else ""
    return [Footnote(f"Settings chosen: {'; '.join(told)}{by_hand}.")]


def how_in_words(how: How, table: Iterable[int] = ()) -> str:
    """How settings were chosen; ``table``: the table's seeds, to say which of them the trials saw,
    as settings chosen on a seed suit that seed."""
    if isinstance(how, str):
        return HOW[how]
    trials = counted(how.trials, "trial") if isinstance(how.trials, int) else f"trials {how.trials}"
    if isinstance(how.seeds, str):
        return f"tuned by {how.tuned}: {trials}, seeds {how.seeds}"
    seen = [seed for seed in how.seeds if seed in {*table}]
    seeds = f"{trials}, seed{'s'[: len(how.seeds) > 1]} {listed(map(str, how.seeds))}"
    if seen:
        of_these = "" if seen == how.seeds else f"{listed(map(str, seen))} "
        seeds += f", {of_these}also in the table"
    return f"tuned by {how.tuned}: {seeds}"
