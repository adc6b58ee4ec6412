"""The verbs of the command line, from Python: they return what the command line prints.

``suite`` is the name of a built-in suite, the path of a suite file, or a :class:`Suite`; ``set`` is
{"method.inner_lr": 0.01} or ["method.inner_lr=0.01"]; ``store`` is a folder. Names and values are
checked before anything runs: UnknownName, SettingError, SuiteError (:mod:`metabench.errors`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.api.output import SUFFIXES, Table, made, told, write
from metabench.api.tracking import tracked
from metabench.core.errors import SettingError, SuiteError
from metabench.core.registry import REGISTRIES
from metabench.core.settings import place
from metabench.core.text import counted, listed
from metabench.store.files import BadFile
from metabench.store.store import Store
from metabench.suites import loading as suites
from metabench.suites import planning as plans
from metabench.suites.overrides import read_overrides
from metabench.suites.planning import Planned
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.analysis.results import Results
    from metabench.cluster.submission import Submission
    from metabench.reports.figures.plots import Figures
    from metabench.run.events import Listener
    from metabench.run.workers.local_launcher import Summary
    from metabench.store.record import Record

Settings = Iterable[str] | Mapping[str, Any]
DEFAULT_BUDGET = "laptop"


def suite_of_pairs(
    tasks: Sequence[str | Any],
    methods: Sequence[str | Any] | None = None,
    solver: str | None = None,
) -> Suite:
    """A suite of these tasks and methods, for any verb: names, each with its default settings, or
    instances, with the settings that they have; ``methods`` None: all that apply. ``solver`` names
    the inner solver (None: each method's own).

    >>> from metabench import api
    >>> suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel", "ift"])
    >>> [planned.cell.method for planned in api.plan(suite, budget="smoke")]
    ['bilevel', 'ift']

    Raises UnknownName; SuiteError where the tasks have no metric in common.
    """
    return plans.suite_of_pairs(tasks, methods, solver)


def load(suite: str | Path | Suite) -> Suite:
    """The suite that a verb is given."""
    if not isinstance(suite, str | Path | Suite):
        raise SuiteError(f"suite cannot be {suite!r}: give a name, the path of a file, or a Suite")
    return suite if isinstance(suite, Suite) else suites.load(suite)


def open_store(store: str | Path | Store | None) -> Store:
    """The store that a verb is given; None is the default one."""
    if isinstance(store, Store):
        return store
    return Store(None if store is None else place("store", store))


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
    from metabench.cluster import hints, profile
    from metabench.cluster import submit as module
    from metabench.cluster.draft import TAKEN

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


def results(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
    unverified: bool = False,
) -> Results:
    """What the store has of the suite under this budget, holes with their reasons; ``.frame`` is a
    pandas table with a row for each record; ``unverified``: published numbers from memory too,
    which tables leave out."""
    from metabench.analysis.results import collect

    suite, store = load(suite), open_store(store)
    cells = plans.choose(suite, budget, set=set, seeds=seeds)
    overrides = read_overrides(set)
    return collect(
        suite, budget, store, cells, overrides=overrides, seeds=seeds, unverified=unverified
    )


def table(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
    cost: bool = False,
    unverified: bool = False,
) -> Table:
    """The table of what is finished, the papers' numbers beside ours; ``cost``: what its runs cost,
    in its place; ``unverified``: with published numbers from memory, each with a question mark.
    ``print`` shows it; :meth:`Table.text` gives other formats."""
    found = results(suite, budget=budget, set=set, seeds=seeds, store=store, unverified=unverified)
    return Table(found, cost)


def plot(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    kind: Sequence[str] | None = None,
    cost: str | None = None,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
) -> list[Path]:
    """Draw into the folder ``out``; the paths of what was drawn.

    ``kind``: of "learning", "cost", "trajectories", "ranking", "profile", "frontier", None for the
    suite's own; ``cost``: the cost that an axis shows, such as "seconds". Raises UnknownName, and
    SettingError for a ``cost`` where no figure of these kinds has such an axis. Records that are
    damaged are left out: :func:`status` names them.
    """
    store = open_store(store)
    found = results(suite, budget=budget, set=set, seeds=seeds, store=store)
    return plot_results(found, store, out=out, kind=kind, cost=cost)


def plot_results(
    found: Results,
    store: Store,
    *,
    out: str | Path,
    kind: Sequence[str] | None = None,
    cost: str | None = None,
) -> list[Path]:
    """As :func:`plot`, of what :func:`results` found in a store."""
    from metabench.reports.figures.plots import kinds_of, shows_cost

    kinds = kinds_of(found.suite) if kind is None else kind
    if cost is not None and kinds and not shows_cost(kinds):
        raise SettingError(
            f"cost {cost!r}: no axis of {listed(kinds)} shows a cost; those of cost and frontier do"
        )
    return _draw(found, store, place("out", out), kind, cost)


def _draw(
    found: Results,
    store: Store,
    out: Path,
    kind: Sequence[str] | None = None,
    cost: str | None = None,
    known: Figures | None = None,
) -> list[Path]:
    from metabench.reports.figures import plots

    with told(out):
        return plots.draw(found, store, kind, made(out), cost, known)


def report(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
    unverified: bool = False,
) -> Path:
    """Write ``report.html``, one file with tables, plots and every record, into the folder ``out``;
    its path."""
    store = open_store(store)
    found = results(suite, budget=budget, set=set, seeds=seeds, store=store, unverified=unverified)
    return report_results(found, store, out=out)


def report_results(
    found: Results, store: Store, *, out: str | Path, known: Figures | None = None
) -> Path:
    """As :func:`report`, of what :func:`results` found in a store; ``known``: figures of it that
    have been drawn already."""
    from metabench.reports.pages import html_report

    out = place("out", out)
    with told(out):
        return html_report.report(found, store, made(out) / "report.html", known=known)


@dataclass(frozen=True)
class Rendered:
    """What :func:`render` makes: the results, and the files written, the report last."""

    results: Results
    files: list[Path]

    def text(self, format: str = "text", width: int | None = None) -> str:
        """The table; text fits into ``width`` characters."""
        from metabench.reports.tables import grids

        return grids.draw(self.results, format, width=width).rstrip("\n")


def render(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
    unverified: bool = False,
) -> Rendered:
    """Tables in every format, plots and report of what is finished, in the folder ``out``."""
    from metabench.reports.figures.plots import Figures
    from metabench.reports.tables import grids

    store, out = open_store(store), place("out", out)
    found = results(suite, budget=budget, set=set, seeds=seeds, store=store, unverified=unverified)
    files = [
        write(out / f"{name}{suffix}", grids.draw(found, fmt, cost=name == "cost"))
        for name in ("table", "cost")
        for suffix, fmt in SUFFIXES.items()
    ]
    figures = Figures(found, store)
    files += _draw(found, store, out, known=figures)
    return Rendered(found, [*files, report_results(found, store, out=out, known=figures)])


def reproduce(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
    jobs: int = 1,
    device: str | None = None,
    listener: Listener | None = None,
    unverified: bool = False,
    log: Sequence[str] = (),
) -> Rendered:
    """:func:`run` what is missing, then :func:`render`; what failed is a hole in the table.

    Raises MetabenchError before anything runs where ``out`` cannot be made.
    """
    made(place("out", out))
    run(
        suite,
        budget=budget,
        set=set,
        seeds=seeds,
        only=only,
        store=store,
        jobs=jobs,
        device=device,
        listener=listener,
        log=log,
    )
    return render(
        suite, out=out, budget=budget, set=set, seeds=seeds, store=store, unverified=unverified
    )
