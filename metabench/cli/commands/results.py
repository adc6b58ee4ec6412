"""The commands that show what is finished: table, plot, report, publish, reproduce."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import refuse, with_options
from metabench.cli.launching import run_suite
from metabench.cli.options import (
    BudgetName,
    Choice,
    Launch,
    MaybeCluster,
    OneSuite,
    OutFolder,
    StorePath,
    Unverified,
    typed_path,
)
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import tell_bad_files
from metabench.cli.submitting import profiled, run_on_cluster
from metabench.core.text import counted

if TYPE_CHECKING:
    from metabench.store.store import Store
    from metabench.suites.arena.definition import Arena
    from metabench.suites.suite import Suite


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
    from metabench.api.rendering import nothing_of
    from metabench.core.errors import NothingFound, SettingError
    from metabench.reports.tables import grids

    def chosen_format() -> str:
        return format or (output.format_of(out) if out is not None else _terminal_format())

    if (known := choice.arena()) is not None:
        if cost or unverified:
            raise SettingError(f"{known.name} is an arena: --cost and --unverified are for suites")
        text = _standings(known, choice, chosen_format(), None if out else terminal.console().width)
        if out is None:
            typer.echo(text.rstrip("\n"))
        else:
            _name_files([output.write(out, text)])
        return
    choice.check_store()
    suites, kept = choice.suites(), choice.open_store()
    if out is not None and len(suites) > 1:
        raise SettingError(f"--out {out}: one file holds one table; name one suite")
    for each in suites:
        fmt = chosen_format()
        found = api.results(each, unverified=unverified, **choice.words())
        tell_bad_files(found.bad_files)
        width = terminal.console().width if out is None else None
        text = grids.draw(found, fmt, cost=cost, width=width)
        if out is None:
            typer.echo(text.rstrip("\n"))
        else:
            output.check_folder(out.parent)
            if not found.records:
                raise NothingFound(f"{nothing_of(found, kept)}: {out} is not written")
            _name_files([output.write(out, text)])
        if not found.records:
            terminal.say(nothing_of(found, kept), err=True)


def _standings(arena: Arena, choice: Choice, fmt: str, width: int | None) -> str:
    """Where all stand in every track of an arena, tuned and as shipped. Raises SettingError for a
    format that it has not, MetabenchError where finals have not been run."""
    from metabench.api.arena import tournament
    from metabench.cluster.submitting import hints
    from metabench.core.errors import MetabenchError, SettingError
    from metabench.reports.tables import grids

    if fmt == "csv":
        raise SettingError(
            f"--format csv: {arena.name} has three csv files, which go with its figures: metabench "
            "arena ... --figures DIR"
        )
    store = choice.open_store()
    plan = tournament.plan(arena, budget=choice.budget, store=store)
    left = [
        p for p in plan.finals or plan.trials if p.record is None and p.state != "not applicable"
    ]
    if left or not plan.finals:
        words = ["arena", choice.suite or arena.name, "--budget", choice.budget]
        told = tournament.other_budgets(arena, choice.budget, store)
        raise MetabenchError(
            f"{arena.name} has {counted(len(left), 'cell')} of budget {choice.budget} without a "
            f"record, so that nobody stands anywhere yet: {hints.command(words, store.root)}{told}"
        )
    choice.check_store()  # what ships with an arena would hide that
    found = tournament.grids(tournament.tracks(plan, store=store))
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
    from metabench.api import rendering
    from metabench.reports.figures.plots import kinds_of, shows_cost

    def drawn(each: Suite, kept: Store) -> list[Path]:
        # Of all suites, those that draw no cost are drawn as they are.
        some = kind or choice.suite != "all" or shows_cost(kinds_of(each))
        found = rendering.results(each, **choice.words())
        tell_bad_files(found.bad_files)
        axis = cost if some else None
        return rendering.plot_results(
            found, kept, out=_folder(choice, each, out), kind=kind, cost=axis
        )

    _write_each(choice, drawn)


@with_options(without="only")
def report(
    choice: Choice,
    out: OutFolder = None,
    unverified: Unverified = False,
) -> None:
    """One self-contained HTML file with tables, plots and every record."""
    from metabench.api import rendering

    def written(each: Suite, kept: Store) -> list[Path]:
        found = rendering.results(each, unverified=unverified, **choice.words())
        tell_bad_files(found.bad_files)
        return [rendering.report_results(found, kept, out=_folder(choice, each, out))]

    _write_each(choice, written)


def _write_each(choice: Choice, write: Callable[[Suite, Store], list[Path]]) -> None:
    """Write files of every suite that has a record, and name them; of the others say where none
    was found. Ends with status 1 where that is all of them."""
    from metabench.core.errors import NothingFound

    choice.check_store()
    suites, kept, code = choice.suites(), choice.open_store(), 1
    for each in suites:
        try:
            _name_files(write(each, kept))
            code = 0
        except NothingFound as error:
            if len(suites) == 1:
                raise
            terminal.say(f"{error}", err=True)
    if code:
        raise typer.Exit(code)


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
    tell_bad_files(published.bad_files)
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
    from metabench.api.rendering import nothing_of
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
            ran = run_suite(choice, each, planned, launch)
        code = max(code, ran)
        if code == 130:
            break
        shown = api.render(each, out=folder, unverified=unverified, **choice.words())
        if cluster is not None or not any(p.state in TO_RUN for p in planned):
            tell_bad_files(shown.results.bad_files)  # a launch here has told them
        text = shown.text(_terminal_format(), terminal.console().width)
        typer.echo(f"\n{text}\n")
        if not shown.files:
            terminal.say(f"{nothing_of(shown.results, choice.open_store())}: no file", err=True)
            continue
        *others, page = shown.files
        typer.echo(f"{counted(len(others), 'file')} of tables and plots in {page.parent}")
        typer.echo(f"report: {page}")
    raise typer.Exit(code)


def _terminal_format() -> str:
    return "rich" if sys.stdout.isatty() else "text"


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
