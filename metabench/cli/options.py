"""The options that commands share, and the cells that they choose together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metabench.store.store import Store
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite


def _suite_names(incomplete: str) -> list[str]:
    from metabench.core.catalogue import suite_names

    return [n for n in [*suite_names(), "all"] if n.startswith(incomplete)]


SuiteName = Annotated[
    str | None,
    typer.Argument(
        metavar="SUITE",
        autocompletion=_suite_names,
        show_default=False,
        help="A built-in suite, the path of a .toml file, or 'all'.",
    ),
]
TaskNames = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME", help="Instead of a suite: this task (repeatable) ..."),
]
MethodNames = Annotated[
    list[str] | None,
    typer.Option("--method", metavar="NAME", help="... crossed with this method (repeatable) ..."),
]
SolverName = Annotated[
    str | None,
    typer.Option(
        "--solver", metavar="NAME", help="... with this inner solver; without, the method's own."
    ),
]
BudgetName = Annotated[
    str,
    typer.Option(
        "--budget", metavar="NAME", help="smoke (seconds), laptop (minutes), paper (for GPUs)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="GROUP.NAME=VALUE",
        help="A setting: GROUP is task, method, "
        "solver, budget, or the name of a row or column (ROW.solver.NAME=... for another group). "
        "Repeatable.",
    ),
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="0,1,5-9", help="Instead of the budget's seeds.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="ROW/COLUMN",
        help="Only these cells: a row, a column, or ROW/COLUMN; * stands for anything. Repeatable.",
    ),
]
StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar="METABENCH_STORE",
        show_default="results/runs",
        help="Where records are kept.",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        show_default="results/SUITE/BUDGET",
        help="The folder for files.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        show_default="one a GPU, or one a core",
        help="Cells at a time.",
    ),
]
RanksEach = Annotated[
    int,
    typer.Option(
        "--ranks",
        min=1,
        metavar="N",
        help="Processes that share the episodes of one cell, each with a GPU where there are "
        "several; for cells too large for one.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        show_default="a GPU if there is one",
        help="cpu, cuda, cuda:1.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option("--time-limit", min=0, metavar="SECONDS", help="For each cell."),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        "--checkpoint-every",
        min=0,
        metavar="SECONDS",
        help="Least time between two checkpoints of a cell.",
    ),
]


MOST_SEEDS = 10_000
"""Of one command; more are a slip of the keyboard."""


@dataclass(frozen=True)
class Choice:
    """Which cells a command is about, as they were typed."""

    suite: str | None
    budget: str
    set: Sequence[str] | None
    seeds: str | None
    store: Path | None
    tasks: Sequence[str] | None
    methods: Sequence[str] | None
    solver: str | None
    only: Sequence[str] | None = None

    def suites(self) -> list[Suite]:
        """The suites meant; raises UnknownName, SuiteError."""
        from metabench.core.catalogue import suite_names
        from metabench.core.errors import SuiteError
        from metabench.suites import loading as suites
        from metabench.suites import planning

        if self.suite is None:
            return [planning.suite_of_pairs(self.tasks or [], self.methods or [], self.solver)]
        if self.tasks or self.methods:
            raise SuiteError(f"name suite {self.suite!r} or --task and --method, not both")
        names = suite_names() if self.suite == "all" else [self.suite]
        return [suites.load(name) for name in names]

    def planned(self) -> list[tuple[Suite, list[Planned]]]:
        """Every suite with its plan; every word is checked before the first plan is made."""
        from metabench.suites import planning

        cells = [
            (
                s,
                planning.choose(
                    s,
                    self.budget,
                    set=self.set or (),
                    seeds=seed_list(self.seeds),
                    only=self.only or (),
                ),
            )
            for s in self.suites()
        ]
        return [(s, planning.plan(chosen, self.open_store())) for s, chosen in cells]

    def open_store(self) -> Store:
        """The store meant."""
        from metabench.store.store import Store

        return Store(self.store)

    def words(self) -> dict[str, Any]:
        """The keyword arguments of the verbs in :mod:`metabench.api`."""
        return {
            "budget": self.budget,
            "set": self.set or (),
            "seeds": seed_list(self.seeds),
            "store": self.open_store(),
        }


def seed_list(text: str | None) -> list[int] | None:
    """ "0,1,5-9" as numbers, each once; raises SettingError."""
    from metabench.core.errors import SettingError

    if text is None:
        return None
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise SettingError(f"seeds cannot be {text!r}; write for example 0,1,2 or 0-4")
        if dash and int(last) < int(first):
            raise SettingError(f"seeds cannot be {text!r}: {part.strip()} runs backwards")
        span = range(int(first), int(last if dash else first) + 1)
        if len(out) + len(span) > MOST_SEEDS:
            raise SettingError(f"seeds cannot be {text!r}: they are more than {MOST_SEEDS:,}")
        out += span
    return list(dict.fromkeys(out))
