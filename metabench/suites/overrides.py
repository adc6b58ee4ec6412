"""Settings that a user gives for some or all cells of a suite: ``--set GROUP.NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metabench.core.cell import Budget
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import methods, solvers, tasks
from metabench.core.settings import fields, parse, several
from metabench.suites.schema import GROUPS, Column, Groups, Row


@dataclass(frozen=True)
class Override:
    """``--set GROUP.NAME=VALUE``; GROUP is task, method, solver, budget, or the name of a row, a
    method, a column or a task that it is meant for alone (``ROW.solver.NAME``: another group). As
    with ``--only``, the name of a row that is also its method's means the row alone."""

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
    rows: frozenset[str] | None = None
    """Ids of the rows that it is meant for; None: all."""
    columns: frozenset[str] | None = None

    def concerns(self, row: Row, column: Column) -> bool:
        """Whether the override is meant for this row and column."""
        return (self.rows is None or row.id in self.rows) and (
            self.columns is None or column.id in self.columns
        )


def parse_override(text: str) -> Override:
    """An override from the command line; raises SettingError unless it reads GROUP.NAME=VALUE."""
    name, equals, value = text.partition("=")
    scope, dot, setting = name.strip().partition(".")
    if not (equals and dot and scope and setting):
        raise SettingError(
            f"cannot read setting {text!r}; write GROUP.NAME=VALUE, for example "
            "method.inner_lr=0.01"
        )
    return Override(scope, setting, parse(value.strip()))


def read_overrides(set: Iterable[str] | Mapping[str, Any]) -> list[Override]:
    """Overrides from "GROUP.NAME=VALUE" or from {"GROUP.NAME": value}; raises SettingError."""
    if not isinstance(set, Mapping):
        return [parse_override(text) for text in several("set", set)]
    several("names of settings", set)
    out = []
    for place, value in set.items():
        scope, dot, name = place.partition(".")
        if not (scope and dot and name):
            raise SettingError(f"cannot read setting {place!r}; write GROUP.NAME")
        out.append(Override(scope, name, value))
    return out


def place_overrides(
    overrides: Iterable[Override], rows: Sequence[Row], columns: Sequence[Column]
) -> None:
    """Find the group that each override is meant for; raises UnknownName where there is none. That
    takes no class of a task or method, which would take torch."""
    for override in overrides:
        found = zip(("group", "rows", "columns"), _meant_for(override, rows, columns), strict=True)
        for name, value in found:
            object.__setattr__(override, name, value)


def check_overrides(
    overrides: Iterable[Override], rows: Sequence[Row], columns: Sequence[Column]
) -> None:
    """Raise UnknownName where an override that has its place names a setting that there is not."""
    for override in overrides:
        for row in rows:
            for column in columns:
                if override.concerns(row, column):
                    _check_override(override, row, column)


def _meant_for(
    override: Override, rows: Sequence[Row], columns: Sequence[Column]
) -> tuple[str, frozenset[str] | None, frozenset[str] | None]:
    """The group, and the rows and the columns that the override is limited to."""
    scope = override.scope
    if scope in GROUPS:
        return scope, None, None
    group, dot, _ = override.name.partition(".")
    if dot and group not in GROUPS:
        raise UnknownName("group of settings", group, GROUPS)
    if named := _named(scope, {r.id: r.method for r in rows}):
        return group if dot else "method", named, None
    if named := _named(scope, {c.id: c.task for c in columns}):
        return group if dot else "task", None, named
    known = {*GROUPS} | {r.id for r in rows} | {c.id for c in columns}
    raise UnknownName("group of settings", scope, known)


def _named(scope: str, parts: Mapping[str, str]) -> frozenset[str]:
    """The row (column) of this id, else all of this method (task)."""
    if scope in parts:
        return frozenset({scope})
    return frozenset(at for at, part in parts.items() if part == scope)


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
        method: Any = methods.get(row.method)
        solver = row.solver or method.default_solver
        what, cls = f"solver {solver} (row {row.id})", solvers.get(solver)
        one = f"row, write ROW.solver.{name}=..."
    if name not in fields(cls):
        everywhere = override.rows is None and override.columns is None
        hint = f"to set it for one {one}" if one and everywhere else ""
        raise UnknownName(f"setting of {what} called", name, fields(cls), hint)
