"""Suites: TOML files that say what to run for one paper table, and what the papers report.

Grammar (``results/suites/omniglot.toml`` is an example)::

    title, description     text
    metric                 metric of the table, a key of Problem.metrics
    goal                   "max" or "min"
    evaluation             named evaluation of the table ("test")
    percent                true: numbers are shown times 100
    logs                   true: numbers span powers of ten, so methods are compared by logarithms
    floor                  a metric that needs no learning, shown as a row of its own; optional
    floor_label            that row's label
    command                the command that reproduces the table
    plots                  kinds of plots to draw; without, those of learning curves and rankings
    costs                  costs that they show, in the report and in files; optional
    extends                a suite in the same folder that gives every key which this one does not:
                           another metric of the same cells; columns = ["ID", ...] keeps some of its

    [budgets.NAME]         seeds = [...], the fields of cell.Budget,
                           set.task.*, set.method.*, set.solver.* for every cell
    [[columns]]            id, label, task, set.{task,budget}.* for the column, and budgets.BUDGET.*
    [[rows]]               id, label, method, solver (without: the method's own default),
                           series: the line of the plot "frontier" that the row is a point of,
                           set.{task,method,solver,budget}.*,
                           columns.COLUMN.*, budgets.BUDGET.* and both, cells.BUDGET.COLUMN.*,
                           with the same kind of tables, skip = ["column", ...] with skip_reason
    [[paper]]              row, column, value, pm, pm_meaning, source, label
    [[claims]]             better = ["row", ...], than = "row", source: what a paper says of these
                           rows, tested on ours; or_equal = true: no worse; columns = [...]: of
                           these alone

Later settings win: column, budget, column's budget, row, row's budget, row's column, row's cells,
command line.
Paper rows may name a row that is not run here: give it under [[paper_rows]] (id, label).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config

from metabench.core.catalogue import suite_folder, suite_names
from metabench.core.cell import Budget, Cell, Parts, default_solver, instances, make_cells
from metabench.core.costs import Counts
from metabench.core.errors import SettingError, SuiteError, UnknownName
from metabench.core.registry import methods, solvers, tasks
from metabench.core.settings import fields

Settings = dict[str, Any]
Groups = dict[Literal["task", "method", "solver", "budget"], Settings]
BUDGETS = ("smoke", "laptop", "paper")
GROUPS = ("task", "method", "solver", "budget")
PLOTS = ("learning", "cost", "trajectories", "ranking", "profile", "frontier")
"""Every kind of plot."""
COSTS = (
    *fields(Counts), "derivatives", "seconds", "evaluation_seconds",
    "peak_memory_bytes", "peak_device_memory_bytes", "peak_tensor_bytes",
)  # fmt: skip
"""Every cost that a plot can show."""
LABELS = {
    "repo": "read in the official repository",
    "text": "read in a full text of the paper",
    "2nd": "read in another public document that quotes the paper",
    "rerun": "a third party's re-run, not the authors' number",
    "memory": "recalled, not verified: not to be relied on before somebody has looked it up",
    "derived": "mathematics done for this suite",
}
"""How solid a published number is."""
_strict = ConfigDict(extra="forbid")


@with_config(_strict)
@dataclass(frozen=True)
class Column:
    """One column of the table: a task with settings, and what differs by budget."""

    id: str
    task: str
    label: str = ""
    set: Groups = field(default_factory=dict)
    budgets: dict[str, Groups] = field(default_factory=dict)


@with_config(_strict)
@dataclass(frozen=True)
class Row:
    """One row: a method with settings, and what differs by column or budget."""

    id: str
    method: str
    label: str = ""
    series: str = ""
    """Label of the line that this row is a point of where results are drawn against cost."""
    solver: str | None = None
    """None: the method's own default, mostly "sgd"."""
    set: Groups = field(default_factory=dict)
    columns: dict[str, Groups] = field(default_factory=dict)
    budgets: dict[str, Groups] = field(default_factory=dict)
    cells: dict[str, dict[str, Groups]] = field(default_factory=dict)
    """Budget to column to settings: what differs by both."""
    skip: list[str] = field(default_factory=list)
    skip_reason: str = ""
    reference: str = ""
    """Where the method and these settings come from."""


