"""Submitting cells to a cluster in sight of whoever typed a command, and waiting for records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metabench.cli.command import running
from metabench.cli.options import Choice
from metabench.cli.printing import terminal
from metabench.cli.printing.cluster import print_draft
from metabench.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.cluster.profile import Profile
    from metabench.cluster.submission import Submission
    from metabench.cluster.submitting.draft import Draft
    from metabench.cluster.submitting.hints import Words
    from metabench.suites.arena.definition import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite, SuiteCell

POLL_SECONDS = 2.0
LEAST_LOOK = 5.0
"""Between two readings of the store while somebody waits."""
ROUNDS = 3
"""How often cells that no job is left for are queued again."""


def profiled(name: str, choice: Choice) -> tuple[Choice, Profile]:
    """The choice with the settings that are about cells, the profile with those about it."""
    from metabench.cluster.profile import load, split_set

    cells, own = split_set(choice.set or ())
    return replace(choice, set=cells), load(name, own)


def words(cluster: str, choice: Choice, suite: Suite | Arena) -> Words:
    """What was typed to submit a suite; ``choice`` as it was before :func:`profiled`."""
    from metabench.cluster.submitting import hints

    if choice.suite is None:
        named = hints.options(task=choice.task, method=choice.method)
    else:
        named = [suite.name if choice.suite == "all" else hints.absolute(choice.suite)]
    context = running()
    plugins = context.find_root().obj if context is not None else None
    named += hints.options(budget=[choice.budget], plugin=[p.absolute() for p in plugins or ()])
    solver, seeds = ([word] if word else () for word in (choice.solver, choice.seeds))
    return hints.words(
        named, cluster, choice.set or (), solver=solver, seeds=seeds, only=choice.only
    )


def queue(out: Console, made: Draft, slurm: Any, planned: Sequence[Planned]) -> Submission:
    """Queue the jobs and print their numbers; raises Refusal."""
    from metabench.cluster.submitting import submit as module

    submission = module.enqueue(made, slurm, planned)
    jobs = ", ".join(a.job for a in submission.arrays)
    out.print(
        f"queued as {jobs}; see: {submission.command('status')}\nfolder: {submission.folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return submission


def run_on_cluster(cluster: str, typed: Choice, suite: Suite, planned: list[Planned]) -> int:
    """Submit a suite's cells and wait for their records; the exit code. Interrupted, the jobs go on
    and the same command waits again."""
    from metabench.cluster.slurm import job_states
    from metabench.cluster.submitting import submit as module
    from metabench.cluster.submitting.draft import TAKEN
    from metabench.core.cell import place_names
    from metabench.run.events import CellWords
    from metabench.store import identity
    from metabench.store.store import Store
    from metabench.suites.planning import NEVER_RUN, plan

    err = terminal.console(stderr=True)
    choice, profile = profiled(cluster, typed)
    store, retyped = choice.open_store(), words(cluster, typed, suite)
    items = [p for p in planned if p.state not in NEVER_RUN]
    rounds, before, shown, known = 0, 0, "", ""
    while True:
        identity.check(store.root, known)
        made, slurm = module.prepare(
            suite.name, choice.budget, planned, profile, store, words=retyped
        )
        if made.cells and rounds < ROUNDS:
            print_draft(err, made, planned)
            queue(err, made, slurm, planned)
            # Cells that had no job yet are not tried again, as long as some come to an end.
            todo = made.cells + made.later
            rounds += not (made.later and todo < before)
            before = todo
            known = identity.identity(store.root)
        elif not made.left_out:
            break
        while True:
            time.sleep(max(POLL_SECONDS, min(LEAST_LOOK, profile.query_seconds)))
            answer = job_states.look(slurm, store)
            busy = job_states.busy(store, answer)
            open_ = [p for p in items if (r := store.get(p.cell.key)) is None or r.status != "done"]
            text = f"{len(items) - len(open_)} of {counted(len(items), 'cell')} done"
            if text != shown:
                err.print(text, markup=False, highlight=False)
                shown = text
            if not any(p.cell.key in busy for p in open_):
                break
        planned = plan([_again(p) for p in planned], store)
        items = [p for p in planned if p.state not in NEVER_RUN]
        if all(p.state not in TAKEN for p in items):
            break
    root = "" if store.root == Store().root else str(store.root)
    called = CellWords(place_names((p.row, p.column, p.cell) for p in items), root)
    for p in items:
        if p.state != "done":
            err.print(f"{called.of(p.cell)}: {p.state}: {p.reason}", markup=False, soft_wrap=True)
            if p.record is not None and p.record.traceback:
                err.print(called.where(p.record), markup=False, soft_wrap=True)
    return int(any(p.state != "done" for p in items))


def _again(p: Planned) -> SuiteCell:
    from metabench.core.cell import of_cell
    from metabench.suites.suite import SuiteCell

    known = replace(of_cell(p.cell), said=p.said)
    return SuiteCell(p.row, p.column, p.cell, p.reason if p.state == "skipped" else None, known)
