"""What a suite would do: its cells, which of them are finished, possible, missing something, dear.

Nothing is built, and no store is written to: tasks and methods are asked for their declarations
only, or what they said before is recalled (:mod:`metabench.suites.resolving`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from metabench.core.capabilities import why_not
from metabench.core.cell import Cell, of_cell
from metabench.core.declaration import Declaration
from metabench.core.environment import optional_packages
from metabench.core.errors import DataMissing, SettingError, SuiteError, UnknownName
from metabench.core.registry import REGISTRIES, methods, solvers
from metabench.core.settings import several, values
from metabench.store.cell_folder import CHECKPOINT
from metabench.store.files import BadFile
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites import published_costs
from metabench.suites.durations import Estimates
from metabench.suites.overrides import read_overrides
from metabench.suites.schema import Column, Row, SuiteBudget
from metabench.suites.suite import Suite, SuiteCell

State = Literal[
    "done",
    "failed",
    "diverged",
    "timeout",
    "running",
    "open",
    "closed",
    "missing package",
    "missing data",
    "not applicable",
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
"""How a cell stands, in the order in which states are told. Those from "pending" on are known only
where a cluster was asked."""
STATES: tuple[State, ...] = get_args(State)
TO_RUN = frozenset({"open", "failed", "diverged", "timeout", "running"})
"""States of the cells that a launch is given; it leaves the running ones to whoever runs them."""
NEVER_RUN = frozenset({"not applicable", "skipped"})
"""States of the cells that no launch is given, whatever is installed."""


@dataclass(frozen=True)
class Planned:
    """A cell of a suite, how it stands, why, and what to type where something is missing.

    ``estimated_seconds``: of training and evaluation, from ``similar`` finished cells of the same
    task and method; None where there are none, or where there is nothing left to run.
    ``published_seconds``: where nothing similar is finished here, what it would take on
    ``published_on``, the machine of a published run with the same settings; None where there is
    none. ``record``: what the store has of the cell, also where its run went wrong.
    """

    row: str
    column: str
    cell: Cell
    state: State
    reason: str = ""
    repair: str = ""
    estimated_seconds: float | None = None
    similar: int = 0
    published_seconds: float | None = None
    published_on: str = ""
    record: Record | None = field(default=None, repr=False)
    said: Declaration | None = field(default=None, compare=False, repr=False)
    """``declaration``, where whoever planned the cell has it."""

    @property
    def declaration(self) -> Declaration:
        """What the cell's task, method and solver declare."""
        return self.said or of_cell(self.cell).declaration

    @property
    def why(self) -> str:
        """Why there is no number, with what repairs it: for those who see no more than a table."""
        if self.state == "open":
            return self.reason or "not run yet"
        return f"{self.reason}; {self.repair}" if self.repair else self.reason


class Kept(Protocol):
    """What a plan asks of a :class:`metabench.store.store.Store`."""

    def folder(self, key: str) -> Path:
        """The folder of a cell; it need not exist."""
        ...

    def holder(self, key: str) -> object | None:
        """Who is running a cell now, in words; None where nobody is."""
        ...

    def closed(self, key: str) -> BadFile | None:
        """What this user may not read of a cell that has no record that they can read."""
        ...


WhyNot = Callable[[Any, Any, Any], str | None]
"""Task, method and solver to the reason why they do not go together, if there is one."""


def plan(
    suite_cells: Iterable[SuiteCell],
    store: Store,
    records: Sequence[Record] | None = None,
    due: Collection[str] = TO_RUN,
) -> list[Planned]:
    """How each cell stands and what it will take, in the order given.

    ``records``: all of the store's, where the caller has read them; ``due``: the states of those
    that are to be run.
    """
    records = store.records() if records is None else records
    estimates = Estimates(records)
    out = []
    for planned in states_of(suite_cells, store, records):
        if planned.state in due:
            seconds, similar = estimates.of(planned.cell)
            planned = replace(planned, estimated_seconds=seconds, similar=similar)
            if seconds is None and (published := published_costs.table().of(planned.cell)):
                taken, machine = published
                planned = replace(planned, published_seconds=taken, published_on=machine)
        out.append(planned)
    return out


def states_of(
    suite_cells: Iterable[SuiteCell],
    store: Kept,
    records: Iterable[Record],
    why_not: WhyNot | None = None,
) -> list[Planned]:
    """How each cell stands, in the order given, by the ``records`` that ``store`` has.

    ``why_not``: instead of what the parts of a cell declare.
    """
    known = {record.key: record for record in records}
    return [state_of(item, store, known.get(item.cell.key), why_not) for item in suite_cells]


def state_of(
    item: SuiteCell, store: Kept, record: Record | None, why_not: WhyNot | None = None
) -> Planned:
    """How one cell stands: the only place where that is decided.

    What is finished is done, whatever is missing here; what cannot be run here says so, even where
    an earlier run of it went wrong.
    """
    said = item.declaration

    def planned(state: State, reason: str = "", repair: str = "") -> Planned:
        kept = None if state in NEVER_RUN else record
        return Planned(
            item.row, item.column, item.cell, state, reason, repair, record=kept, said=said
        )

    if item.skip is not None:
        return planned("skipped", item.skip)
    if reason := said.why_not if why_not is None else why_not(*item.parts[:3]):
        return planned("not applicable", reason)
    if record is not None and record.status == "done":
        return planned("done")
    if record is None and (closed := store.closed(item.cell.key)) is not None:
        return planned("closed", str(closed), closed.repair)
    if (holder := store.holder(item.cell.key)) is not None:
        return planned("running", f"by {holder}")
    if missing := _missing_package(said):
        return planned("missing package", *missing)
    if missing := _missing_data(said) or (item.parts[0].missing if said.looks else None):
        return planned("missing data", *missing)
    if record is not None:
        return planned(record.status, record.reason)
    if (store.folder(item.cell.key) / CHECKPOINT).is_file():
        return planned("open", "goes on from a checkpoint")
    return planned("open")