@with_config(_strict)
@dataclass(frozen=True)
class PaperRow:
    """A published row without a run of ours."""

    id: str
    label: str


@with_config(_strict)
@dataclass(frozen=True)
class Published:
    """One published number, in the table's unit, with its spread, its meaning and its source."""

    row: str
    column: str
    value: FiniteFloat
    source: str
    label: str
    """How solid it is: a key of ``LABELS``."""
    pm: FiniteFloat | None = None
    pm_meaning: str = ""


@with_config(_strict)
@dataclass(frozen=True)
class Claim:
    """Each of ``better`` is better than ``than`` by the table's metric, or no worse."""

    better: Annotated[list[str], Field(min_length=1)]
    than: str
    source: Annotated[str, Field(min_length=1)]
    or_equal: Annotated[bool, Field(strict=True)] = False
    columns: list[str] = field(default_factory=list)
    """Empty: all."""


@with_config(_strict)
@dataclass(frozen=True)
class SuiteBudget:
    """Seeds and limits of one budget; ``limits`` are fields of
    :class:`metabench.core.cell.Budget`."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
    limits: Settings = field(default_factory=dict)
    set: Groups = field(default_factory=dict)


@with_config(_strict)
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
    description: str = ""
    command: str = ""
    floor: str = ""
    floor_label: str = ""
    plots: list[str] = field(default_factory=list)
    """Kinds of plots, of ``PLOTS``; empty: all but "frontier"."""
    costs: list[str] = field(default_factory=list)
    """Costs that plots show; empty: their own choice."""
    paper: list[Published] = field(default_factory=list)
    paper_rows: list[PaperRow] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

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
        chosen = self.budget(budget)
        seeds = list(dict.fromkeys(chosen.seeds if seeds is None else seeds))
        if not seeds:
            raise SettingError(f"suite {self.name}: name at least one seed")
        overrides = list(overrides)
        check_overrides(overrides, self)
        out = []
        for row in self.rows:
            for column in self.columns:
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
                merged = merge(groups)
                try:
                    cells, parts = make_cells(
                        column.task, row.method, seeds, solver=row.solver, set=merged
                    )
                except (UnknownName, SettingError) as error:
                    error.add_note(f"suite {self.name}, row {row.id}, column {column.id}")
                    raise
                skip = row.skip_reason if column.id in row.skip else None
                out += [SuiteCell(row.id, column.id, cell, skip, parts) for cell in cells]
        return out

    def check_measured(self, cells: Iterable[SuiteCell]) -> None:
        """Raise UnknownName where a task says what it measures
        (:class:`metabench.contract.problem.Task`) and the suite's metric, floor or evaluation is
        not among that."""
        meant = {(c.row, c.column): c for c in cells if c.skip is None}
        for (row, column), item in meant.items():
            name, task = item.cell.task, item.parts[0]
            evaluations = getattr(task, "evaluations", None)
            for kind, wanted, known in (
                ("metric", self.metric, getattr(task, "metrics", None)),
                ("metric", self.floor, getattr(task, "metrics", None)),
                # "@5_steps" is added by the harness, "valid" is there always.
                ("evaluation", self.evaluation.partition("@")[0], evaluations),
            ):
                if wanted and known is not None and wanted not in {*known, "valid"}:
                    where = f"suite {self.name}, row {row}, column {column}"
                    raise UnknownName(f"{kind} of task {name} called", wanted, known, where)


@dataclass(frozen=True)
class SuiteCell:
    """A cell and its place in the table; ``skip`` is the suite's own reason not to run it."""

    row: str
    column: str
    cell: Cell
    skip: str | None = None
    made: Parts | None = field(default=None, compare=False, repr=False)
    """``parts``, where whoever made the cell has them."""

    @property
    def parts(self) -> Parts:
        """The task, method, solver and budget objects that the cell names."""
        return self.made or instances(self.cell)


