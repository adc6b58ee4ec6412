"""The command ``rank``: where one method stands among the baselines of an arena."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import with_options
from metabench.cli.launching import in_sight
from metabench.cli.options import ArenaBudget, Launch, StorePath, typed_path
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import cells_of, once_each, print_plan
from metabench.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metabench.api.arena.contest import Contest
    from metabench.api.arena.entrant import Plan
    from metabench.suites.planning import Planned


def _arena_names(incomplete: str) -> list[str]:
    from metabench.core.catalogue import arena_names

    return [n for n in arena_names() if n.startswith(incomplete)]


@with_options()
def rank(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME", help="A Python file that registers a method, or its name."
        ),
    ],
    launch: Launch,
    arena: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            autocompletion=_arena_names,
            show_default="the newest built-in one",
            help="An arena, or the path of its .toml file.",
        ),
    ] = None,
    baselines: Annotated[
        Path | None,
        typer.Option(
            parser=typed_path("--baselines"),
            metavar="FILE_OR_STORE",
            show_default="those that ship with the arena",
            help="What its methods have: scores.jsonl.gz, records.jsonl.gz, or a store; what is in "
            "--store counts, too. It is read, and written into no store.",
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(
            parser=typed_path("--space"),
            metavar="FILE",
            show_default="what the class declares",
            help="What the method's settings may be, a .toml file: docs/arena.md.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which method, where the file registers several."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the problems that the arena calls quick.")
    ] = False,
    budget: ArenaBudget = None,
    store: StorePath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            parser=typed_path("--output"),
            metavar="DIR",
            show_default="results/rank/ARENA/METHOD",
            help="The folder for the report.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show its cells and the time; run nothing.")
    ] = False,
) -> None:
    """Tune and run one method on an arena, and say where it stands among the baselines. Only its
    own cells are run; stop and start it as you like."""
    from metabench.api.arena import contest as contests
    from metabench.api.arena import entrant, ranking
    from metabench.api.output import made
    from metabench.api.running import check_device
    from metabench.cli.printing.arena import print_endings

    check_device(launch.device)
    contest = contests.contest(
        file,
        method=method,
        arena=arena,
        baselines=baselines,
        space=space,
        quick=quick,
        budget=budget,
        store=store,
    )
    found = entrant.plan(contest)
    ranking.check_baselines(contest)
    folder = out or Path("results", "rank", contest.arena.name, contest.entrant.id)
    ranking.check_output(contest, folder)
    _introduce(contest, found, dry_run)
    if dry_run:
        _print_plan(contest, found, launch)
        return
    made(folder)  # before hours of running
    code = int(bool(found.lacking))
    code = max(code, _run(contest, "trials", found.trials, launch))
    if code != 130:
        code = max(code, _run(contest, "finals", entrant.plan(contest).finals, launch))
    ended = entrant.plan(contest)
    if ended.left or code == 130:
        told = "interrupted" if code == 130 else "not all could be run"
        terminal.say(f"{told}: run the same command again to go on", err=True)
        raise typer.Exit(code or 1)
    print_endings(terminal.console(), ended.endings, contest.store)
    _print_places(contest, folder)
    raise typer.Exit(max(code, int(ended.has_failed)))


def _introduce(contest: Contest, found: Plan, dry_run: bool) -> None:
    """What is ranked, against whose records, on what; what is left out, and why."""
    from metabench.api.arena.contest import outdated
    from metabench.reports.tables import entrant as drawing

    err = terminal.console(stderr=not dry_run)
    rules = contest.arena.budget(contest.budget)
    played = len({p.column for p in found.finals})
    title = drawing.About(contest.entrant, contest.arena, contest.budget, contest.quick).title
    trials = counted(rules.trials, "trial") if contest.tuned else "as shipped alone"
    terminal.prose(err, f"{title}: {counted(played, 'problem')}, {trials}")
    if not contest.tuned:
        why = drawing.ALONE if not contest.entrant.space else "The budget has no trial to tune by."
        terminal.prose(err, why, "yellow")
    for name, why in found.refused.items():
        terminal.prose(err, f"{name}: not played: {why}")
    for name, why in found.lacking.items():
        terminal.prose(err, f"{name}: left out: {why}", "yellow")
    if contest.file is not None:
        terminal.line(err, f"baselines: {contest.file}")
    for text in contest.bad:
        terminal.prose(err, f"bad line: {text}", "red")
    if old := outdated(contest):
        text = (
            f"{contest.source.file} was changed after {counted(old, 'cell')} of "
            f"{contest.entrant.id} had been run: they are read, not run again. If the method is "
            "another one now, give an empty store: --store DIR"
        )
        terminal.prose(err, text, "yellow")


def _print_plan(contest: Contest, found: Plan, launch: Launch) -> None:
    from metabench.core.environment.hardware import default_jobs
    from metabench.core.text import duration

    out, jobs = terminal.console(), launch.jobs or default_jobs()
    if found.trials:
        print_plan(out, "trials", found.trials, jobs)
    print_plan(out, "finals", found.finals, jobs)
    seconds, cells = found.to_come
    if cells:
        terminal.prose(
            out, f"and {counted(cells, 'cell')} of the best trials, which is not known yet"
        )
    left = [p.estimated_seconds for p in once_each(found.to_play)]
    known = [s for s in left if s is not None]
    if left and len(known) == len(left) and seconds is not None:
        total = sum(known) + seconds
        text = f"in all about {duration(total / jobs)} with {counted(jobs, 'job')}"
        terminal.prose(out, f"{text}, by what finished cells and the baselines took")
    elif left:
        terminal.prose(out, "how long it takes is not known: no similar cell is finished")


def _run(contest: Contest, what: str, planned: Sequence[Planned], launch: Launch) -> int:
    """Run what is open in sight of the user; the exit code."""
    from metabench.api.arena.tournament import TO_PLAY

    if not planned:
        return 0
    err = terminal.console(stderr=True)
    terminal.prose(err, f"{contest.entrant.id}, {what}: {cells_of(planned)}")
    todo = [p for p in planned if p.state in TO_PLAY]
    if not todo:
        return 0
    summary = in_sight(todo, contest.store, launch)
    return 130 if summary.interrupted else int(bool(summary.count("failed")))


def _print_places(contest: Contest, folder: Path) -> None:
    from metabench.api.arena import ranking
    from metabench.reports.tables import entrant as drawing

    out, places = terminal.console(), ranking.places(contest)
    for place in places:
        drawn, *said = drawing.text(place)
        terminal.line(out, f"\n{drawn}")
        for text in said:
            terminal.prose(out, text)
    terminal.prose(out, "\n" + "\n".join([drawing.LEGEND, *drawing.over(places)]))
    for path in ranking.report(contest, places, folder):
        terminal.line(out, f"wrote {path}")
