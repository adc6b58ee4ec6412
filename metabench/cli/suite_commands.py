"""The commands about the cells of a suite: plan, run, status, table, plot, report, publish,
reproduce."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.cluster_commands import MaybeCluster, profiled, run_on_cluster, with_cluster
from metabench.cli.options import (
    BudgetName,
    CheckpointEvery,
    Choice,
    Device,
    Jobs,
    MethodNames,
    Only,
    OutFolder,
    RanksEach,
    Seeds,
    Set,
    SolverName,
    StorePath,
    SuiteName,
    TaskNames,
    TimeLimit,
)

if TYPE_CHECKING:
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite


WATCH_SECONDS = 10.0


def plan(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    only: Only = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    jobs: Jobs = None,
) -> None:
    """Dry run: cells, finished and impossible ones, what is missing, what it will cost."""
    from metabench.cli import printing
    from metabench.run.local_launcher import default_jobs

    choice = Choice(suite, budget, set, seeds, store, task, method, solver, only)
    for each, planned in choice.planned():
        printing.print_plan(
            printing.console(), _title(each, budget), planned, jobs or default_jobs()
        )


def run(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    only: Only = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    jobs: Jobs = None,
    device: Device = None,
    time_limit: TimeLimit = None,
    checkpoint_every: CheckpointEvery = 60.0,
    ranks: RanksEach = 1,
) -> None:
    """Run every cell that has no finished record; stop and start it as you like."""
    choice = Choice(suite, budget, set, seeds, store, task, method, solver, only)
    code = 0
    for each, planned in choice.planned():
        code = max(
            code, _run(choice, each, planned, jobs, device, time_limit, checkpoint_every, ranks)
        )
        if code == 130:
            break
    raise typer.Exit(code)


def status(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    only: Only = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    tracebacks: Annotated[
        bool, typer.Option("--tracebacks", help="Show the whole tracebacks of failed cells.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until nothing runs or waits.")
    ] = False,
) -> None:
    """What is finished, what runs or waits, what failed and why; without a suite, all the store."""
    from metabench import api
    from metabench.cli import printing

    choice = Choice(suite, budget, set, seeds, store, task, method, solver, only)
    out = printing.console()
    if suite is None and not (task or method):
        kept = choice.open_store()
        printing.print_status(out, f"{kept.root}", api.status(store=kept), tracebacks)
        return
    while True:
        if watch:
            out.clear()
        active = False
        for each in choice.suites():
            found = api.status(each, only=only or (), **choice.words())
            planned = with_cluster(found.planned, choice.open_store(), out)
            active = active or any(p.state in ("running", "pending", "held") for p in planned)
            found = replace(found, planned=planned)
            printing.print_status(out, _title(each, budget), found, tracebacks)
        if not (watch and active):
            return
        time.sleep(WATCH_SECONDS)


def table(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            show_default="by the name of --out, else text",
            help="text, markdown, latex, csv or html.",
        ),
    ] = None,
    cost: Annotated[bool, typer.Option("--cost", help="What runs cost, in its place.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it to this file.")
    ] = None,
) -> None:
    """The table of what is finished: the paper's numbers beside ours."""
    from metabench import api
    from metabench.cli import printing
    from metabench.core.errors import SettingError
    from metabench.reports import tables

    choice = Choice(suite, budget, set, seeds, store, task, method, solver)
    suites = choice.suites()
    if out is not None and len(suites) > 1:
        raise SettingError(f"--out {out}: one file holds one table; name one suite")
    for each in suites:
        fmt = format or (api.format_of(out) if out is not None else _screen_format())
        found = api.results(each, **choice.words())
        printing.print_bad_files(printing.console(stderr=True), found.bad_files)
        text = tables.draw(found, fmt, cost=cost)
        if out is None:
            typer.echo(text.rstrip("\n"))
        else:
            _name_files([api.write(out, text)])


def plot(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="NAME", help="Only this kind of plot. Repeatable."),
    ] = None,
    cost: Annotated[
        str | None, typer.Option("--cost", metavar="NAME", help="The cost that an axis shows.")
    ] = None,
    out: OutFolder = None,
) -> None:
    """Learning curves, accuracy against cost, trajectories of lam, ranking; PNG and PDF."""
    from metabench import api

    choice = Choice(suite, budget, set, seeds, store, task, method, solver)
    for each in choice.suites():
        folder = _folder(choice, each, out)
        _name_files(api.plot(each, kind=kind, cost=cost, out=folder, **choice.words()))


def report(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    out: OutFolder = None,
) -> None:
    """One self-contained HTML file with tables, plots and every record."""
    from metabench import api

    choice = Choice(suite, budget, set, seeds, store, task, method, solver)
    for each in choice.suites():
        _name_files([api.report(each, out=_folder(choice, each, out), **choice.words())])


