"""The budget of a table in words, and the rows and columns that have another."""

from __future__ import annotations

from typing import Any

from metabench.analysis.results import Results
from metabench.core.cell import Budget
from metabench.core.readouts import steps_of
from metabench.core.settings import fields
from metabench.core.text import counted, listed
from metabench.reports.footnotes.places import places_in_words
from metabench.reports.footnotes.settings import (
    Departures,
    departure_footnotes,
    departures,
    plain,
    settings_of_budget,
)
from metabench.reports.tables.renderers import Footnote
from metabench.suites.planning import NEVER_RUN


def budget_footnotes(results: Results) -> list[Footnote]:
    """The budget in words, with the rows that have another, what it sets otherwise than the paper's
    budget, and how many cells are done."""
    defaults = {k: f.default for k, f in fields(Budget).items() if f.default is not None}
    limits = {**defaults, **results.suite.budget(results.budget).limits}
    unlike = departures(results)
    said = "; ".join(_budget_in_words(results, limits, unlike))
    out = [Footnote(f"Budget {results.budget}: {said}.")]
    different = other_budgets(results, limits)
    if different:
        out.append(Footnote(f"Other budgets: {'; '.join(different)}."))
    out += departure_footnotes(results, unlike)
    states = results.states
    if set(states) - {"done", *NEVER_RUN}:
        by_state = ", ".join(f"{n} {state}" for state, n in states.items())
        out.append(Footnote(f"Incomplete: of {counted(len(results.runs), 'cell')} {by_state}."))
    return out


def _budget_in_words(results: Results, limits: dict[str, Any], unlike: Departures) -> list[str]:
    seeds = sorted({run.cell.seed for run in results.runs})
    words = [
        *_limits_in_words(limits),
        f"validation on {counted(limits['valid_episodes'], 'episode')} every {_look(limits)}",
        f"{counted(limits['test_episodes'], f'{tested_split(results)} episode')}{_after(results)}",
        f"tested: {_tested(results)}",
        f"planned seeds: {listed(map(str, seeds))}",
        *settings_of_budget(results, unlike),
    ]
    for override in results.overrides:
        words.append(f"set by hand: {override.scope}.{override.name} = {plain(override.value)}")
    return words


def tested_split(results: Results) -> str:
    """Of which split the table's episodes are, in words: what the harness adds to the name of an
    evaluation (test@5_steps) is no part of it."""
    split = results.suite.evaluation.partition("@")[0]
    return "validation" if split == "valid" else split


def _after(results: Results) -> str:
    """After how many inner steps, where the evaluation's name says so."""
    steps = steps_of(results.suite.evaluation)
    return "" if steps is None else f", each after {counted(steps, 'inner step')}"


def _tested(results: Results) -> str:
    """Which state is tested; where cells differ in that, each way and its rows and columns."""
    ways = {
        at: [str(table_cell.runs[0].cell.budget["select"])]
        for at, table_cell in results.table_cells.items()
    }
    where: dict[str, list[str]] = {}
    for place, (select,) in places_in_words(results, ways):
        where.setdefault(select, []).append(place)
    if len(where) == 1:
        return _SELECT[next(iter(where))]
    return ", ".join(f"{_SELECT[select]} ({'; '.join(at)})" for select, at in where.items())


def other_budgets(results: Results, limits: dict[str, Any]) -> list[str]:
    """What differs from the table's ``limits``, but for which state is tested: rows and columns
    with the same differences together."""
    said = {}
    for at, table_cell in results.table_cells.items():
        budget = table_cell.runs[0].cell.budget
        names = {*limits, *budget} - {"prices", "select"}
        said[at] = [
            f"{name} = {plain(budget.get(name))}"
            for name in sorted(names, key=lambda n: (n not in Budget.LIMITS, n))
            if budget.get(name) != limits.get(name)
        ]
    return [f"{at}: {', '.join(words)}" for at, words in places_in_words(results, said)]


_SELECT = {
    "best_valid": "the state with the best validation metric",
    "last": "the last state",
    "best_selection": "the state with the best metric on examples that the outer loss does not see",
}


def _look(limits: dict[str, Any]) -> str:
    """How far apart evaluations are."""
    if (cost := limits.get("eval_every_cost")) is not None:
        return f"{cost:,g} inner-gradient equivalents"
    return counted(limits["eval_every"], "outer step")


_ONE = {
    "hvps": "Hessian product",
    "cost": "inner-gradient equivalent",
    "seconds": "training second",
}
"""One of a limit, where its name does not say it."""


def _limits_in_words(limits: dict[str, Any]) -> list[str]:
    return [
        counted(limits[name], _ONE.get(name, name.removesuffix("s").replace("_", " ")))
        for name in Budget.LIMITS
        if limits.get(name) is not None
    ]
