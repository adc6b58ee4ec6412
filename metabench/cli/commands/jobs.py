"""The commands about what is queued on a cluster already: cancel, logs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from metabench.cli.command import typed
from metabench.cli.options import (
    BudgetName,
    Choice,
    MaybeCluster,
    MethodNames,
    StorePath,
    SuiteName,
    TaskNames,
)
from metabench.cli.printing import terminal


def cancel(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    task: TaskNames = None,
    method: MethodNames = None,
    store: StorePath = None,
    cluster: MaybeCluster = None,
) -> None:
    """Cancel the jobs of a suite; what they had in hand keeps its checkpoint."""
    from metabench.cluster import submission as folder
    from metabench.cluster.profile import load
    from metabench.cluster.slurm import commands as slurm
    from metabench.cluster.slurm import job_states
    from metabench.cluster.submitting import submit as module
    from metabench.core.errors import SuiteError, UnknownName
    from metabench.store.store import Store

    if task or method:
        (pairs,) = Choice(suite, task=task, method=method).suites()
        suite = pairs.name
    if suite is None:
        raise SuiteError(
            "name the suite whose jobs are to be cancelled, --task and --method, or 'all'"
        )
    suite = suite.removesuffix(".toml").rpartition("/")[2]
    kept = Store(store)
    for text in folder.unreadable(kept):
        terminal.say(text, err=True)
    known = [s for s in folder.submissions(kept) if s.cancelled is None]
    # "all" is of every budget, unless one is typed.
    every = suite == "all" and not typed("budget")
    mine = [s for s in known if suite in ("all", s.suite) and (every or s.budget == budget)]
    if not mine:
        names = {f"{s.suite} --budget {s.budget}" for s in known}
        wanted = suite if every else f"{suite} --budget {budget}"
        raise UnknownName("submission of suite", wanted, names)
    for name in dict.fromkeys(cluster or str(s.profile["name"]) for s in mine):
        there = slurm.Slurm(folder.profile_of(mine, name) if cluster is None else load(cluster))
        began = time.time()
        answer = job_states.look(there, kept, seconds=0)
        if answer.at < began:
            raise slurm.SlurmError(f"nothing was cancelled on {name}: {answer.problem}")
        group = [s for s in mine if cluster or s.profile["name"] == name]
        jobs = module.cancel(there, group, answer)
        what = f"jobs {', '.join(jobs)}" if jobs else "no job was waiting or running"
        terminal.say(f"cancelled on {name}: {what}")


def logs(
    cell: Annotated[str, typer.Argument(help="The beginning of a cell's key, as in status.")],
    store: StorePath = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Of each log.")] = 40,
) -> None:
    """The record of a cell with its traceback, what it printed in jobs, and their logs."""
    from metabench.cluster import cell_states
    from metabench.cluster import submission as folder
    from metabench.core.cell import place_names
    from metabench.core.errors import UnknownName
    from metabench.store.store import Store

    kept = Store(store)
    known = folder.submissions(kept)
    every = {*kept.keys(), *(k for s in known for k in folder.keys(s))}
    keys = sorted(k for k in every if k.startswith(cell))
    if len(keys) != 1:
        raise UnknownName(
            "one cell whose key begins with",
            cell,
            [k[:16] for k in keys] or [k[:10] for k in sorted(every)][:20],
        )
    members = (
        (m.row, m.column, m.cell)
        for s in known
        if keys[0] in folder.keys(s)
        for group in folder.groups(s)
        for m in group.members
    )
    record = kept.get(keys[0])
    if record is not None:
        name = place_names(members).get(keys[0], str(record.cell))
        terminal.say(f"{name}: {record.status}{f': {record.reason}' * bool(record.reason)}")
        if record.traceback:
            terminal.say(record.traceback.rstrip())
    for attempt in (a for s in known for a in folder.attempts(s.folder, keys[0])):
        how = attempt.end or "cut off, or at work"
        terminal.say(f"job {attempt.job} on {attempt.host}: {how} {attempt.what}".rstrip())
    for title, path in cell_states.logs(known, keys[0]):
        terminal.say(f"\n--- {title}: {path}")
        text = path.read_text(errors="replace").splitlines()
        terminal.say("\n".join(text[-lines:]))
