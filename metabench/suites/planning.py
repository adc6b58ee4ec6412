"""What a suite would do: its cells, which of them are finished, possible, missing something, dear.

Nothing is built and nothing is written: tasks and methods are asked for their declarations only.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from metabench.core import optional_packages
from metabench.core.capabilities import why_not
from metabench.core.cell import CONTRACT, Cell, canonical, instances
from metabench.core.errors import DataMissing, SettingError, SuiteError, UnknownName
from metabench.core.registry import methods, solvers, tasks
from metabench.store.record import Record
from metabench.store.store import CHECKPOINT, Store
from metabench.suites.suite import (
    Column,
    Override,
    Row,
    Suite,
    SuiteBudget,
    SuiteCell,
    parse_override,
)

State = Literal[
    "done",
    "open",
    "failed",
    "diverged",
    "timeout",
    "running",
    "not applicable",
    "missing data",
    "missing package",
    "skipped",
    "pending",
    "held",
    "cancelled",
    "out of memory",
    "out of time",
    "node failure",
    "pre-empted",
    "crashed",
    "lost",
]
STATES: tuple[State, ...] = get_args(State)
TO_RUN = frozenset({"open", "failed", "diverged", "timeout", "running"})
"""States of the cells that a launch is given; it leaves the running ones to whoever runs them."""


@dataclass(frozen=True)
class Planned:
    """A cell of a suite, how it stands, why, and what to type where something is missing.

    States from "pending" on are known only where a cluster was asked.
    ``estimated_seconds``: of training and evaluation, from ``similar`` finished cells of the same
    task and method; None where there are none, or where there is nothing left to run.
    """

    row: str
    column: str
    cell: Cell
    state: State
    reason: str = ""
    mend: str = ""
    estimated_seconds: float | None = None
    similar: int = 0


def plan(suite_cells: Iterable[SuiteCell], store: Store) -> list[Planned]:
    """How each cell stands, in the order given."""
    records = {record.key: record for record in store.records()}
    estimates = Estimates(records.values())
    out = []
    for item in suite_cells:
        planned = _stand(item, store, records.get(item.cell.key))
        if planned.state in TO_RUN:
            seconds, similar = estimates.of(item.cell)
            planned = replace(planned, estimated_seconds=seconds, similar=similar)
        out.append(planned)
    return out


def _stand(item: SuiteCell, store: Store, record: Record | None) -> Planned:
    cell = item.cell

    def planned(state: State, reason: str = "", mend: str = "") -> Planned:
        return Planned(item.row, item.column, cell, state, reason, mend)

    if item.skip is not None:
        return planned("skipped", item.skip)
    task, method, solver, _ = instances(cell)
    reason = why_not(task, method, solver)
    if reason:
        return planned("not applicable", reason)
    if record is not None and record.status == "done":
        return planned("done")
    holder = store.holder(cell.key)
    if holder is not None:
        return planned("running", f"by {holder}")
    for part in (task, method, solver):
        for name in getattr(part, "packages", ()):
            if lack := optional_packages.why_not(name):
                mend = " && ".join(optional_packages.recipe(name))
                return planned("missing package", lack, mend)
    missing = _missing_data(task) or getattr(task, "missing", None)
    if missing is not None:
        return planned("missing data", *missing)
    if record is not None:
        return planned(record.status, record.reason)
    if (store.folder(cell.key) / CHECKPOINT).is_file():
        return planned("open", "goes on from a checkpoint")
    return planned("open")


def _missing_data(task: Any) -> tuple[str, str] | None:
    """What a task cannot find, and the command that mends it."""
    if not task.data:
        return None
    from metabench.datasets import data

    source = getattr(task, "source", "auto")
    for name in task.data:
        try:
            data.locate(name, None if source == "auto" else source)
        except DataMissing as error:
            return str(error).partition("; mend:")[0], error.mend
        except UnknownName as error:
            return str(error), ""
    return None


class Estimates:
    """Seconds that a cell will take, from the finished ones of the same task and method."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._finished: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            # Those of another contract may have other budgets, and took other work.
            if record.status == "done" and record.cell.contract == CONTRACT:
                self._finished[record.cell.task, record.cell.method].append(record)
        self._found: dict[str, tuple[float | None, int]] = {}

    def of(self, cell: Cell) -> tuple[float | None, int]:
        """The median over similar cells, scaled by the work planned, and how many those are.

        Cells with equal settings are preferred, whatever their seed and budget.
        """
        # Seeds are many, and cost the same.
        key = canonical([cell.task, cell.method, *_settings(cell), cell.budget])
        if key not in self._found:
            self._found[key] = self._median(cell)
        return self._found[key]

    def _median(self, cell: Cell) -> tuple[float | None, int]:
        known = self._finished.get((cell.task, cell.method), [])
        equal = [r for r in known if _settings(r.cell) == _settings(cell)]
        for group in (equal, known):
            found = [s for s in (_scaled(r, cell) for r in group) if s is not None]
            if found:
                return statistics.median(found), len(found)
        return None, 0


def _settings(cell: Cell) -> tuple[Any, ...]:
    return (cell.task_settings, cell.method_settings, cell.solver, cell.solver_settings)


def _scaled(record: Record, cell: Cell) -> float | None:
    """Seconds of ``cell`` if it costs as much a unit of work as ``record`` did."""
    share = _share(record, cell.budget)
    if share is None:
        return None
    training: float = record.cost.get("seconds", 0.0) * share
    training = min(training, cell.budget.get("seconds", training))
    episodes = _judged(cell.budget, record.steps * share)
    ratio = episodes / max(1.0, _judged(record.cell.budget, record.steps))
    return training + record.cost.get("evaluation_seconds", 0.0) * ratio


