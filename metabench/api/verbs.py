"""The verbs of the command line, from Python: they return what the command line prints.

``suite`` is the name of a built-in suite, the path of a suite file, or a :class:`Suite`; ``set`` is
{"method.inner_lr": 0.01} or ["method.inner_lr=0.01"]; ``store`` is a folder. Names and values are
checked before anything runs: UnknownName, SettingError, SuiteError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metabench.core.errors import MetabenchError, SettingError, UnknownName
from metabench.core.registry import Entry
from metabench.store.store import BadFile, Store
from metabench.suites import planning as plans
from metabench.suites import suite as suites
from metabench.suites.planning import Planned
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.analysis.results import Results
    from metabench.api.describe import Description
    from metabench.cluster.submission import Submission
    from metabench.core.findings import Finding
    from metabench.datasets import data
    from metabench.run.events import Listener
    from metabench.run.local_launcher import Summary
    from metabench.store.record import Record

Settings = Iterable[str] | Mapping[str, Any]
DEFAULT_BUDGET = "laptop"


def list_(kind: str | None = None) -> dict[str, list[Entry]]:
    """Names by kind: "task", "method", "solver", "suite"; imports no task and no method."""
    from metabench.core.catalogue import listing

    return listing(kind)


def show(name: str, kind: str | None = None) -> list[Description]:
    """What can be said of everything called ``name``; see :func:`metabench.api.describe.show`."""
    from metabench.api.describe import show as shown

    return shown(name, kind)


def data_list() -> list[data.Status]:
    """Every known data set: where it is, or the command that mends its absence."""
    from metabench.datasets import data

    return data.status()


def data_fetch(name: str, *, to: str | Path | None = None) -> Path:
    """Download a data set into the cache, or into the folder ``to``; gives its folder.

    Raises UnknownName; MetabenchError where that cannot be done, with the way to do it by hand.
    """
    from metabench.datasets import data

    return data.fetch(name, to=None if to is None else Path(to))


def data_verify(name: str | None = None) -> list[data.Verdict]:
    """Check every file of a data set (None: of all that are here) against size and checksum.

    Raises UnknownName, DataMissing.
    """
    from metabench.datasets import data

    names = [s.dataset.name for s in data.status() if s.found] if name is None else [name]
    return [verdict for each in names for verdict in data.verify(each)]


def doctor(store: str | Path | Store | None = None) -> list[Finding]:
    """Versions, devices, data; what is missing, and the commands that mend it."""
    from metabench.api.examination import examine

    return examine(open_store(store))


def check(name: str) -> Iterator[tuple[str, str]]:
    """Each promise of the contract that a method or a task is checked against, in turn, and how it
    breaks it ("" where it keeps it). Raises UnknownName.
    """
    from metabench.core.registry import methods, tasks

    kinds = [k for k, known in (("method", methods), ("task", tasks)) if name in known.names()]
    if not kinds:
        raise UnknownName("method or task", name, [*methods.names(), *tasks.names()])
    return _checked(kinds[0], name)


def _checked(kind: str, name: str) -> Iterator[tuple[str, str]]:
    import torch

    from metabench.conformance import kit
    from metabench.run.determinism import fixed

    checks = kit.method_checks(name) if kind == "method" else kit.task_checks(name)
    for what, run_check in checks:
        broken = ""
        try:
            with fixed(torch.device("cpu")):
                run_check()
        except kit.ContractError as error:
            broken = str(error)
        yield what, broken


def new(kind: str, name: str, folder: str | Path = ".") -> Path:
    """Write a "method" or a "task" to start from into ``folder``; its path.

    Raises UnknownName, SettingError, MetabenchError; see :func:`metabench.api.scaffold.new`.
    """
    from metabench.api.scaffold import new as written

    return written(kind, name, folder)


def load(suite: str | Path | Suite) -> Suite:
    """The suite that a verb is given."""
    return suite if isinstance(suite, Suite) else suites.load(suite)


def open_store(store: str | Path | Store | None) -> Store:
    """The store that a verb is given; None is the default one."""
    return store if isinstance(store, Store) else Store(store)


def plan(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    only: Iterable[str] = (),
    store: str | Path | Store | None = None,
) -> list[Planned]:
    """How each cell stands; nothing is run and nothing is built."""
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
    **how: Any,
) -> Summary:
    """Run every cell that can be run and is not done; ``how``: see :func:`run_planned`."""
    store = open_store(store)
    planned = plan(suite, budget=budget, set=set, seeds=seeds, only=only, store=store)
    return run_planned(planned, store, **how)


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
) -> Summary:
    """Launch the cells of a plan, finished ones included (they are read, not run).

    Cells that are not applicable, skipped, or that lack data or a package are left out. Several
    ``jobs`` are processes that import the calling script again: it needs the usual
    ``if __name__ == "__main__":``. Raises SettingError for a ``device`` that is not there.
    """
    from metabench.run.local_launcher import launch

    check_device(device)
    cells = [p.cell for p in planned if p.state in plans.TO_RUN or p.state == "done"]
    return launch(
        cells,
        store,
        jobs=jobs,
        device=device,
        time_limit=time_limit,
        checkpoint_seconds=checkpoint_seconds,
        listener=listener,
        ranks=ranks,
    )


def check_device(device: str | None) -> None:
    """Raise SettingError for a device that torch does not know or this machine does not have."""
    if device is None:
        return
    import torch

    try:
        kind, index = (made := torch.device(device)).type, made.index or 0
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise SettingError(f"device cannot be {device!r}: {said}") from None
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise SettingError(
            f"device cannot be {device!r}: torch finds {torch.cuda.device_count()} GPUs here"
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
    from metabench.cluster import submit as module

    cells, own = profile.split_set(set)
    site = profile.load(cluster, own)
    suite, store = load(suite), open_store(store)
    planned = plan(suite, budget=budget, set=cells, seeds=seeds, only=only, store=store)
    states = module.TAKEN | ({"failed", "diverged"} if failed else frozenset())
    made, slurm = module.prepare(suite.name, budget, planned, site, store, states)
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
    """What is finished, what failed and why, what is damaged; nothing is run or moved."""
    store = open_store(store)
    problems = store.problems()
    if suite is None:
        return Status([], store.records(), problems)
    planned = plan(suite, budget=budget, set=set, seeds=seeds, only=only, store=store)
    records = [store.get(p.cell.key) for p in planned]
    return Status(planned, [r for r in records if r is not None], problems)


def results(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
) -> Results:
    """What the store has of the suite under this budget, holes with their reasons."""
    from metabench.analysis.results import collect

    suite, store = load(suite), open_store(store)
    planned = plan(suite, budget=budget, set=set, seeds=seeds, store=store)
    here = ("missing data", "missing package", "running")
    reasons = {
        p.cell.key: (p.state, f"{p.reason}; {p.mend}" if p.mend else p.reason)
        for p in planned
        if p.state in here
    }
    return collect(suite, budget, store, reasons, overrides=plans.overrides(set), seeds=seeds)


SUFFIXES = {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def format_of(path: str | Path) -> str:
    """The table format that a file name asks for; raises UnknownName."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UnknownName("table format for file names that end in", suffix, SUFFIXES)
    return SUFFIXES[suffix]