@dataclass(frozen=True)
class Override:
    """``--set GROUP.NAME=VALUE``; GROUP is task, method, solver, budget, or the name of a row, a
    method, a column or a task that it is meant for alone (``ROW.solver.NAME``: another group)."""

    scope: str
    name: str
    value: Any

    @property
    def setting(self) -> str:
        """The name in its group."""
        return self.name.rpartition(".")[2]

    @property
    def groups(self) -> Groups:
        """As a table of settings (for a scope that is a group)."""
        group: Any = self.group
        return {group: {self.setting: self.value}}

    group: str = ""
    only: str = ""

    def concerns(self, row: Row, column: Column) -> bool:
        """Whether the override is meant for this crossing."""
        return not self.only or self.only in (row.id, row.method, column.id, column.task)


def parse_override(text: str) -> Override:
    """An override from the command line; raises SettingError unless it reads GROUP.NAME=VALUE."""
    from metabench.core.settings import parse

    name, equals, value = text.partition("=")
    scope, dot, setting = name.strip().partition(".")
    if not (equals and dot and scope and setting):
        raise SettingError(
            f"cannot read setting {text!r}; write GROUP.NAME=VALUE, for example "
            "method.inner_lr=0.01"
        )
    return Override(scope, setting, parse(value.strip()))


def merge(groups: Iterable[Mapping[Any, Settings]]) -> dict[str, Settings]:
    """Tables of settings laid over each other, later ones on top."""
    out: dict[str, Settings] = {}
    for table in groups:
        for group, values in table.items():
            out.setdefault(group, {}).update(values)
    return out


def check_overrides(overrides: list[Override], suite: Suite) -> None:
    """Find the group that each override is meant for; raises UnknownName where there is none."""
    for override in overrides:
        group, only = _meant_for(override, suite)
        object.__setattr__(override, "group", group)
        object.__setattr__(override, "only", only)
        for row in suite.rows:
            for column in suite.columns:
                if override.concerns(row, column):
                    _check_override(override, row, column)


def _meant_for(override: Override, suite: Suite) -> tuple[str, str]:
    """The group, and the row, method, column or task that the override is limited to."""
    if override.scope in GROUPS:
        return override.scope, ""
    group, dot, _ = override.name.partition(".")
    if dot and group not in GROUPS:
        raise UnknownName("group of settings", group, GROUPS)
    if override.scope in {r.id for r in suite.rows} | {r.method for r in suite.rows}:
        return group if dot else "method", override.scope
    if override.scope in {c.id for c in suite.columns} | {c.task for c in suite.columns}:
        return group if dot else "task", override.scope
    known = {*GROUPS} | {r.id for r in suite.rows} | {c.id for c in suite.columns}
    raise UnknownName("group of settings", override.scope, known)


def _check_override(override: Override, row: Row, column: Column) -> None:
    """Raise UnknownName where what is crossed has no such setting."""
    group, name, one = override.group, override.setting, ""
    what: str
    cls: type
    if group == "budget":
        what, cls = "budget", Budget
    elif group == "task":
        what, cls = f"task {column.task}", tasks.get(column.task)
        one = f"column, write COLUMN.{name}=..."
    elif group == "method":
        what, cls = f"method {row.method} (row {row.id})", methods.get(row.method)
        one = f"row, write ROW.{name}=..."
    else:
        solver = row.solver or default_solver(methods.get(row.method))
        what, cls = f"solver {solver} (row {row.id})", solvers.get(solver)
        one = f"row, write ROW.solver.{name}=..."
    if name not in fields(cls):
        hint = f"to set it for one {one}" if one and not override.only else ""
        raise UnknownName(f"setting of {what} called", name, fields(cls), hint)