def _share(record: Record, budget: Mapping[str, Any]) -> float | None:
    """How many times the record's work a budget asks for, by the first limit that binds."""
    spent = {"outer_steps": float(record.steps), **record.cost}
    ratios: list[float] = []
    for limit, used in spent.items():
        if limit in budget:
            if not used and budget[limit]:
                continue
            ratios.append(budget[limit] / used if used else 0.0)
    return min(ratios) if ratios else None


def _judged(budget: Mapping[str, Any], steps: float) -> float:
    """Episodes evaluated on the way and at the end."""
    rounds = steps / budget["eval_every"] + 1
    return float(rounds * budget["valid_episodes"] + budget["test_episodes"])


def choose(
    suite: Suite,
    budget: str,
    *,
    set: Iterable[str] | Mapping[str, Any] = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
) -> list[SuiteCell]:
    """The cells of a suite that are asked for, in table order.

    ``set``: "method.inner_lr=0.01", or the same as a mapping. ``only``: names of rows, columns,
    methods or tasks, or ROW/COLUMN; ``*`` stands for anything. The name of a row that is also its
    method's means the row alone. Raises UnknownName, SettingError.
    """
    cells = suite.cells(budget, overrides(set), seeds)
    suite.check_measured(cells)
    patterns = [_pattern(text, suite) for text in only]
    if not patterns:
        return cells
    methods_of = {r.id: r.method for r in suite.rows}
    tasks_of = {c.id: c.task for c in suite.columns}
    chosen = [
        item
        for item in cells
        if any(
            _meant(item.row, left, methods_of) and _meant(item.column, right, tasks_of)
            for left, right in patterns
        )
    ]
    if not chosen:
        raise SettingError(f"suite {suite.name}: no cell is both of {', '.join(only)}")
    return chosen


def _meant(place: str, pattern: str, parts: Mapping[str, str]) -> bool:
    """Whether a row (column) is meant: by its own name, or by its method's (task's), unless that is
    the name of a row (column) itself."""
    if fnmatchcase(place, pattern):
        return True
    return pattern not in parts and fnmatchcase(parts[place], pattern)


def _pattern(text: str, suite: Suite) -> tuple[str, str]:
    rows = {name for r in suite.rows for name in (r.id, r.method)}
    columns = {name for c in suite.columns for name in (c.id, c.task)}
    left, slash, right = text.partition("/")
    if not slash and not any(fnmatchcase(name, left) for name in rows):
        if not any(fnmatchcase(name, left) for name in columns):
            raise UnknownName(f"row or column of suite {suite.name!r}", text, rows | columns)
        return "*", left
    pair = left or "*", right or "*"
    for kind, pattern, names in (("row", pair[0], rows), ("column", pair[1], columns)):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownName(f"{kind} of suite {suite.name!r} called", pattern, names)
    return pair


def overrides(set: Iterable[str] | Mapping[str, Any]) -> list[Override]:
    """Overrides from "GROUP.NAME=VALUE" or from {"GROUP.NAME": value}; raises SettingError."""
    if not isinstance(set, Mapping):
        return [parse_override(text) for text in set]
    out = []
    for place, value in set.items():
        scope, dot, name = place.partition(".")
        if not (scope and dot and name):
            raise SettingError(f"cannot read setting {place!r}; write GROUP.NAME")
        out.append(Override(scope, name, value))
    return out


def crossing(
    task_names: Sequence[str], method_names: Sequence[str], solver: str | None = None
) -> Suite:
    """A suite of the given tasks and methods, each with its own defaults.

    Raises UnknownName; SuiteError where the tasks have no metric in common.
    """
    if not task_names or not method_names:
        raise SuiteError("name a suite, or at least one --task and one --method")
    classes = [tasks.get(name) for name in task_names]
    for name in method_names:
        methods.get(name)
    if solver is not None:
        solvers.get(solver)
    metrics = {(c.metric, c.goal) for c in classes}  # type: ignore[attr-defined]
    if len(metrics) > 1:
        told = ", ".join(f"{n}: {c.metric}" for n, c in zip(task_names, classes, strict=True))  # type: ignore[attr-defined]
        raise SuiteError(
            f"one table has one metric, and these tasks have several ({told}); "
            "cross them one at a time"
        )
    (metric, goal) = metrics.pop()
    limits = {
        "smoke": {"outer_steps": 5, "eval_every": 5, "valid_episodes": 5, "test_episodes": 10},
        "laptop": {
            "outer_steps": 200,
            "eval_every": 20,
            "valid_episodes": 50,
            "test_episodes": 200,
        },
        "paper": {"outer_steps": 10000, "eval_every": 500},
    }
    seeds = {"smoke": [0], "laptop": [0, 1, 2], "paper": [0, 1, 2, 3, 4]}
    return Suite(
        name="-".join([*dict.fromkeys(task_names), "x", *dict.fromkeys(method_names)]),
        title=f"{', '.join(method_names)} on {', '.join(task_names)}",
        columns=[Column(id=name, task=name) for name in dict.fromkeys(task_names)],
        rows=[Row(id=name, method=name, solver=solver) for name in dict.fromkeys(method_names)],
        budgets={b: SuiteBudget(seeds=seeds[b], limits=limits[b]) for b in limits},
        metric=metric,
        goal=goal,
        description="Default settings of each; not a published table.",
    )
