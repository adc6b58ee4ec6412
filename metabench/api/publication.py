"""What is committed of a suite: four files, from which everything else is rendered on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arguments import DEFAULT_BUDGET, load, open_store
from metabench.api.output import made, write
from metabench.api.rendering import results
from metabench.cluster.submitting import hints
from metabench.core.errors import MetabenchError
from metabench.core.settings import place
from metabench.core.text import counted
from metabench.store import prices, published
from metabench.store.files import ending, write_atomic
from metabench.store.store import Store
from metabench.suites.arena import publishing as arena_publishing
from metabench.suites.arena import scores as arena_scores
from metabench.suites.arena.definition import Arena
from metabench.suites.planning import NEVER_RUN, Planned
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.analysis.arena.track import TrackResults
    from metabench.analysis.results import Results

FIGURE = "figure.png"


@dataclass(frozen=True)
class Publication:
    """The files of :func:`publish`, how many cells have no finished record, in words ("" where
    all have one), and the files of the store that cannot be trusted, whose records are left out."""

    files: list[Path]
    missing: str = ""
    bad_files: tuple[str, ...] = ()


def publish(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    budget: str = DEFAULT_BUDGET,
    store: str | Path | Store | None = None,
    unverified: bool = False,
) -> Publication:
    """Write ``records.jsonl.gz``, ``table.md``, ``table.csv``, ``prices.json`` (where prices have
    been measured) and ``figure.png`` (at most 100 kB) into the folder ``out``. Where the suite's
    first figure does not fit or shows nothing there is none, and an old one goes.

    Cells without a record are holes in the table; what this machine lacks to run them is not said.
    Raises MetabenchError where nothing is finished, StoreError where a file cannot be trusted.
    """
    from metabench.reports.figures.small import small_figure
    from metabench.reports.tables import grids

    typed = suite.name if isinstance(suite, Suite) else hints.absolute(suite)
    suite, store, out = load(suite), open_store(store), place("out", out)
    found = of_records_alone(results(suite, budget=budget, store=store, unverified=unverified))
    states = found.states
    if not states.get("done"):
        raise MetabenchError(
            f"{suite.name} has no finished cell of budget {budget} in {store.place}: nothing to "
            f"publish; run: {hints.command(['run', typed, '--budget', budget], store.root)}"
            f"{ending(found.bad_files)}"
        )
    files = [
        published.publish(found.records, store, made(out) / published.RECORDS),
        write(out / "table.md", grids.table(found, "markdown")),
        write(out / "table.csv", grids.table(found, "csv")),
        *_prices(found, out),
    ]
    figure = small_figure(found, store)
    if figure is None:
        (out / FIGURE).unlink(missing_ok=True)
    else:
        write_atomic(out / FIGURE, figure)
        files.append(out / FIGURE)
    left = sum(n for state, n in states.items() if state not in ("done", *NEVER_RUN))
    missing = f"{counted(left, 'cell')} without a finished record" if left else ""
    return Publication(files, missing, found.bad_files)


def publish_arena(
    arena: str | Path | Arena,
    *,
    out: str | Path,
    budget: str = DEFAULT_BUDGET,
    store: str | Path | Store | None = None,
) -> Publication:
    """Write ``scores.jsonl.gz`` of an arena's trials and finals into the folder ``out``
    (:mod:`metabench.suites.arena.scores`): what ``metabench rank`` compares with, and what ships
    with a built-in arena; of one that ships, what the store has is written into what ships. Where
    no final is missing also where all stand: ``table.md``,
    ``table.csv``, and ``figure.png``, the scores of the first track. Where one is, ``missing`` says
    how to take whole records to another machine.

    Raises MetabenchError where nothing has been run, StoreError where a file cannot be trusted.
    """
    from metabench.api.arena import tournament

    known, store, out = tournament.load(arena), open_store(store), place("out", out)
    plan = tournament.plan(known, budget=budget, store=store)
    planned = [p for p in (*plan.trials, *plan.finals) if p.state not in NEVER_RUN]
    own = tournament.own(plan, planned)
    records = {p.record.key: p.record for p in own if p.record is not None}
    typed = known.name if isinstance(arena, Arena) else hints.absolute(arena)
    if not records:
        run = hints.command(["arena", typed, "--budget", budget], store.root)
        raise MetabenchError(
            f"{known.name} has no finished cell of budget {budget} in {store.place}: nothing to "
            f"publish; run: {run}{tournament.other_budgets(known, budget, store, anew=True)}"
            f"{ending(store.problems())}"
        )
    file = made(out) / arena_scores.FILE
    paths = [
        arena_publishing.write(file, known, budget, plan.chosen, records, store.curve, plan.shipped)
    ]
    left = len({p.cell.key for p in planned if p.record is None})
    missing = f"{counted(left, 'cell')} without a record" if left else ""
    if not plan.finals:
        missing += f"{'; ' * bool(missing)}no final, since trials are missing"
    if missing:
        words = ["leaderboard", typed, "--budget", budget, "--records", published.RECORDS]
        missing += (
            f"; whole records, to go on with on another machine: {hints.command(words, store.root)}"
        )
    else:
        paths += _standings(tournament.tracks(plan, store=store), out)
    return Publication(paths, missing, tuple(map(str, store.problems())))


def _standings(tracks: list[TrackResults], out: Path) -> list[Path]:
    """Tables and one figure of a played arena."""
    from metabench.api.arena import tournament
    from metabench.reports.arena import scores
    from metabench.reports.arena import tables as arena_tables
    from metabench.reports.figures.small import small_png
    from metabench.reports.figures.style import styled
    from metabench.reports.tables import grids

    lines = chain.from_iterable(map(arena_tables.standings_lines, tracks))
    page = "\n".join(grids.render(grid, "markdown") for grid in tournament.grids(tracks))
    files = [
        write(out / "table.md", page),
        write(out / "table.csv", arena_tables.csv_of(arena_tables.STANDINGS, lines)),
    ]
    with styled():
        figure = small_png(scores.scores_figure(tracks[0]))
    if figure is None:
        (out / FIGURE).unlink(missing_ok=True)
    else:
        write_atomic(out / FIGURE, figure)
        files.append(out / FIGURE)
    return files


def _prices(found: Results, out: Path) -> list[Path]:
    """The measured prices of the suite's problems, where there are some."""
    path = out / prices.FILE
    known = {p.key: p for r in found.records if (p := prices.of_cell(found.prices, r.cell))}
    if not known:
        path.unlink(missing_ok=True)
        return []
    prices.write(path, known.values())
    return [path]


def of_records_alone(found: Results) -> Results:
    """Results in which nothing depends on the machine that looks: cells that have no record are
    open, whatever data or packages are missing here, and whoever runs them."""
    cells = {
        at: replace(cell, runs=tuple(map(_recorded, cell.runs)))
        for at, cell in found.table_cells.items()
    }
    return replace(found, table_cells=cells)


def _recorded(run: Planned) -> Planned:
    if run.state in ("done", *NEVER_RUN):
        return run
    if run.record is None:
        return replace(run, state="open", reason="not run yet", repair="")
    return replace(run, state=run.record.status, reason=run.record.reason, repair="")
