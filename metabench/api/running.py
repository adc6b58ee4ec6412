"""The verbs that plan and run cells, here or on a cluster, and say how they stand.

What they are given: :mod:`metabench.api.arguments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arguments import DEFAULT_BUDGET, Settings, load, once, open_store
from metabench.api.tracking import tracked
from metabench.core.errors import SettingError
from metabench.core.registry import REGISTRIES
from metabench.core.text import counted
from metabench.store.files import BadFile
from metabench.store.store import Store
from metabench.suites import planning as plans
from metabench.suites.planning import Planned
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.cluster.submission import Submission
    from metabench.run.events import Listener
    from metabench.run.workers.local_launcher import Summary
    from metabench.store.record import Record


def plan(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
) -> list[Planned]:
    """How each cell stands, and its cost in seconds where that can be told; nothing is run and
    nothing is built.

    ``budget``: a name that the suite has, such as "smoke"; ``seeds``: instead of the budget's own;
    ``only``: rows, columns or "ROW/COLUMN", ``*`` for anything.
    """
    cells = plans.choose(load(suite), budget, set=set, seeds=seeds, only=only)
    return plans.plan(cells, open_store(store))


def run(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
    jobs: int = 1,
    device: str | None = None,
    time_limit: float | None = None,
    checkpoint_seconds: float = 60.0,
    listener: Listener | None = None,
    ranks: int = 1,
    log: Sequence[str] = (),
) -> Summary:
    """Run every cell that can be run and is not done; cells are chosen as for :func:`plan`.

    ``jobs``: cells at a time; ``device``: "cpu", "cuda", "cuda:1" (None: a GPU where there is one);
    ``time_limit``: seconds for each cell; ``checkpoint_seconds``: least time between two
    checkpoints; ``listener`` is called with every event; ``ranks``: processes that share the
    episodes of one cell; ``log``: trackers of live curves, such as ["tensorboard"] or
    ["mlflow=sqlite:///runs.db"].

    Cells that are not applicable, skipped, or that lack data or a package are left out. Several
    ``jobs`` are processes that import the calling script again: it needs the usual
    ``if __name__ == "__main__":``. Raises SettingError for a ``device`` that is not there, and
    UnknownName or MetabenchError for a tracker that is not.
    """
    store, suite = open_store(store), load(suite)
    return run_planned(
        plan(suite, budget=budget, set=set, seeds=seeds, only=only, store=store),
        store,
        jobs=jobs,
        device=device,
        time_limit=time_limit,
        checkpoint_seconds=checkpoint_seconds,
        listener=listener,
        ranks=ranks,
        log=log,
        group=f"{suite.name} {budget}",
    )


def run_planned(
    planned: Sequence[Planned],
    store: Store,
    *,
    jobs: int = 1,
    device: str | None = None,
    time_limit: float | None = None,
    checkpoint_seconds: float = 60.0,
    listener: Listener | None = None,
    ranks: int = 1,
    log: Sequence[str] = (),
    group: str = "",
) -> Summary:
    """As :func:`run`, for the cells of a plan; finished ones are read, not run. ``group``: what
    trackers call them together."""
    from metabench.run.workers.local_launcher import launch

    check_device(device)
    for name, value, least in (
        ("jobs", jobs, 1),
        ("ranks", ranks, 1),
        ("time_limit", time_limit, 0),
        ("checkpoint_seconds", checkpoint_seconds, 0),
    ):
        if value is not None and not (isinstance(value, int | float) and value >= least):
            raise SettingError(f"{name} cannot be {value!r}: give a number of at least {least}")
    cells = [p.cell for p in planned if p.state in plans.TO_RUN or p.state == "done"]
    if jobs > 1 or ranks > 1:
        check_spawned(planned)
    with tracked(log, planned, store, listener, group) as listening:
        return launch(
            cells,
            store,
            jobs=jobs,
            device=device,
            time_limit=time_limit,
            checkpoint_seconds=checkpoint_seconds,
            listener=listening,
            ranks=ranks,
        )


def check_spawned(planned: Iterable[Planned]) -> None:
    """Raise SettingError for what worker processes would not find, as it was made in a session that
    they cannot import again: a notebook, a prompt."""
    for p in planned:
        if p.state not in plans.TO_RUN:
            continue
        for kind, name in (("task", p.cell.task), ("method", p.cell.method)):
            if REGISTRIES[kind].found_by(name) == "this":
                raise SettingError(
                    f"jobs and ranks are to be 1: {kind} {name!r} is known in this process alone; "
                    "or put the code that makes it into a file, and load that with --plugin FILE "
                    "(METABENCH_PLUGINS)"
                )


def check_device(device: str | None) -> None:
    """Raise SettingError for a device that no cell can be run on here, with those that there are:
    torch knows more, such as "meta", whose tensors have no numbers."""
    if device is None:
        return
    import torch

    gpus = torch.cuda.device_count()
    known = ["cpu", *["cuda"][:gpus], *(f"cuda:{i}" for i in range(gpus))]
    if str(device) not in known:
        raise SettingError(
            f"device cannot be {str(device)!r}: torch finds {counted(gpus, 'GPU')} here; "
            f"known: {', '.join(known)}"
        )


def submit(
    suite: str | Path | Suite,
    *,
    cluster: str | Path,
    budget: str = DEFAULT_BUDGET,
    set: Iterable[str] = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
    failed: bool = False,
) -> Submission | None:
    """Queue a suite's missing cells on a cluster and return at once; None where there is nothing to
    queue. ``set`` takes "slurm.time=60" too; ``failed``: what has failed is tried again.

    Raises Refusal (nothing was queued, each reason on a line) and SlurmError, both MetabenchError.
    """
    from metabench.cluster import profile
    from metabench.cluster.submitting import hints
    from metabench.cluster.submitting import submit as module
    from metabench.cluster.submitting.draft import TAKEN

    set, seeds, only = once(set), once(seeds), once(only)
    cells, own = profile.split_set(set)
    site = profile.load(cluster, own)
    words = None
    if not isinstance(suite, Suite):
        named = [hints.absolute(suite), "--budget", budget]
        numbers = [",".join(map(str, seeds))] if seeds else ()
        words = hints.words(named, cluster, set, seeds=numbers, only=only)
    suite, store = load(suite), open_store(store)
    planned = plan(suite, budget=budget, set=cells, seeds=seeds, only=only, store=store)
    states = TAKEN | ({"failed", "diverged"} if failed else frozenset())
    made, slurm = module.prepare(suite.name, budget, planned, site, store, states, words=words)
    return module.enqueue(made, slurm, planned) if made.cells else None


@dataclass(frozen=True)
class Status:
    """How things stand: the plan of a suite (empty where none was named), the records (of the
    suite's cells, else of the whole store), and the files that cannot be trusted."""

    planned: list[Planned]
    records: list[Record]
    problems: list[BadFile] = field(default_factory=list)


def status(
    suite: str | Path | Suite | None = None,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
) -> Status:
    """What is finished, what failed and why, what is damaged; nothing is run or moved. Raises
    SettingError for what chooses cells of a suite where none is named."""
    if suite is None and (set or only or seeds is not None):
        raise SettingError(
            "set, seeds and only choose cells of a suite: without one the whole store is told"
        )
    store = open_store(store)
    records, problems = store.scan()
    if suite is None:
        return Status([], records, problems)
    cells = plans.choose(load(suite), budget, set=set, seeds=seeds, only=only)
    planned = plans.plan(cells, store, records)
    return Status(planned, [p.record for p in planned if p.record is not None], problems)
