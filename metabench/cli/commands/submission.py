"""The commands that queue cells on a cluster: submit, retry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import with_options
from metabench.cli.options import Choice, ClusterName
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import tell_bad_files
from metabench.cli.printing.cluster import print_draft
from metabench.cli.submitting import profiled, queue, words

if TYPE_CHECKING:
    from metabench.cluster.submitting.hints import Words
    from metabench.suites.arena.definition import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the sbatch files and queue nothing.")
]
ArenaFile = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE",
        show_default=False,
        help="After the word 'arena' in place of a suite: an arena; without, the newest built-in.",
    ),
]


@with_options()
def submit(
    cluster: ClusterName,
    choice: Choice,
    file: ArenaFile = None,
    dry_run: DryRun = False,
) -> None:
    """Queue a suite's missing cells on a cluster and return; --set slurm.NAME=VALUE too. Of an
    arena the trials, and once all are done the finals."""
    from metabench.cluster.submitting.draft import TAKEN

    raise typer.Exit(_submit(cluster, _meant(choice, file), TAKEN, dry_run))


def _meant(choice: Choice, file: str | None) -> Choice:
    """``arena FILE`` is that arena, ``arena`` alone the newest built-in one."""
    from metabench.api.arena.tournament import default_arena
    from metabench.core.errors import SuiteError

    if choice.suite == "arena":
        return replace(choice, suite=file or default_arena())
    if file is not None:
        raise SuiteError(f"one suite is submitted at a time, and not {choice.suite} and {file}")
    return choice


@with_options()
def retry(
    cluster: ClusterName,
    choice: Choice,
    failed: Annotated[
        bool, typer.Option("--failed", help="Cells with a record that is not done, too.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Queue again what was lost, with --failed also what failed; more memory or time each time."""
    from metabench.cluster.submitting.draft import TAKEN

    states = TAKEN | ({"failed", "diverged"} if failed else frozenset())
    raise typer.Exit(_submit(cluster, choice, states, dry_run))


def _submit(cluster: str, typed: Choice, states: frozenset[str], dry_run: bool) -> int:
    from metabench.cluster import submission as folder
    from metabench.cluster.slurm.commands import SlurmError
    from metabench.cluster.submitting import refusals
    from metabench.cluster.submitting import submit as module

    out, err = terminal.console(), terminal.console(stderr=True)
    choice, profile = profiled(cluster, typed)
    code = 0

    def report(text: str) -> None:
        err.print(text, markup=False, highlight=False, soft_wrap=True)

    for text in folder.unreadable(choice.open_store()):
        report(text)
    for suite, planned, phase in _planned(choice, states):
        typed_words = words(cluster, typed, suite)
        made, slurm = module.prepare(
            suite.name,
            choice.budget,
            planned,
            profile,
            choice.open_store(),
            states,
            dry_run,
            typed_words,
        )
        print_draft(out, made, planned)
        if phase:
            report(_then(choice, planned, phase, typed_words))
        if not made.cells:
            for reason in refusals.lacking(planned):
                report(f"error: {suite.name}: {reason}")
                code = 1
            continue
        if dry_run:
            for script in made.scripts():
                out.print(script, markup=False, highlight=False, soft_wrap=True)
            names = ", ".join(sorted(module.variables(made, slurm)))
            report(f"variables that travel to jobs (keep_env adds others): {names}")
            try:
                against = refusals.refusals(made, slurm, planned)
            except SlurmError as error:
                report(f"not checked against the cluster: {error}")
                continue
            if against:
                report(f"{suite.name} would be refused:" + "".join(f"\n  {r}" for r in against))
                code = 1
            continue
        try:
            queue(out, made, slurm, planned)
        except refusals.Refusal as refusal:
            # The other suites of "all" are queued all the same.
            report(f"error: {suite.name}: {refusal}")
            code = 1
    return code


def _planned(
    choice: Choice, states: Collection[str]
) -> list[tuple[Suite | Arena, list[Planned], str]]:
    """The suites with their cells, or the arena with those that are due: "trials" or "finals"."""
    from metabench.api.arena import tournament

    known = choice.arena()
    if known is None:
        plans, bad = choice.scanned()
        tell_bad_files(bad)  # their cells are queued as if they had never been run
        return [(suite, planned, "") for suite, planned in plans]
    plan = tournament.plan(known, budget=choice.budget, store=choice.open_store())
    phase, planned = tournament.due(plan, states)
    return [(known, planned, phase)]


def _then(choice: Choice, planned: Sequence[Planned], phase: str, typed: Words) -> str:
    """What comes after the trials or the finals of an arena, and the command for it."""
    from metabench.cluster.submitting import hints
    from metabench.suites.planning import NEVER_RUN

    root = choice.open_store().root
    if phase == "trials":
        again = hints.command(["submit", *typed.suite, *typed.cluster], root)
        return f"these are trials; once all are done, the same command queues the finals: {again}"
    arena = hints.command(["arena", *typed.suite], root)
    if all(p.record is not None for p in planned if p.state not in NEVER_RUN):
        return f"every final is done; where all stand: {arena}"
    return f"these are finals; once all are done, where all stand: {arena}"
