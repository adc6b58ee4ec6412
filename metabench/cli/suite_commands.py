"""The commands about the cells of a suite: plan, run, status, table, plot, report, publish,
reproduce, cost, calibrate."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.cluster_commands import MaybeCluster, profiled, with_cluster
from metabench.cli.cluster_waiting import run_on_cluster
from metabench.cli.options import (
    BudgetName,
    Choice,
    Jobs,
    Launch,
    OutFolder,
    StorePath,
    Unverified,
    refuse,
    typed,
    typed_path,
    with_options,
)
from metabench.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metabench.api import Status
    from metabench.api.calibration import ProblemCalibration
    from metabench.suites.arena import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite


WATCH_SECONDS = 10.0
OF_SUITES = ("budget", "set", "seeds", "only", "solver")
"""Options that choose cells of a suite."""


@with_options()
def plan(
    choice: Choice,
    jobs: Jobs = None,
) -> None:
    """Dry run: cells, finished and impossible ones, what is missing, what it will cost."""
    from metabench.cli import printing
    from metabench.run.workers.local_launcher import default_jobs

    plans, bad = choice.scanned()
    printing.tell_bad_files(bad)
    for each, planned in plans:
        title = _title(each, choice.budget)
        printing.print_plan(printing.console(), title, planned, jobs or default_jobs())


@with_options()
def run(
    choice: Choice,
    launch: Launch,
) -> None:
    """Run every cell that has no finished record; stop and start it as you like."""
    code = 0
    for each, planned in choice.planned():
        code = max(code, _run(choice, each, planned, launch))
        if code == 130:
            break
    raise typer.Exit(code)


@with_options()
def status(
    choice: Choice,
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

    out = printing.console()
    if choice.whole_store:
        refuse([*OF_SUITES, "watch"], "nothing is chosen of a whole store: name a suite")
        kept = choice.open_store()
        printing.print_status(out, f"{kept.root}", api.status(store=kept), tracebacks)
        return
    while True:
        if watch:
            out.clear()
        active = False
        for each, found in _statuses(choice):
            planned = with_cluster(found.planned, choice.open_store(), out)
            active = active or any(p.state in ("running", "pending", "held") for p in planned)
            found = replace(found, planned=planned)
            printing.print_status(out, _title(each, choice.budget), found, tracebacks)
        if not (watch and active):
            return
        time.sleep(WATCH_SECONDS)


def _statuses(choice: Choice) -> Iterator[tuple[Suite | Arena, Status]]:
    """Of each suite, or of the trials and finals of an arena."""
    from metabench import api
    from metabench.api import arena

    if (known := choice.arena()) is not None:
        store = choice.open_store()
        plan = arena.plan(known, budget=choice.budget, store=store)
        planned = [*plan.trials, *plan.finals]
        records = [p.record for p in planned if p.record is not None]
        yield known, api.Status(planned, records, store.problems())
        return
    for each in choice.suites():
        yield each, api.status(each, only=choice.only or (), **choice.words())


@with_options(without="only")
def table(
    choice: Choice,
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
        Path | None,
        typer.Option(
            "--out", parser=typed_path("--out"), metavar="FILE", help="Write it to this file."
        ),
    ] = None,
    unverified: Unverified = False,
) -> None:
    """The table of what is finished: the paper's numbers beside ours; of an arena, where all stand.
    Text that is printed fits the terminal, or COLUMNS characters where it goes elsewhere (80 unless
    set)."""
    from metabench import api
    from metabench.api import output
    from metabench.cli import printing
    from metabench.core.errors import SettingError
    from metabench.reports.tables import grids

    def chosen_format() -> str:
        return format or (output.format_of(out) if out is not None else _terminal_format())

    if (known := choice.arena()) is not None:
        if cost or unverified:
            raise SettingError(f"{known.name} is an arena: --cost and --unverified are for suites")
        text = _standings(known, choice, chosen_format(), None if out else printing.console().width)
        if out is None:
            typer.echo(text.rstrip("\n"))
        else:
            _name_files([output.write(out, text)])
        return
    suites = choice.suites()
    if out is not None and len(suites) > 1:
        raise SettingError(f"--out {out}: one file holds one table; name one suite")
    for each in suites:
        fmt = chosen_format()
        found = api.results(each, unverified=unverified, **choice.words())
        printing.tell_bad_files(found.bad_files)
        width = printing.console().width if out is None else None
        text = grids.draw(found, fmt, cost=cost, width=width)
        if out is None:
            typer.echo(text.rstrip("\n"))
        else:
            _name_files([output.write(out, text)])


def _standings(arena: Arena, choice: Choice, fmt: str, width: int | None) -> str:
    """Where all stand in every track of an arena, tuned and as shipped. Raises SettingError for a
    format that it has not, MetabenchError where finals have not been run."""
    from metabench.api import arena as verbs
    from metabench.cluster import hints
    from metabench.core.errors import MetabenchError, SettingError
    from metabench.reports.tables import grids

    if fmt == "csv":
        raise SettingError(
            f"--format csv: {arena.name} has three csv files, which go with its figures: metabench "
            "arena ... --figures DIR"
        )
    store = choice.open_store()
    plan = verbs.plan(arena, budget=choice.budget, store=store)
    left = [
        p for p in plan.finals or plan.trials if p.record is None and p.state != "not applicable"
    ]
    if left or not plan.finals:
        words = ["arena", choice.suite or arena.name, "--budget", choice.budget]
        told = verbs.other_budgets(arena, choice.budget, store)
        raise MetabenchError(
            f"{arena.name} has {counted(len(left), 'cell')} of budget {choice.budget} without a "
            f"record, so that nobody stands anywhere yet: {hints.command(words, store.root)}{told}"
        )
    found = verbs.grids(verbs.tracks(plan, store=store))
    return "\n".join(grids.render(grid, fmt, width) for grid in found)


@with_options(without="only")
def plot(
    choice: Choice,
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
    from metabench.api import verbs
    from metabench.cli import printing
    from metabench.reports.figures.plots import kinds_of, shows_cost

    kept = choice.open_store()
    for each in choice.suites():
        folder = _folder(choice, each, out)
        # Of all suites, those that draw no cost are drawn as they are.
        some = kind or choice.suite != "all" or shows_cost(kinds_of(each))
        axis = cost if some else None
        found = verbs.results(each, **choice.words())
        printing.tell_bad_files(found.bad_files)
        _name_files(verbs.plot_results(found, kept, out=folder, kind=kind, cost=axis))


@with_options(without="only")
def report(
    choice: Choice,
    out: OutFolder = None,
    unverified: Unverified = False,
) -> None:
    """One self-contained HTML file with tables, plots and every record."""
    from metabench.api import verbs
    from metabench.cli import printing

    kept = choice.open_store()
    for each in choice.suites():
        folder = _folder(choice, each, out)
        found = verbs.results(each, unverified=unverified, **choice.words())
        printing.tell_bad_files(found.bad_files)
        _name_files([verbs.report_results(found, kept, out=folder)])


OneSuite = Annotated[
    str, typer.Argument(metavar="SUITE", help="A built-in suite, or the path of a .toml file.")
]


def publish(
    suite: OneSuite,
    budget: BudgetName = "laptop",
    store: StorePath = None,
    out: OutFolder = None,
    unverified: Unverified = False,
) -> None:
    """Write what is committed of a suite: records with learning curves, table, one figure. Of an
    arena the scores, which ``rank`` compares with."""
    from metabench import api
    from metabench.api import output
    from metabench.api.publication import publish_arena
    from metabench.cli import printing
    from metabench.suites import loading

    if (arena := Choice(suite, budget).arena()) is not None:
        refuse(["unverified"], f"{arena.name} is an arena, beside which no paper's numbers stand")
        folder = out or output.default_folder(arena.name, budget, suite)
        published = publish_arena(suite, budget=budget, store=store, out=folder)
        name = arena.name
    else:
        found = loading.load(suite)
        folder = out or output.default_folder(found.name, budget, suite)
        published = api.publish(
            suite, budget=budget, store=store, out=folder, unverified=unverified
        )
        name = found.name
    if out is None:
        output.claim(name, suite)
    printing.tell_bad_files(published.bad_files)
    _name_files(published.files)
    if published.missing:
        typer.secho(published.missing, fg=typer.colors.YELLOW, err=True)


ON_A_CLUSTER = {
    "jobs": "slurm.at_once=N",
    "device": "slurm.gpus=N",
    "time_limit": "slurm.time=MINUTES, which is of a job",
    "checkpoint_every": "slurm.checkpoint_seconds=SECONDS",
    "ranks": "slurm.ranks=N",
}
"""What says there what these options say of this machine."""


@with_options()
def reproduce(
    choice: Choice,
    launch: Launch,
    out: OutFolder = None,
    cluster: MaybeCluster = None,
    unverified: Unverified = False,
) -> None:
    """Run what is missing, then the table (shown), the plots and the report (in files)."""
    from metabench import api
    from metabench.api import output
    from metabench.cli import printing
    from metabench.core.errors import SettingError
    from metabench.suites.planning import TO_RUN

    typed = choice
    if cluster is not None:
        if launch.log:
            raise SettingError("--log: jobs of a cluster are not watched from here; leave it out")
        for name, instead in ON_A_CLUSTER.items():
            refuse([name], f"jobs of a cluster have it from their profile: --set {instead}")
        choice, _ = profiled(cluster, choice)
    code = 0
    for each, planned in choice.planned():
        folder = output.made(_folder(choice, each, out))  # before hours of running
        if cluster is not None:
            ran = run_on_cluster(cluster, typed, each, planned)
        else:
            ran = _run(choice, each, planned, launch)
        code = max(code, ran)
        if code == 130:
            break
        shown = api.render(each, out=folder, unverified=unverified, **choice.words())
        if cluster is not None or not any(p.state in TO_RUN for p in planned):
            printing.tell_bad_files(shown.results.bad_files)  # a launch here has told them
        text = shown.text(_terminal_format(), printing.console().width)
        typer.echo(f"\n{text}\n")
        *others, page = shown.files
        typer.echo(f"{counted(len(others), 'file')} of tables and plots in {page.parent}")
        typer.echo(f"report: {page}")
    raise typer.Exit(code)


@with_options()
def cost(
    choice: Choice,
) -> None:
    """Hours that runs took, by method; what is left; and how good past estimates were."""
    from metabench.api import spending
    from metabench.cli import printing
    from metabench.suites.planning import TO_RUN

    out, kept = printing.console(), choice.open_store()
    if choice.whole_store:
        refuse(OF_SUITES, "nothing is chosen of a whole store: name a suite")
        records, bad = kept.scan()
        printing.tell_bad_files(bad)
        printing.print_costs(out, f"{kept.root}", spending.by_method(records))
    else:
        plans, bad = choice.scanned()
        printing.tell_bad_files(bad)
        for each, planned in plans:
            rows = spending.by_row(planned, TO_RUN)
            printing.print_costs(out, _title(each, choice.budget), rows)
    printing.print_estimates(out, spending.estimates(kept))


def calibrate(
    suite: OneSuite,
    budget: BudgetName = "laptop",
    store: StorePath = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what is known, too.")] = False,
) -> None:
    """Measure what gradients and products cost on a suite's problems, for its table of costs. Of an
    arena what its file says of each problem, or of those of --budget: ``prices`` and
    ``smoothness``; nothing is kept."""
    from metabench import api
    from metabench.api.calibration import calibrate_arena

    if (arena := Choice(suite, budget).arena()) is not None:
        file = suite if suite.endswith(".toml") else f"the file of {suite}"
        refuse(["store"], f"what is measured of an arena is kept in no store, but put into {file}")
        refuse(["again"], "nothing of an arena is kept, so that every call measures all again")
        played = budget if typed("budget") else None
        calibrate_arena(arena, budget=played, listener=_in_the_words_of_a_file)
        return
    found = api.calibrate(
        suite,
        budget=budget,
        store=store,
        again=again,
        listener=lambda what: typer.echo(f"measured {what}", err=True),
    )
    for why in found.without:
        typer.secho(f"no prices: {why}", fg=typer.colors.YELLOW, err=True)
    for one in found.prices:
        of = ", ".join(f"{name} {price:.3g}" for name, price in one.of.items())
        typer.echo(f"{one.task} [{one.key[:8]}]: {of}")


def _in_the_words_of_a_file(found: ProblemCalibration) -> None:
    """Two lines for an arena's file, under the problem's name."""
    of = ", ".join(f"{name} = {price:.2g}" for name, price in found.prices.of.items())
    typer.echo(f"# {found.problem}")
    if found.smoothness is not None:
        typer.echo(f"smoothness = {found.smoothness:.3g}")
    typer.echo(f"prices = {{ {of} }}")


def _terminal_format() -> str:
    return "rich" if sys.stdout.isatty() else "text"


def _title(suite: Suite | Arena, budget: str) -> str:
    return f"{suite.name}: {suite.title} (budget {budget})"


def _folder(choice: Choice, suite: Suite, out: Path | None) -> Path:
    """Where files about a suite go; several suites have a folder each."""
    from metabench.api import output

    if out is None:
        asked = None if choice.suite == "all" else choice.suite
        folder = output.default_folder(suite.name, choice.budget, asked)
        output.claim(suite.name, asked)
        return folder
    return out / suite.name if choice.suite == "all" else out


def _name_files(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}")


def _run(choice: Choice, suite: Suite, planned: list[Planned], launch: Launch) -> int:
    """Run a plan in sight of the user; the exit code."""
    from metabench.cli import printing
    from metabench.cli.launching import check, in_sight
    from metabench.suites.planning import TO_RUN

    check(launch)
    err = printing.console(stderr=True)
    err.print(
        f"{_title(suite, choice.budget)}: {printing.cells_of(planned)}",
        markup=False,
        soft_wrap=True,
    )
    printing.print_repairs(err, planned)
    code = int(any(p.state in ("missing data", "missing package", "closed") for p in planned))
    if not any(p.state in TO_RUN for p in planned):
        printing.print_refusals(err, planned)
        return code
    todo = [p for p in planned if p.state in TO_RUN]
    group = f"{suite.name} {choice.budget}"
    summary = in_sight(todo, choice.open_store(), launch, group=group)
    return max(code, summary.exit_code)
