"""The commands that say how the cells of a suite stand, and run them: plan, run, status."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import refuse, with_options
from metabench.cli.launching import run_suite
from metabench.cli.options import OF_SUITES, Choice, Jobs, Launch
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import (
    print_plan,
    print_status,
    tell_bad_files,
    tell_nothing,
    title_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from metabench.api import Status
    from metabench.store.store import Store
    from metabench.suites.arena.definition import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite

WATCH_SECONDS = 10.0


@with_options()
def plan(
    choice: Choice,
    jobs: Jobs = None,
) -> None:
    """Dry run: cells, finished and impossible ones, what is missing, what it will cost."""
    from metabench.core.environment.hardware import default_jobs

    plans, bad = choice.scanned()
    tell_bad_files(bad)
    for each, planned in plans:
        title = title_of(each, choice.budget)
        print_plan(terminal.console(), title, planned, jobs or default_jobs())


@with_options()
def run(
    choice: Choice,
    launch: Launch,
) -> None:
    """Run every cell that has no finished record; stop and start it as you like."""
    code = 0
    for each, planned in choice.planned():
        code = max(code, run_suite(choice, each, planned, launch))
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

    out = terminal.console()
    if choice.whole_store:
        refuse([*OF_SUITES, "watch"], "nothing is chosen of a whole store: name a suite")
    choice.check_store()
    if choice.whole_store:
        kept = choice.open_store()
        print_status(out, kept.place, api.status(store=kept), tracebacks)
        return
    while True:
        if watch:
            out.clear()
        active = False
        for each, found in _statuses(choice):
            planned = _with_cluster(found.planned, choice.open_store(), out)
            active = active or any(p.state in ("running", "pending", "held") for p in planned)
            found = replace(found, planned=planned)
            print_status(out, title_of(each, choice.budget), found, tracebacks)
            tell_nothing(each, planned, choice.open_store())
        if not (watch and active):
            return
        time.sleep(WATCH_SECONDS)


def _statuses(choice: Choice) -> Iterator[tuple[Suite | Arena, Status]]:
    """Of each suite, or of the trials and finals of an arena."""
    from metabench import api
    from metabench.api.arena import tournament

    if (known := choice.arena()) is not None:
        store = choice.open_store()
        plan = tournament.plan(known, budget=choice.budget, store=store)
        planned = [*plan.trials, *plan.finals]
        records = [p.record for p in planned if p.record is not None]
        yield known, api.Status(planned, records, store.problems())
        return
    for each in choice.suites():
        yield each, api.status(each, only=choice.only or (), **choice.words())


def _with_cluster(planned: list[Planned], store: Store, out: Console) -> list[Planned]:
    """The plan with what clusters say of submitted cells; how old the answer is, and what could not
    be known, is printed."""
    from metabench.cluster import cell_states
    from metabench.cluster import submission as folder
    from metabench.cluster.slurm import job_states
    from metabench.cluster.slurm.commands import Slurm

    for text in folder.unreadable(store):
        out.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    known = folder.submissions(store)
    keys = {p.cell.key for p in planned}
    mine = [s for s in known if folder.keys(s) & keys]
    for name in dict.fromkeys(str(s.profile["name"]) for s in mine):
        group = [s for s in mine if s.profile["name"] == name]
        answer = job_states.look(Slurm(folder.profile_of(group, name)), store)
        planned = cell_states.standings(planned, group, answer)
        jobs = [j for s in group for j in answer.live(s)]
        counts: dict[str, int] = {}
        for job in jobs:
            counts[job.state.lower()] = counts.get(job.state.lower(), 0) + 1
        states = ", ".join(f"{n} {state}" for state, n in counts.items()) or "none live"
        age = f"as of {max(0.0, time.time() - answer.at):.0f} s ago" if answer.at else "never asked"
        out.print(f"\ncluster {name}: jobs {states}; {age}", markup=False, highlight=False)
        if answer.problem:
            out.print(
                f"not known now: {answer.problem}",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        elif answer.accounting is False:
            out.print("no accounting: nothing is known of jobs that squeue no longer lists")
    return planned