def as_it_ended(planned: Planned) -> Planned:
    """What a report says of a cell that cannot be run here and whose run diverged or was out of
    time: that. (One that failed may have failed for what is missing.)"""
    record = planned.record
    lacking = planned.state in ("missing package", "missing data")
    if not lacking or record is None or record.status == "failed":
        return planned
    return replace(planned, state=record.status, reason=record.reason, repair="")


def _missing_package(said: Declaration) -> tuple[str, str] | None:
    """Why the first package that cannot be used cannot, and the command that installs it."""
    for name in said.packages:
        if lack := optional_packages.why_not(name):
            return lack, " && ".join(optional_packages.recipe(name))
    return None


def _missing_data(said: Declaration) -> tuple[str, str] | None:
    """What a task cannot find, and the command that repairs it."""
    if not said.data:
        return None
    from metabench.datasets import locate

    for name in said.data:
        try:
            locate.locate(name, None if said.source == "auto" else said.source)
        except DataMissing as error:
            return str(error).partition("; repair:")[0], error.repair
        except UnknownName as error:
            return str(error), ""
    return None


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
    if not (seeds is None or isinstance(seeds, Iterable)):
        raise SettingError(f"seeds cannot be {seeds!r}: give a list of whole numbers")
    only = several("only", only)
    cells = suite.cells(budget, read_overrides(set), seeds)
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


def suite_of_pairs(
    task_names: Sequence[str | Any],
    method_names: Sequence[str | Any] | None,
    solver: str | None = None,
) -> Suite:
    """A suite of the given tasks and methods: registered names, each with its own defaults, or
    instances, with the settings that they have. Methods None: all that apply to one of the tasks.

    Raises UnknownName; SuiteError where the tasks have no metric or no evaluation in common, and
    for two of one name.
    """
    if not task_names or (method_names is not None and not method_names):
        raise SuiteError("name a suite, or at least one --task and one --method")
    chosen_tasks = _parts("task", task_names)
    chosen_methods = _parts(
        "method", _applicable(chosen_tasks) if method_names is None else method_names
    )
    if solver is not None:
        solvers.get(solver)
    metrics = {(part.metric, part.goal) for _, part, _ in chosen_tasks}
    if len(metrics) > 1:
        told = ", ".join(f"{name}: {part.metric}" for name, part, _ in chosen_tasks)
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
    tasks_told, methods_told = (
        [name for name, _, _ in chosen] for chosen in (chosen_tasks, chosen_methods)
    )
    own = any(given for _, _, given in [*chosen_tasks, *chosen_methods])
    settings_told = "Settings as given" if own else "Default settings of each"
    return Suite(
        name="-".join([*tasks_told, "x", *(methods_told if method_names is not None else ["all"])]),
        title=f"{', '.join(methods_told)} on {', '.join(tasks_told)}",
        columns=[
            Column(id=name, task=name, set={"task": given} if given else {})
            for name, _, given in chosen_tasks
        ],
        rows=[
            Row(
                id=name,
                method=name,
                chosen="own" if given else "default",
                solver=solver,
                set={"method": given} if given else {},
            )
            for name, _, given in chosen_methods
        ],
        budgets={b: SuiteBudget(seeds=seeds[b], limits=limits[b]) for b in limits},
        metric=metric,
        goal=goal,
        evaluation=_evaluation(chosen_tasks),
        description=f"{settings_told}; not a published table.",
    )


Named = tuple[str, Any, dict[str, Any]]
"""A name, what says its metric or its needs, and the settings that are not the defaults."""


def _parts(kind: str, given: Any) -> list[Named]:
    """What registered names and instances stand for, each once; an instance's settings go along."""
    if isinstance(given, str):
        several(f"{kind}s", given)  # refuses it, with a list in its place
    items = [*given] if isinstance(given, Iterable) else [given]
    named: list[Named] = []
    for item in items:
        if isinstance(item, str):
            named.append((item, REGISTRIES[kind].get(item), {}))
            continue
        name = getattr(item, "registered_name", None)
        if name is None or isinstance(item, type):
            raise SettingError(f"{kind}s cannot have {item!r}: give a {kind}'s name, or a {kind}")
        known = values(REGISTRIES[kind].get(name)())
        own = {k: v for k, v in values(item).items() if k not in known or known[k] != v}
        named.append((name, item, own))
    by_name: dict[str, Named] = {}
    for part in named:
        before = by_name.setdefault(part[0], part)
        if before[2] != part[2]:
            raise SuiteError(f"two {kind}s are called {part[0]!r}: give them one after another")
    return list(by_name.values())


def _applicable(chosen: Sequence[Named]) -> list[str]:
    """Methods that apply, under default settings, to one of the tasks at least."""
    made = [part() if isinstance(part, type) else part for _, part, _ in chosen]
    names = methods.names()
    return [n for n in names if any(why_not(t, methods.get(n)()) is None for t in made)]


def _evaluation(chosen: Sequence[Named]) -> str:
    """The split that all tasks are compared on: "test", or "valid" where none has more."""
    made = [part() if isinstance(part, type) else part for _, part, _ in chosen]
    tested = {t.evaluations is None or "test" in t.evaluations for t in made}
    if tested == {False} and not any(t.evaluations for t in made):
        return "valid"
    if len(tested) > 1:
        raise SuiteError("some of the tasks have no split 'test': cross them one at a time")
    return "test"
