"""The settings behind a table in words: those of its budget, and how they depart from those of the
paper's budget."""

from __future__ import annotations

from typing import Any

from metabench.analysis.results import Results
from metabench.core.cell import Cell, Resolved
from metabench.reports.footnotes.places import places_in_words
from metabench.reports.tables.renderers import Footnote
from metabench.suites.resolving import resolve

PAPER = "paper"
GROUPS = ("task", "method", "solver")

Departures = dict[tuple[str, str], dict[str, tuple[Any, Any]]]
"""(row, column) to "group.name" to its value here and at the paper's budget."""


def departures(results: Results) -> Departures:
    """Every setting of a task, method or solver, defaults included, that a cell has otherwise than
    the same cell at the paper's budget; places without one are left out."""
    suite = results.suite
    if PAPER not in suite.budgets or results.budget == PAPER:
        return {}
    here = suite.places(results.budget, results.overrides)
    there = suite.places(PAPER, results.overrides)

    def told(settings: dict[str, Any]) -> dict[str, Any]:
        return {group: values for group, values in settings.items() if group in GROUPS and values}

    # Few places differ; the others need not be resolved.
    apart = [at for at in here if told({**here[at].set}) != told({**there[at].set})]
    paper_settings = resolve([there[at] for at in apart], for_later=True) if apart else []
    out: Departures = {}
    for at, paper in zip(apart, paper_settings, strict=True):
        ours, theirs = _named(results.table_cells[at].runs[0].cell), _named(paper)
        if found := {k: (v, theirs[k]) for k, v in ours.items() if v != theirs[k]}:
            out[at] = found
    return out


def departure_footnotes(results: Results, found: Departures) -> list[Footnote]:
    """A line with all departures from the paper's budget; none where there are none."""
    said = {
        at: [f"{name} = {plain(ours)} ({plain(theirs)})" for name, (ours, theirs) in each.items()]
        for at, each in found.items()
    }
    if not said:
        return []
    told = "; ".join(f"{at}: {', '.join(words)}" for at, words in places_in_words(results, said))
    return [Footnote(f"Unlike at budget {PAPER}, whose values are in brackets: {told}.")]


def settings_of_budget(results: Results, found: Departures) -> list[str]:
    """What the budget sets for every cell and ``found`` does not tell, with the rows and columns
    that have another value."""
    out = []
    for group, values in results.suite.budget(results.budget).set.items():
        for name, value in values.items():
            full = f"{group}.{name}"
            if any(full in each and _same(each[full][0], value) for each in found.values()):
                continue
            others = {}
            for at, table_cell in results.table_cells.items():
                has = _named(table_cell.runs[0].cell)[full]
                if not _same(has, value):
                    others[at] = [plain(has)]
            but = "; ".join(f"{at} {has[0]}" for at, has in places_in_words(results, others))
            out.append(f"{full} = {plain(value)}{f' (but {but})' if but else ''}")
    return out


def plain(value: Any) -> str:
    """A setting as a table writes it."""
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _named(cell: Cell | Resolved) -> dict[str, Any]:
    """ "group.name" to the value of every setting but those of the budget, by name: a cell of a
    record has them in another order than one that has just been resolved."""
    return {
        f"{group}.{name}": value
        for group in GROUPS
        for name, value in sorted(getattr(cell, f"{group}_settings").items())
    }


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one setting: a list of a suite file is a tuple in a cell."""
    a, b = (list(x) if isinstance(x, tuple) else x for x in (a, b))
    return bool(a == b)
