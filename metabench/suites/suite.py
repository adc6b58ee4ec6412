"""A suite: everything that is run for one paper table, and its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, with_config

from metabench.core.cell import Cell, Parts, Resolved, of_cell
from metabench.core.declaration import Declaration
from metabench.core.errors import SettingError, UnknownName
from metabench.store.record import RETRAINED
from metabench.suites.overrides import Override, check_overrides, place_overrides
from metabench.suites.resolving import Place, resolve
from metabench.suites.schema import (
    Column,
    Groups,
    PaperClaim,
    PaperRow,
    Published,
    Reach,
    Row,
    Settings,
    SuiteBudget,
    strict,
)


@with_config(strict)
@dataclass(frozen=True)
class Suite:
    """A whole suite, checked for its own consistency; cells are made by :meth:`cells`."""

    name: str
    title: str
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[Row], Field(min_length=1)]
    budgets: dict[str, SuiteBudget]
    metric: str
    goal: Literal["max", "min"] = "max"
    evaluation: str = "test"
    percent: bool = False
    logs: bool = False
    resolution: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Values of the metric that are smaller are round-off: they are equal where rows are compared,
    and shown as they are."""
    gap: bool = False
    """Whether the metric is itself a difference of two splits: it has no value on one of them, and
    neither end of it is the best."""
    description: str = ""
    command: str = ""
    reference: str = ""
    """The paper whose table it is ("Finn et al. 2017"); empty: none."""
    data: list[str] = field(default_factory=list)
    """Data sets that the tasks of the laptop budget read, for lists to name."""
    floor: str = ""
    floor_label: str = ""
    no_learning: str = ""
    """The row that learns nothing, 0 on normalised scales; empty: the one of method "fixed"."""
    plots: list[str] = field(default_factory=list)
    """Kinds of plots, of ``PLOTS``; empty: all but "frontier"."""
    costs: list[str] = field(default_factory=list)
    """Costs that plots show; empty: their own choice."""
    extended_metric: str = ""
    """The metric of the suite that this one extends, whose cells it has; empty: none, or others."""
    paper: list[Published] = field(default_factory=list)
    paper_rows: list[PaperRow] = field(default_factory=list)
    claims: list[PaperClaim] = field(default_factory=list)
    reach: Reach | None = None
    """A second table: what it costs to reach a level."""

    @property
    def without_learning(self) -> str | None:
        """The row that learns nothing; None where none is named or known."""
        fixed = [row.id for row in self.rows if row.method == "fixed"]
        return self.no_learning or (fixed[0] if len(fixed) == 1 else None)

    def bound(self, column: Column) -> float | None:
        """The best value that can be had in a column, unscaled; None: not known."""
        if column.bound is not None:
            return column.bound / 100 if self.percent else column.bound
        return 1.0 if self.percent and self.goal == "max" else None

    def budget(self, name: str) -> SuiteBudget:
        """The budget called ``name``; raises UnknownName."""
        if name not in self.budgets:
            raise UnknownName(f"budget of suite {self.name!r} called", name, self.budgets)
        return self.budgets[name]

    def cells(
        self, budget: str, overrides: Iterable[Override] = (), seeds: Iterable[int] | None = None
    ) -> list[SuiteCell]:
        """Every cell of the suite under a budget, in table order, settings resolved and checked.

        Raises UnknownName or SettingError for a setting that some cell cannot have.
        """
        seeds = list(dict.fromkeys(self.budget(budget).seeds if seeds is None else seeds))
        if not seeds:
            raise SettingError(f"suite {self.name}: name at least one seed")
        overrides = list(overrides)
        places = self.places(budget, overrides)
        try:
            resolved = resolve([*places.values()])
        except (UnknownName, SettingError):
            # Says where the setting of an override belongs. Before, it would ask the classes.
            check_overrides(overrides, self.rows, self.columns)
            raise
        skipped = {row.id: dict.fromkeys(row.skip, row.skip_reason) for row in self.rows}
        out = []
        for (row, column), found in zip(places, resolved, strict=True):
            skip = skipped[row].get(column)
            out += [SuiteCell(row, column, c, skip, found) for c in found.cells(seeds)]
        return out

    def places(
        self, budget: str, overrides: Iterable[Override] = ()
    ) -> dict[tuple[str, str], Place]:
        """(row, column) to what the suite says there under a budget, later settings over earlier
        x"""
        chosen = self.budget(budget)
        overrides = list(overrides)
        place_overrides(overrides, self.rows, self.columns)
        places = {}
        for row, column in ((row, column) for row in self.rows for column in self.columns):
            groups: list[Groups] = [
                column.set,
                {"budget": chosen.limits},
                chosen.set,
                column.budgets.get(budget, {}),
                row.set,
                row.budgets.get(budget, {}),
                row.columns.get(column.id, {}),
                row.cells.get(budget, {}).get(column.id, {}),
                *[o.groups for o in overrides if o.concerns(row, column)],
            ]
            where = f"suite {self.name}, row {row.id}, column {column.id}"
            places[row.id, column.id] = Place(
                column.task, row.method, row.solver, merge(groups), where
            )
        return places

    def check_measured(self, cells: Iterable[SuiteCell]) -> None:
        """Raise UnknownName where a task says what it measures
        (:class:`metabench.contract.task.Task`) and the suite's metric, floor or evaluation is
        not among that."""
        meant = {(c.row, c.column): c for c in cells if c.skip is None}
        for (row, column), item in meant.items():
            name, said = item.cell.task, item.declaration
            for kind, wanted, known in (
                ("metric", self.metric, said.metrics),
                ("metric", self.floor, said.metrics),
                # "valid" is there always.
                ("evaluation", self.evaluation.partition("@")[0], said.evaluations),
            ):
                if wanted and known is not None and wanted not in {*known, "valid"}:
                    where = f"suite {self.name}, row {row}, column {column}"
                    raise UnknownName(f"{kind} of task {name} called", wanted, known, where)
        self._check_readout([*meant.values()])

    def _check_readout(self, cells: Sequence[SuiteCell]) -> None:
        """Raise UnknownName where the suite's evaluation is one that the harness adds to those of
        the task ("test@5_steps"), and no cell has it: a row without it has a hole."""
        split, at, _ = self.evaluation.partition("@")
        if not at or not cells:
            return
        ends = [end for item in cells for end in item.declaration.readouts]
        ends += [RETRAINED for item in cells if "retrain_steps" in item.cell.budget]
        known = [split, *(split + end for end in dict.fromkeys(ends))]
        if self.evaluation not in known:
            raise UnknownName(
                "evaluation called", self.evaluation, known, f"suite {self.name}; the numbers of "
                "inner steps are those of the methods and of test_after in a budget",
            )  # fmt: skip


@dataclass(frozen=True)
class SuiteCell:
    """A cell and its place in the table; ``skip`` is the suite's own reason not to run it."""

    row: str
    column: str
    cell: Cell
    skip: str | None = None
    resolved: Resolved | None = field(default=None, compare=False, repr=False)
    """What the cell was made of, where whoever made it has that."""

    @property
    def parts(self) -> Parts:
        """The task, method, solver and budget objects that the cell names."""
        return self._resolved.parts

    @property
    def declaration(self) -> Declaration:
        """What they declare, which may be known without making them."""
        return self._resolved.declaration

    @cached_property
    def _resolved(self) -> Resolved:
        return self.resolved or of_cell(self.cell)


def merge(groups: Iterable[Mapping[Any, Settings]]) -> dict[str, Settings]:
    """Tables of settings laid over each other, later ones on top."""
    out: dict[str, Settings] = {}
    for table in groups:
        for group, values in table.items():
            out.setdefault(group, {}).update(values)
    return out
