"""The options that commands share, and the cells that they choose together."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metabench.cli.command import typed

if TYPE_CHECKING:
    from metabench.store.files import BadFile
    from metabench.store.store import Store
    from metabench.suites.arena.definition import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite

PLUGIN = "--plugin"


def _suite_names(incomplete: str) -> list[str]:
    from metabench.core.catalogue import arena_names, suite_names

    return [n for n in [*suite_names(), *arena_names(), "all"] if n.startswith(incomplete)]


def _tracker_names(incomplete: str) -> list[str]:
    from metabench.core.registry import trackers

    return [n for n in trackers.names() if n.startswith(incomplete)]


def typed_path(name: str) -> Callable[[str], Path]:
    """Reads a path that is typed as ``name``. Raises SettingError."""

    def read(text: str) -> Path:
        from metabench.core.settings import place

        return place(name, text)

    return read


def typed_store(text: str) -> Path:
    """Reads the path of a store, from the command line or METABENCH_STORE. Raises SettingError, and
    WrongPath for a file."""
    from metabench.core.errors import WrongPath
    from metabench.store.store import VARIABLE

    store = typed_path("--store")(text)
    if store.is_file():
        name = f"{VARIABLE}={text}" if os.environ.get(VARIABLE) == text else f"--store {text}"
        file, published = shlex.quote(text), store.name.endswith(".jsonl.gz")
        hint = f"; to read it: metabench store import {file}" if published else ""
        raise WrongPath(f"{name}: a file, and a store is a folder, such as {store.parent}{hint}")
    return store


def check_store(store: Path | None) -> None:
    """What only reads asks for a store that is there, if one was typed: a mistyped path would look
    as a store without records does. Raises WrongPath."""
    from metabench.core.errors import WrongPath, nearest

    if store is None or store.exists() or not typed("store"):
        return
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [each.name for each in store.absolute().parent.iterdir() if each.is_dir()]
    near = ", ".join(str(store.parent / name) for name in nearest(store.name, beside))
    raise WrongPath(f"--store {store}: no such folder" + (f"; near: {near}" if near else ""))


def _profile_names(incomplete: str) -> list[str]:
    from metabench.cluster.profile import names

    return [n for n in names() if n.startswith(incomplete)]


SuiteName = Annotated[
    str | None,
    typer.Argument(
        metavar="SUITE",
        autocompletion=_suite_names,
        show_default=False,
        help="A built-in suite, the path of a .toml file, or 'all'.",
    ),
]
OneSuite = Annotated[
    str, typer.Argument(metavar="SUITE", help="A built-in suite, or the path of a .toml file.")
]
BudgetName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="smoke (seconds), laptop (minutes to hours: plan says), paper (for GPUs).",
    ),
]
ArenaBudget = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="laptop, or the one whose scores ship with the arena",
        help="How many trials and seeds, and who plays where.",
    ),
]


def _store(parser: Callable[[str], Path]) -> Any:
    return typer.Option(
        "--store",
        parser=parser,
        metavar="DIR",
        envvar="METABENCH_STORE",
        show_default="results/runs",
        help="Where records are kept.",
    )


StorePath = Annotated[Path | None, _store(typed_store)]
AnyPath = Annotated[Path | None, _store(typed_path("--store"))]
"""What is to be looked at, a file too."""
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=typed_path("--out"),
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
_CLUSTER = typer.Option(
    "--cluster",
    metavar="PROFILE",
    autocompletion=_profile_names,
    show_default=False,
    help="A cluster profile, or the path of its .toml file.",
)
ClusterName = Annotated[str, _CLUSTER]
MaybeCluster = Annotated[str | None, _CLUSTER]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Instead of a suite: this task (repeatable) ..."),
]
MethodNames = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="... crossed with this method (repeatable) ..."),
]
MOST_SEEDS = 10_000
"""Of one command; more are a typing mistake."""


OF_SUITES = ("budget", "set", "seeds", "only", "solver")
"""Options that choose cells of a suite."""


@dataclass(frozen=True)
class Choice:
    """Which cells a command is about, as they were typed."""

    suite: SuiteName = None
    budget: BudgetName = "laptop"
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP.NAME=VALUE",
            help="A setting: GROUP is task, method, "
            "solver, budget, or the name of a row or column (ROW.solver.NAME=... for another "
            "group); a method's or task's name that is not one's means all of it. Repeatable.",
        ),
    ] = None
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,5-9", help="Instead of the budget's seeds.")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROW/COLUMN",
            help="Only these cells: a row, a column, or ROW/COLUMN; * stands for anything. "
            "Repeatable.",
        ),
    ] = None
    task: TaskNames = None
    method: MethodNames = None
    solver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="... with this inner solver; without, the method's own."),
    ] = None
    store: StorePath = None

    @property
    def whole_store(self) -> bool:
        """Whether neither a suite nor tasks and methods are named."""
        return self.suite is None and not (self.task or self.method)

    def suites(self) -> list[Suite]:
        """The suites meant; raises UnknownName, SuiteError."""
        from metabench.core.catalogue import suite_names
        from metabench.core.errors import SuiteError
        from metabench.suites import loading as suites
        from metabench.suites import planning

        if self.suite is None:
            return [planning.suite_of_pairs(self.task or [], self.method or [], self.solver)]
        if self.task or self.method:
            raise SuiteError(f"name suite {self.suite!r} or --task and --method, not both")
        if self.solver:
            raise SuiteError(
                f"--solver goes with --task and --method: suite {self.suite!r} says itself which "
                "inner solver a row has"
            )
        names = suite_names() if self.suite == "all" else [self.suite]
        return [suites.load(name) for name in names]

    def planned(self) -> list[tuple[Suite, list[Planned]]]:
        """Every suite with its plan; every word is checked before the first plan is made."""
        return self.scanned()[0]

    def scanned(self) -> tuple[list[tuple[Suite, list[Planned]]], list[BadFile]]:
        """:meth:`planned`, and every file of the store that cannot be trusted: its cells are
        planned as if they had never been run."""
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
        store = self.open_store()
        records, bad = store.scan()
        return [(s, planning.plan(chosen, store, records)) for s, chosen in cells], bad

    def arena(self) -> Arena | None:
        """The arena meant, None where none is; raises SuiteError for what an arena leaves nobody to
        choose."""
        from metabench.core.catalogue import arena_names, is_arena
        from metabench.core.errors import SuiteError
        from metabench.suites.arena import definition as arena

        name = self.suite
        if name is None or not (name in arena_names() or is_arena(Path(name))):
            return None
        options = ("set", "seeds", "only", "task", "method", "solver")
        if given := [f"--{option}" for option in options if getattr(self, option)]:
            raise SuiteError(
                f"{name} is an arena: all of it is run as its file says, so that there is no "
                f"{given[0]}"
            )
        return arena.load(name)

    def open_store(self) -> Store:
        """The store meant."""
        from metabench.store.store import Store

        return Store(self.store)

    def check_store(self) -> None:
        """:func:`check_store` of the store meant."""
        check_store(self.store)

    def words(self) -> dict[str, Any]:
        """The keyword arguments of the verbs in :mod:`metabench.api`."""
        return {
            "budget": self.budget,
            "set": self.set or (),
            "seeds": seed_list(self.seeds),
            "store": self.open_store(),
        }


Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified", help="Published numbers from memory too, each with a question mark."
    ),
]


@dataclass(frozen=True)
class Launch:
    """How cells are run on this machine, as it was typed."""

    jobs: Jobs = None
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default="a GPU if there is one", help="cpu, cuda, cuda:1."
        ),
    ] = None
    time_limit: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="For each cell.")
    ] = None
    checkpoint_every: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="Least time between two checkpoints of a cell."
        ),
    ] = 60.0
    ranks: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes that share the episodes of one cell, each with a GPU where there are "
            "several; for cells too large for one.",
        ),
    ] = 1
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PLACE]",
            autocompletion=_tracker_names,
            help="Live curves in tensorboard, wandb or mlflow, or by another package's tracker; "
            "PLACE is a folder, a project, an address. Repeatable.",
        ),
    ] = None


def seed_list(text: str | None) -> list[int] | None:
    """ "0,1,5-9" as numbers, each once; raises SettingError."""
    from metabench.core.errors import SettingError

    if text is None:
        return None
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not re.fullmatch(r"\d{1,18}(-\d{1,18})?", part.strip(), re.ASCII):
            raise SettingError(f"seeds cannot be {text!r}; write for example 0,1,2 or 0-4")
        if dash and int(last) < int(first):
            raise SettingError(f"seeds cannot be {text!r}: {part.strip()} runs backwards")
        span = range(int(first), int(last if dash else first) + 1)
        if len(out) + len(span) > MOST_SEEDS:
            raise SettingError(f"seeds cannot be {text!r}: they are more than {MOST_SEEDS:,}")
        out += span
    return list(dict.fromkeys(out))