def publish(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A built-in suite, or the path of a .toml file.")
    ],
    budget: BudgetName = "laptop",
    store: StorePath = None,
    out: OutFolder = None,
) -> None:
    """Write what is committed of a suite: records with learning curves, table, one figure."""
    from metabench import api

    found = api.load(suite)
    folder = out or Path("results", found.name, budget)
    published = api.publish(found, budget=budget, store=store, out=folder)
    _name_files(published.files)
    if published.missing:
        typer.secho(published.missing, fg=typer.colors.YELLOW, err=True)


def reproduce(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    only: Only = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
    jobs: Jobs = None,
    device: Device = None,
    time_limit: TimeLimit = None,
    checkpoint_every: CheckpointEvery = 60.0,
    ranks: RanksEach = 1,
    out: OutFolder = None,
    cluster: MaybeCluster = None,
) -> None:
    """Run what is missing, then the table (shown), the plots and the report (in files)."""
    from metabench import api

    cells, profile = (set, None) if cluster is None else profiled(cluster, set)
    choice = Choice(suite, budget, cells, seeds, store, task, method, solver, only)
    code = 0
    for each, planned in choice.planned():
        folder = api.made(_folder(choice, each, out))  # before hours of running
        if profile is not None:
            ran = run_on_cluster(choice, each, planned, profile)
        else:
            ran = _run(choice, each, planned, jobs, device, time_limit, checkpoint_every, ranks)
        code = max(code, ran)
        if code == 130:
            break
        shown = api.render(each, out=folder, **choice.words())
        typer.echo("\n" + shown.text(_screen_format()) + "\n")
        *others, page = shown.files
        typer.echo(f"{len(others)} files of tables and plots in {page.parent}")
        typer.echo(f"report: {page}")
    raise typer.Exit(code)


def cost(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    set: Set = None,
    seeds: Seeds = None,
    only: Only = None,
    task: TaskNames = None,
    method: MethodNames = None,
    solver: SolverName = None,
    store: StorePath = None,
) -> None:
    """Hours that runs took, by method; what is left; and how good past estimates were."""
    from metabench.api import spending
    from metabench.cli import printing
    from metabench.suites.planning import TO_RUN

    choice = Choice(suite, budget, set, seeds, store, task, method, solver, only)
    out, kept = printing.console(), choice.open_store()
    if suite is None and not (task or method):
        printing.print_costs(out, f"{kept.root}", spending.by_method(kept.records()))
    else:
        for each, planned in choice.planned():
            rows = spending.by_row(planned, kept, TO_RUN)
            printing.print_costs(out, _title(each, budget), rows)
    printing.print_estimates(out, spending.estimates(kept))


def _screen_format() -> str:
    return "rich" if sys.stdout.isatty() else "text"


def _title(suite: Suite, budget: str) -> str:
    return f"{suite.name}: {suite.title} (budget {budget})"


def _folder(choice: Choice, suite: Suite, out: Path | None) -> Path:
    """Where files about a suite go; several suites have a folder each."""
    if out is None:
        return Path("results", suite.name, choice.budget)
    return out / suite.name if choice.suite == "all" else out


def _name_files(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}")


def _run(
    choice: Choice,
    suite: Suite,
    planned: list[Planned],
    jobs: int | None,
    device: str | None,
    time_limit: float | None,
    checkpoint_every: float,
    ranks: int,
) -> int:
    """Run a plan in sight of the user; the exit code."""
    from metabench import api
    from metabench.cli import printing
    from metabench.cli.progress import view
    from metabench.run.local_launcher import default_jobs
    from metabench.suites.planning import TO_RUN

    api.check_device(device)
    err = printing.console(stderr=True)
    todo = sum(p.state in TO_RUN for p in planned)
    jobs = jobs or max(1, min(default_jobs() // ranks, todo))
    err.print(
        f"{_title(suite, choice.budget)}: {printing.cells_of(planned)}",
        markup=False,
        soft_wrap=True,
    )
    printing.print_mends(err, planned)
    code = int(any(p.state == "missing data" for p in planned))
    if not todo:
        printing.print_refusals(err, planned)
        return code
    with view(todo, jobs) as listener:
        summary = api.run_planned(
            [p for p in planned if p.state in TO_RUN],
            choice.open_store(),
            jobs=jobs,
            device=device,
            time_limit=time_limit,
            checkpoint_seconds=checkpoint_every,
            listener=listener,
            ranks=ranks,
        )
    if summary.exit_code:
        err.print(str(summary), markup=False, soft_wrap=True)
    return max(code, summary.exit_code)
