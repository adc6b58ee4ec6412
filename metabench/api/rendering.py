"""The verbs that show what is finished: results as a table, plots, a report, or all of these.

What they are given: :mod:`metabench.api.arguments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arguments import DEFAULT_BUDGET, Settings, load, once, open_store
from metabench.api.output import SUFFIXES, Table, check_folder, made, told, write
from metabench.api.running import run
from metabench.core.errors import NothingFound, SettingError
from metabench.core.settings import place, several
from metabench.core.text import listed
from metabench.store.store import Store
from metabench.suites import planning as plans
from metabench.suites.overrides import read_overrides
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.analysis.results import Results
    from metabench.reports.figures.plots import Figures
    from metabench.run.events import Listener


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
    set, seeds = once(set), once(seeds)
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
    SettingError for a ``cost`` where no figure of these kinds has such an axis, and NothingFound,
    with nothing drawn, where there is no record. Records that are damaged are left out:
    :func:`status` names them.
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
    from metabench.analysis.results import check_names
    from metabench.reports.figures.plots import KINDS, kinds_of, shows_cost

    kind = once(kind)
    check_names("kind of plot", several("kind", kind or ()), KINDS)
    kinds = kinds_of(found.suite) if kind is None else kind
    if cost is not None and kinds and not shows_cost(kinds):
        raise SettingError(
            f"cost {cost!r}: no axis of {listed(kinds)} shows a cost; those of cost and frontier do"
        )
    out = place("out", out)
    _check_any(found, store, out)
    return _draw(found, store, out, kind, cost)


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
    its path. Raises NothingFound where there is no record."""
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
    _check_any(found, store, out)
    with told(out):
        return html_report.report(found, store, made(out) / "report.html", known=known)


def nothing_of(found: Results, store: Store) -> str:
    """That the store has nothing of these cells, and where that is, in words."""
    return f"{found.suite.name}: no record of budget {found.budget} in {store.place}"


def _check_any(found: Results, store: Store, out: Path) -> None:
    """What was asked for is refused first."""
    check_folder(out)
    if not found.records:
        raise NothingFound(f"{nothing_of(found, store)}: no file is written")


@dataclass(frozen=True)
class Rendered:
    """What :func:`render` makes: the results, and the files written, the report last; none where
    there was no record."""

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
    """Tables in every format, plots and report of what is finished, in the folder ``out``; no file
    where there is no record, for it might take the place of one that shows some."""
    from metabench.reports.figures.plots import Figures
    from metabench.reports.tables import grids

    store, out = open_store(store), place("out", out)
    found = results(suite, budget=budget, set=set, seeds=seeds, store=store, unverified=unverified)
    if not found.records:
        return Rendered(found, [])
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
    set, seeds = once(set), once(seeds)
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
