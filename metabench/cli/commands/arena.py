"""The command ``arena``: trials, finals and standings of a file of problems and methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import refuse, with_options
from metabench.cli.launching import check, in_sight
from metabench.cli.options import ArenaBudget, Launch, StorePath, typed_path
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import cells_of, print_repairs, title_of
from metabench.core.text import counted

if TYPE_CHECKING:
    from metabench.api.arena.tournament import Plan
    from metabench.store.store import Store
    from metabench.suites.planning import Planned


@with_options()
def arena(
    file: Annotated[str, typer.Argument(metavar="FILE", help='A .toml file with kind = "arena".')],
    launch: Launch,
    budget: ArenaBudget = None,
    store: StorePath = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan of trials and finals; run nothing.")
    ] = False,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Run also what has scores that ship with the arena."),
    ] = False,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            parser=typed_path("--figures"),
            metavar="DIR",
            help="Write figures and tables of every track into this folder.",
        ),
    ] = None,
) -> None:
    """Rank methods at equal counted cost: tune each on trials, then play the finals, and say where
    all stand. Finished cells are read, not run, and so are those that ship with the arena."""
    from metabench.api import output
    from metabench.api.arena import tournament
    from metabench.api.arguments import open_store
    from metabench.cli.printing.arena import print_endings, print_overview
    from metabench.core.environment.hardware import default_jobs
    from metabench.reports.arena import endings
    from metabench.reports.tables.renderers import text

    if dry_run:
        refuse(["figures"], "a dry run draws nothing; leave out one of the two")
    out, kept = terminal.console(), open_store(store)
    known = tournament.load(typed_path("FILE")(file))
    budget = budget or tournament.default_budget(known)

    def planned() -> tournament.Plan:
        return tournament.plan(known, budget=budget, store=kept, anew=anew)

    found = planned()
    title = title_of(known, budget)
    if dry_run:
        jobs = launch.jobs or default_jobs()
        print_overview(out, title, found, known.budget(budget), jobs)
        return
    code = _run(f"{title}, trials", found, found.trials, kept, launch)
    if code != 130:
        found = planned()
        if found.finals:
            code = max(code, _run(f"{title}, finals", found, found.finals, kept, launch))
            found = planned()
    if found.finals and all(p.record is not None for p in found.finals):
        print_endings(out, endings.endings(found.trials, found.finals), kept)
        code = max(code, int(endings.has_failed([*found.trials, *found.finals])))
        tracks = tournament.tracks(found, store=kept)
        for grid in tournament.grids(tracks):
            typer.echo("\n" + text(grid, out.width).rstrip("\n"))
        if figures is not None:
            written = tournament.figures(tracks, out=output.made(figures))
            typer.echo(f"\n{counted(len(written), 'file')} of figures and tables in {figures}")
    elif figures is not None:
        typer.secho("no figures: finals are missing", fg=typer.colors.YELLOW, err=True)
        code = max(code, 1)
    raise typer.Exit(code)


def _run(title: str, plan: Plan, planned: list[Planned], store: Store, launch: Launch) -> int:
    """Run what is to be played in sight of the user; the exit code."""
    from metabench.api.arena.tournament import TO_PLAY, own

    check(launch)
    err = terminal.console(stderr=True)
    err.print(f"{title}: {cells_of(planned)}", markup=False, soft_wrap=True)
    print_repairs(err, planned)
    todo = [p for p in own(plan, planned) if p.state in TO_PLAY]
    if not todo:
        return 0
    summary = in_sight(todo, store, launch, group=title.partition(":")[0])
    return 130 if summary.interrupted else int(bool(summary.count("failed")))