def table(
    suite: str | Path | Suite, *, format: str = "text", cost: bool = False, **which: Any
) -> str:
    """The table, or what its runs cost, as "text", "markdown", "latex", "csv" or "html".

    ``which``: the arguments of :func:`results`.
    """
    from metabench.reports import tables

    return tables.draw(results(suite, **which), format, cost=cost)


def plot(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    kind: Sequence[str] | None = None,
    cost: str | None = None,
    store: str | Path | Store | None = None,
    **which: Any,
) -> list[Path]:
    """Draw into the folder ``out``; the paths of what was drawn.

    ``kind``: of :data:`metabench.reports.plots.KINDS`, None for the suite's own; ``cost``: the cost
    that an axis shows.
    """
    store = open_store(store)
    return _draw(results(suite, store=store, **which), store, Path(out), kind, cost)


def _draw(
    found: Results, store: Store, out: Path, kind: Sequence[str] | None, cost: str | None
) -> list[Path]:
    from metabench.reports import plots

    with _told(out):
        return plots.draw(found, store, kind, made(out), cost)


def report(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    store: str | Path | Store | None = None,
    **which: Any,
) -> Path:
    """Write ``report.html`` into the folder ``out``; its path."""
    store = open_store(store)
    return _report(results(suite, store=store, **which), store, Path(out))


def _report(found: Results, store: Store, out: Path) -> Path:
    from metabench.reports import html_report

    with _told(out):
        return html_report.report(found, store, made(out) / "report.html")


@dataclass(frozen=True)
class Rendered:
    """What :func:`render` makes: the results, and the files written, the report last."""

    results: Results
    files: list[Path]

    def text(self, format: str = "text") -> str:
        """The table."""
        from metabench.reports import tables

        return tables.table(self.results, cast("tables.Format", format)).rstrip("\n")


def render(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    store: str | Path | Store | None = None,
    **which: Any,
) -> Rendered:
    """Tables in every format, plots and report of what is finished, in the folder ``out``."""
    from metabench.reports import tables

    store, out = open_store(store), Path(out)
    found = results(suite, store=store, **which)
    files = [
        write(out / f"{name}{suffix}", draw(found, cast("tables.Format", fmt)))
        for name, draw in (("table", tables.table), ("cost", tables.cost_table))
        for suffix, fmt in SUFFIXES.items()
    ]
    files += _draw(found, store, out, None, None)
    return Rendered(found, [*files, _report(found, store, out)])


def reproduce(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    only: Iterable[str] = (),
    jobs: int = 1,
    device: str | None = None,
    listener: Listener | None = None,
    **which: Any,
) -> Rendered:
    """Run what is missing, then :func:`render`; what failed is a hole in the table.

    Raises MetabenchError before anything runs where ``out`` cannot be made.
    """
    made(Path(out))
    run(suite, only=only, jobs=jobs, device=device, listener=listener, **which)
    return render(suite, out=out, **which)


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Inside, a file that cannot be written is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise MetabenchError(f"cannot write {error.filename or place}: {error.strerror}") from None


def made(folder: Path) -> Path:
    """The folder, made where it is not there; raises MetabenchError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MetabenchError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def write(path: str | Path, text: str) -> Path:
    """Write a text file, its folder too; raises MetabenchError where that cannot be done."""
    path = Path(path)
    made(path.parent)
    with _told(path):
        # A reason may quote a file name that is no text.
        path.write_text(text, encoding="utf-8", errors="replace")
    return path