def load(name: str | Path) -> Suite:
    """A built-in suite by name, or any suite by the path of its file.

    Raises UnknownName for a name that is neither, SuiteError for a file that is no suite.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in suite_names():
            raise UnknownName("suite", str(name), suite_names(), "or give the path of a .toml file")
        path = suite_folder() / f"{name}.toml"
    elif not path.is_file():
        raise SuiteError(f"no suite file {str(path)!r}")
    data = _read(path)
    if "extends" in data:
        name = str(data.pop("extends"))
        base = path.parent / f"{name}.toml"
        beside = base.parent == path.parent and base.is_file()
        given = _read(base) if beside else {"extends": ""}
        if "extends" in given:
            raise SuiteError(f"{path}: extends {name!r}: no whole suite beside it")
        if _are_names(data.get("columns")):
            from_dict(given, base)
            given = _narrowed(given, data.pop("columns"), path)
        data = {**given, **data}
    return from_dict(data, path)


def _are_names(columns: Any) -> bool:
    return isinstance(columns, list) and any(isinstance(c, str) for c in columns)


def _narrowed(suite: dict[str, Any], columns: list[str], path: Path) -> dict[str, Any]:
    """A whole suite with no more than the named columns of it."""
    there = [c["id"] for c in suite["columns"]]
    if strange := [c for c in columns if c not in there]:
        unknown = UnknownName("column", str(strange[0]), there)
        raise SuiteError(f"{path}: {unknown}")

    def kept(table: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in table.items() if k in columns}

    rows = []
    for row in suite["rows"]:
        own: dict[str, Any] = {}
        if "columns" in row:
            own["columns"] = kept(row["columns"])
        if "skip" in row:
            own["skip"] = [c for c in row["skip"] if c in columns]
        if "cells" in row:
            own["cells"] = {budget: kept(at) for budget, at in row["cells"].items()}
        rows.append({**row, **own})
    return {
        **suite,
        "columns": [c for c in suite["columns"] if c["id"] in columns],
        "rows": rows,
        "paper": [n for n in suite.get("paper", []) if n["column"] in columns],
        "claims": [
            {**claim, "columns": [c for c in claim.get("columns", []) if c in columns]}
            for claim in suite.get("claims", [])
            if not claim.get("columns") or {*claim["columns"]} & {*columns}
        ],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not TOML: {error}") from None


def from_dict(data: dict[str, Any], path: Path) -> Suite:
    """A suite from parsed TOML; ``path`` names it and stands in errors."""
    data = {"name": path.stem, **data}
    limits = set(fields(Budget))
    budgets = data.get("budgets")
    for name, budget in budgets.items() if isinstance(budgets, dict) else ():
        if isinstance(budget, dict):
            rest = {k: v for k, v in budget.items() if k not in limits}
            own = {k: v for k, v in budget.items() if k in limits}
            data["budgets"] = {**data["budgets"], name: {**rest, "limits": own}}
    try:
        suite = TypeAdapter(Suite).validate_python(data)
    except ValidationError as error:
        unknown = "unexpected_keyword_argument"
        # A misspelt name first: what it leaves unset follows from it.
        first = min(error.errors(), key=lambda e: e["type"] != unknown)
        where = ".".join(str(p) for p in first["loc"])
        said = first["msg"].lower()
        if first["type"] == unknown:
            said = str(UnknownName("setting called", str(first["loc"][-1]), _known(first["loc"])))
        raise SuiteError(f"{path}: {where}: {said}") from None
    _check(suite, path)
    return suite


def _known(place: tuple[str | int, ...]) -> set[str]:
    """What may stand where something unknown does, by its place in the file."""
    if len(place) == 1:
        return set(fields(Suite))
    if place[0] == "budgets":
        return {"seeds", "set"} | set(fields(Budget))
    parts = {"columns": Column, "rows": Row, "paper": Published, "paper_rows": PaperRow,
             "claims": Claim}  # fmt: skip
    return set(fields(parts[str(place[0])]))


def _check(suite: Suite, path: Path) -> None:
    """Cross references; raises SuiteError."""
    rows = [r.id for r in suite.rows] + [r.id for r in suite.paper_rows]
    columns = [c.id for c in suite.columns]
    for kind, ids in (("row", rows), ("column", columns)):
        twice = {i for i in ids if ids.count(i) > 1}
        if twice:
            raise SuiteError(f"{path}: two {kind}s are called {sorted(twice)[0]!r}")
        # --set GROUP.NAME=VALUE could not tell it from the group.
        for name in ids:
            if not name or name in GROUPS:
                raise SuiteError(f"{path}: a {kind} cannot be called {name!r}")
    # It names a folder of results.
    if not suite.name or suite.name in (".", "..") or {"/", "\\"} & {*suite.name}:
        raise SuiteError(f"{path}: a suite cannot be called {suite.name!r}")
    for kind in suite.plots:
        if kind not in PLOTS:
            raise SuiteError(f"{path}: {UnknownName('kind of plot', kind, PLOTS)}")
    for cost in suite.costs:
        if cost not in COSTS:
            raise SuiteError(f"{path}: {UnknownName('cost', cost, COSTS)}")
    for name, budget in suite.budgets.items():
        if len(set(budget.seeds)) < len(budget.seeds):
            raise SuiteError(f"{path}: budgets.{name}.seeds: a seed stands there twice")
    missing = [b for b in BUDGETS if b not in suite.budgets]
    if missing:
        raise SuiteError(f"{path}: no budget {missing[0]!r}; every suite has {', '.join(BUDGETS)}")
    for number in suite.paper:
        for kind, name, known in (("row", number.row, rows), ("column", number.column, columns)):
            if name not in known:
                raise SuiteError(f"{path}: a paper number names {kind} {name!r}; known: {known}")
        if number.label.strip("[]") not in LABELS:
            unknown = UnknownName("label of paper numbers called", number.label, LABELS)
            raise SuiteError(f"{path}: paper number {number.row}/{number.column}: {unknown}")
        if number.pm is not None and not number.pm_meaning:
            raise SuiteError(
                f"{path}: paper number {number.row}/{number.column}: +- {number.pm} "
                "of what? give pm_meaning"
            )
    if suite.claims and suite.logs:
        raise SuiteError(
            f"{path}: claims are tested by differences; logs = true compares methods by logarithms"
        )
    for claim in suite.claims:
        for kind, names, known in (
            ("row", [*claim.better, claim.than], [r.id for r in suite.rows]),
            ("column", claim.columns, columns),
        ):
            for name in names:
                if name not in known:
                    raise SuiteError(f"{path}: a claim: {UnknownName(kind, name, known)}")
        if claim.than in claim.better:
            raise SuiteError(f"{path}: a claim compares row {claim.than!r} with itself")
        for names in (claim.better, claim.columns):
            if again := [name for name in names if names.count(name) > 1]:
                raise SuiteError(f"{path}: a claim names {again[0]!r} twice")
    places: list[Column | Row] = [*suite.columns, *suite.rows]
    for place in places:
        for name in [*place.budgets, *(place.cells if isinstance(place, Row) else ())]:
            if name not in suite.budgets:
                raise SuiteError(f"{path}: {place.id} names budget {name!r}")
    for row in suite.rows:
        for name in [*row.columns, *row.skip, *(c for at in row.cells.values() for c in at)]:
            if name not in columns:
                raise SuiteError(f"{path}: row {row.id} names column {name!r}; known: {columns}")
        if row.skip and not row.skip_reason:
            raise SuiteError(f"{path}: row {row.id} skips columns without a skip_reason")
