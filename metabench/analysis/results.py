"""What a suite under one budget has come to: every planned cell with its record or its hole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from metabench.analysis.reach import Reached, reached
from metabench.core.errors import StoreError, UnknownName
from metabench.store.prices import Prices
from metabench.store.published import without_paths
from metabench.store.record import Curve, Estimate, Record
from metabench.suites.overrides import Override
from metabench.suites.planning import STATES, Kept, Planned, WhyNot, as_it_ended, states_of
from metabench.suites.schema import Column, Published, Row
from metabench.suites.suite import Suite, SuiteCell

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?(?!\w)|\b(?:nan|inf)\b")


class Hole(NamedTuple):
    """What some cells of a table cell have instead of a number."""

    state: str
    reason: str
    seeds: tuple[int, ...]


def joined(reasons: Sequence[str]) -> str:
    """Reasons that differ in numbers alone, as one: every number that differs gives way to all of
    them, in order ("step 225 / 613")."""
    words = NUMBER.split(reasons[0])
    columns = zip(*(NUMBER.findall(reason) for reason in reasons), strict=True)
    numbers = [" / ".join(column if len({*column}) > 1 else column[:1]) for column in columns]
    return "".join(a + b for a, b in zip(words, [*numbers, ""], strict=True))


class Records(Kept, Protocol):
    """Where records come from: a :class:`metabench.store.store.Store`, or anything with these
    methods."""

    def scan(self) -> tuple[list[Record], Sequence[object]]:
        """Every record that can be trusted, and every file that cannot, in words."""
        ...

    def curve(self, record: Record) -> Curve:
        """The learning curve of a record; empty where it has none."""
        ...

    def prices(self) -> Mapping[str, Prices]:
        """Key of a problem to the measured prices of its counts."""
        ...

    def pictures(self, record: Record) -> Mapping[str, np.ndarray[Any, Any]]:
        """Grey pictures of one adapted test episode, uint8 [h, w] by name."""
        ...


LOST = frozenset({"failed", "diverged", "timeout"})
"""States of runs that were to give a number and gave none."""


@dataclass(frozen=True)
class TableCell:
    """One place in the table: a row and a column, with a run for every seed that is planned."""

    row: str
    column: str
    runs: tuple[Planned, ...]
    paper: tuple[Published, ...] = ()

    @property
    def done(self) -> list[Record]:
        """Records of finished cells, in the order of the suite's seeds."""
        return [r.record for r in self.runs if r.state == "done" and r.record is not None]

    @property
    def lost(self) -> int:
        """How many runs ended without a number."""
        return sum(run.state in LOST for run in self.runs)

    @property
    def states(self) -> dict[str, int]:
        """State to number of cells, in the order of ``STATES``, zeros left out."""
        found = [r.state for r in self.runs]
        return {s: found.count(s) for s in STATES if s in found}

    def estimates(self, evaluation: str, metric: str) -> dict[int, Estimate]:
        """Seed to this metric of the finished cells that have it."""
        out = {}
        for record in self.done:
            found = record.metrics.get(evaluation, {}).get(metric)
            if found is not None:
                out[record.cell.seed] = found
        return out

    def holes(self, evaluation: str, metric: str) -> list[Hole]:
        """What is missing, the finished without this metric among them. Reasons that differ in
        numbers alone are one."""
        found: dict[tuple[str, tuple[str, ...]], list[tuple[int, str]]] = {}
        for run in self.runs:
            state, reason = str(run.state), run.why
            if run.record:  # a table is passed on; status and the record tell the whole path
                reason = without_paths(reason)
            if state == "done":
                known = run.record.metrics.get(evaluation, {}) if run.record else {}
                if metric in known:
                    continue
                state = "done without the metric"
                has = ", ".join(sorted(known)) or "none"
                reason = f"no {metric!r} in {evaluation!r}; it has {has}"
            alike = state, tuple(NUMBER.split(reason))
            found.setdefault(alike, []).append((run.cell.seed, reason))
        return [
            Hole(state, joined([reason for _, reason in runs]), tuple(seed for seed, _ in runs))
            for (state, _), runs in found.items()
        ]


