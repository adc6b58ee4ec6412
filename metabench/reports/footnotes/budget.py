"""The budget of a table in words, and the rows and columns that have another."""

from __future__ import annotations

from typing import Any

from metabench.analysis.results import Results
from metabench.core.cell import Budget
from metabench.core.settings import fields
from metabench.core.text import counted, listed
from metabench.reports.tables.renderers import Footnote
from metabench.suites.planning import NEVER_RUN
from metabench.suites.schema import Column, Row


def budget_footnotes(results: Results) -> list[Footnote]:
    """The budget in words, with the rows that have another, and how many cells are done."""
    defaults = {k: f.default for k, f in fields(Budget).items() if f.default is not None}
    limits = {**defaults, **results.suite.budget(results.budget).limits}
    out = [Footnote(f"Budget {results.budget}: {'; '.join(_budget_in_words(results, limits))}.")]
    different = other_budgets(results, limits)
    if different:
        out.append(Footnote(f"Other budgets: {'; '.join(different)}."))
    alone = _settings_of_budget(results)
    if alone:
        told = "; ".join(f"{said} ({listed(labels)})" for said, labels in alone.items())
        out.append(Footnote(f"Settings of this budget alone: {told}."))
    states = results.states
    if set(states) - {"done", *NEVER_RUN}:
        by_state = ", ".join(f"{n} {state}" for state, n in states.items())
        out.append(Footnote(f"Incomplete: of {counted(len(results.runs), 'cell')} {by_state}."))
    return out


def _budget_in_words(results: Results, limits: dict[str, Any]) -> list[str]:
    seeds = sorted({run.cell.seed for run in results.runs})
    words = [
        *_limits_in_words(limits),
        f"validation on {counted(limits['valid_episodes'], 'episode')} every {_look(limits)}",
        f"{counted(limits['test_episodes'], f'{results.suite.evaluation} episode')}",
        f"tested: {_SELECT[limits['select']]}",
        f"planned seeds: {listed(map(str, seeds))}",
    ]
    for group, values in results.suite.budget(results.budget).set.items():
        words += [f"{group}.{name} = {_plain(value)}" for name, value in values.items()]
    for override in results.overrides:
        words.append(f"set by hand: {override.scope}.{override.name} = {_plain(override.value)}")
    return words


def _settings_of_budget(results: Results) -> dict[str, list[str]]:
    """What columns and rows set in this budget alone, to the labels of those that do."""
    out: dict[str, list[str]] = {}
    places: list[Column | Row] = [*results.columns, *results.rows]
    for place in places:
        for group, values in place.budgets.get(results.budget, {}).items():
            for name, value in values.items() if group != "budget" else ():
                said = f"{group}.{name} = {_plain(value)}"
                out.setdefault(said, []).append(place.label or place.id)
    return out


def other_budgets(results: Results, limits: dict[str, Any]) -> list[str]:
    """What differs from the table's ``limits``: rows and columns with the same differences
    together."""
    suite = results.suite
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in results.rows:
        where: dict[str, list[str]] = {}
        for column in suite.columns:
            budget = results.table_cells[row.id, column.id].runs[0].cell.budget
            for name in sorted(
                {*limits, *budget} - {"prices"}, key=lambda n: (n not in Budget.LIMITS, n)
            ):
                if budget.get(name) != limits.get(name):
                    said = f"{name} = {_plain(budget.get(name, 'none'))}"
                    where.setdefault(said, []).append(column.label or column.id)
        said_in: dict[str, list[str]] = {}
        for said, columns in where.items():
            place = "" if len(columns) == len(suite.columns) else f" in {listed(columns)}"
            said_in.setdefault(place, []).append(said)
        for place, sayings in said_in.items():
            together.setdefault((place, tuple(sayings)), []).append(row.label or row.id)
    return [
        f"{listed(rows)}{place}: {', '.join(sayings)}"
        for (place, sayings), rows in together.items()
    ]


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


def _limits_in_words(limits: dict[str, Any]) -> list[str]:
    names = {
        "hvps": "Hessian products",
        "cost": "inner-gradient equivalents",
        "seconds": "seconds of training",
    }
    return [
        f"{_plain(limits[name])} {names.get(name, name.replace('_', ' '))}"
        for name in Budget.LIMITS
        if limits.get(name) is not None
    ]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