@dataclass(frozen=True)
class Results:
    """A suite under one budget, table cell by table cell, in the order of its table.

    Numbers are looked up by the keys of the cells that the suite plans for this budget and these
    overrides, so that two budgets cannot mix.
    """

    suite: Suite
    budget: str
    table_cells: dict[tuple[str, str], TableCell]
    overrides: tuple[Override, ...] = ()
    seeds: tuple[int, ...] | None = None
    """Asked for instead of the budget's own."""
    bad_files: tuple[str, ...] = ()
    """Files of the store that could not be trusted, as it tells them."""
    paper_only: dict[tuple[str, str], tuple[Published, ...]] = field(default_factory=dict)
    """Published numbers of rows that are not run here."""
    unverified: bool = False
    """Whether published numbers from memory are shown."""
    reached: dict[tuple[str, str], dict[int, Reached]] = field(default_factory=dict)
    """(row, column) to seed to the cost of the suite's level (``Suite.reach``), finished runs."""
    prices: Mapping[str, Prices] = field(default_factory=dict)
    """Key of a problem to the measured prices of its counts."""

    @property
    def rows(self) -> list[Row]:
        """The suite's rows, without those whose runs are another's (:attr:`same`)."""
        return [row for row in self.suite.rows if row.id not in self.same]

    @cached_property
    def same(self) -> dict[str, str]:
        """Rows that this budget leaves with the very cells of an earlier row in every column, to
        that row: one result, which is neither shown nor tested twice."""
        first: dict[tuple[str, ...], str] = {}
        out = {}
        for row in self.suite.rows:
            places = [self.table_cells[row.id, column.id] for column in self.suite.columns]
            keys = tuple(run.cell.key for place in places for run in place.runs)
            if (earlier := first.setdefault(keys, row.id)) != row.id:
                out[row.id] = earlier
        return out

    @property
    def columns(self) -> list[Column]:
        """The suite's columns."""
        return self.suite.columns

    @property
    def published(self) -> list[Published]:
        """The published numbers to be shown."""
        return [n for n in self.suite.paper if self.unverified or n.verified]

    @property
    def paper_columns(self) -> set[str]:
        """The columns that show a published number."""
        return {number.column for number in self.published}

    @property
    def runs(self) -> list[Planned]:
        """Every planned cell, in table order."""
        return [run for table_cell in self.table_cells.values() for run in table_cell.runs]

    @property
    def records(self) -> list[Record]:
        """Every record there is, whatever its status, each once, in table order."""
        found = {r.record.key: r.record for r in self.runs if r.record is not None}
        return list(found.values())

    @property
    def states(self) -> dict[str, int]:
        """State to number of planned cells."""
        return TableCell("", "", tuple(self.runs)).states

    def row_label(self, row: str) -> str:
        """What a row is called in the table."""
        return next((r.label or r.id for r in self.suite.rows if r.id == row), row)

    def column_label(self, column: str) -> str:
        """What a column is called in the table."""
        return next((c.label or c.id for c in self.columns if c.id == column), column)

    @property
    def metric(self) -> tuple[str, str]:
        """(evaluation, metric) of the table."""
        return self.suite.evaluation, self.suite.metric

    @property
    def frame(self) -> pd.DataFrame:
        """One row a record of a table cell: names, seed, status, metrics, costs, key.

        Metrics are columns ``EVALUATION/METRIC`` with ``.std``, ``.ci95``, ``.n`` (over episodes),
        unscaled; costs are ``cost/NAME``.
        """
        import pandas as pd

        rows = []
        for table_cell in self.table_cells.values():
            for run in table_cell.runs:
                if (record := run.record) is None:
                    continue
                line: dict[str, object] = {
                    "suite": self.suite.name,
                    "budget": self.budget,
                    "row": table_cell.row,
                    "column": table_cell.column,
                    "task": record.cell.task,
                    "method": record.cell.method,
                    "solver": record.cell.solver,
                    "seed": record.cell.seed,
                    "status": record.status,
                    "reason": record.reason,
                    "steps": record.steps,
                    "selected_step": record.selected_step,
                }
                for evaluation, metrics in record.metrics.items():
                    for name, e in metrics.items():
                        at = f"{evaluation}/{name}"
                        line |= {
                            at: e.mean,
                            f"{at}.std": e.std,
                            f"{at}.ci95": e.ci95,
                            f"{at}.n": e.n,
                        }
                line |= {f"cost/{name}": value for name, value in record.cost.items()}
                rows.append({**line, "key": record.key})
        names = ["suite", "budget", "row", "column", "seed", "status", "key"]
        return pd.DataFrame(rows, columns=None if rows else names)


def collect(
    suite: Suite,
    budget: str,
    store: Records,
    cells: Sequence[SuiteCell] | None = None,
    *,
    overrides: Iterable[Override] = (),
    seeds: Iterable[int] | None = None,
    why_not: WhyNot | None = None,
    unverified: bool = False,
) -> Results:
    """What the store has of the cells that ``suite`` plans under ``budget``.

    ``cells``: those that it plans with these overrides and seeds, where the caller has them.
    ``why_not`` says whether the theory allows a cell (None: what the task and the method
    declare). ``unverified``: published numbers from memory too. Raises UnknownName for a budget
    that the suite does not have.
    """
    overrides = tuple(overrides)
    seeds = None if seeds is None else tuple(seeds)
    if cells is None:
        cells = suite.cells(budget, overrides, seeds)
    records, bad_files = store.scan()
    places: dict[tuple[str, str], list[Planned]] = {}
    for planned in states_of(cells, store, records, why_not):
        places.setdefault((planned.row, planned.column), []).append(as_it_ended(planned))
    results = Results(
        suite,
        budget,
        {},
        overrides,
        seeds,
        tuple(map(str, bad_files)),
        unverified=unverified,
        prices=store.prices(),
    )
    papers: dict[tuple[str, str], list[Published]] = {}
    for number in results.published:
        papers.setdefault((number.row, number.column), []).append(number)
    results = replace(
        results,
        table_cells={
            at: TableCell(*at, tuple(runs), tuple(papers.get(at, ())))
            for at, runs in places.items()
        },
        paper_only={at: tuple(numbers) for at, numbers in papers.items() if at not in places},
    )
    if suite.reach is None:
        return results
    curves = read_curves(results, store)[0]
    by_place = {
        at: {r.cell.seed: curves[r.key] for r in cell.done if r.key in curves}
        for at, cell in results.table_cells.items()
    }
    budgets = {at: cell.runs[0].cell.budget for at, cell in results.table_cells.items()}
    return replace(
        results, reached=reached(suite.reach, suite.reach.goal or suite.goal, by_place, budgets)
    )


def read_curves(results: Results, store: Records) -> tuple[dict[str, Curve], list[str]]:
    """Key to learning curve of every record, and what could not be read, in words."""
    curves: dict[str, Curve] = {}
    problems = []
    for record in results.records:
        try:
            curves[record.key] = store.curve(record)
        except StoreError as error:
            problems.append(str(error))
    return curves, problems


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise UnknownName for the first of ``names`` that is not among ``known``."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownName(kind, name, known)
