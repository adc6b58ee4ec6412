"""The commands about a cluster: submit, logs, cancel, retry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metabench.cli import printing
from metabench.cli.options import (
    BudgetName,
    Choice,
    MethodNames,
    StorePath,
    SuiteName,
    TaskNames,
    running,
    typed,
    with_options,
)
from metabench.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.cluster.draft import Draft
    from metabench.cluster.hints import Words
    from metabench.cluster.profile import Profile
    from metabench.cluster.submission import Submission
    from metabench.store.store import Store
    from metabench.suites.arena import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite


def _profile_names(incomplete: str) -> list[str]:
    from metabench.cluster.profile import names

    return [n for n in names() if n.startswith(incomplete)]


_CLUSTER = typer.Option(
    "--cluster",
    metavar="PROFILE",
    autocompletion=_profile_names,
    show_default=False,
    help="A cluster profile, or the path of its .toml file.",
)
ClusterName = Annotated[str, _CLUSTER]
MaybeCluster = Annotated[str | None, _CLUSTER]
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
    from metabench.cluster.draft import TAKEN

    raise typer.Exit(_submit(cluster, _meant(choice, file), TAKEN, dry_run))


def _meant(choice: Choice, file: str | None) -> Choice:
    """``arena FILE`` is that arena, ``arena`` alone the newest built-in one."""
    from metabench.api.ranking import default_arena
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
    from metabench.cluster.draft import TAKEN

    states = TAKEN | ({"failed", "diverged"} if failed else frozenset())
    raise typer.Exit(_submit(cluster, choice, states, dry_run))


def cancel(
    suite: SuiteName = None,
    budget: BudgetName = "laptop",
    task: TaskNames = None,
    method: MethodNames = None,
    store: StorePath = None,
    cluster: MaybeCluster = None,
) -> None:
    """Cancel the jobs of a suite; what they had in hand keeps its checkpoint."""
    import time

    from metabench.cluster import job_states, slurm
    from metabench.cluster import submission as folder
    from metabench.cluster import submit as module
    from metabench.cluster.profile import load
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
        printing.say(text, err=True)
    known = [s for s in folder.submissions(kept) if s.cancelled is None]
    # "all" is of every budget, unless one is typed.
    every = suite == "all" and not typed("budget")
    mine = [s for s in known if suite in ("all", s.suite) and (every or s.budget == budget)]
    if not mine:
        names = {f"{s.suite} --budget {s.budget}" for s in known}
        wanted = suite if every else f"{suite} --budget {budget}"
        raise UnknownName("submission of suite", wanted, names)
    for name in dict.fromkeys(cluster or str(s.profile["name"]) for s in mine):
        there = slurm.Slurm(_of(mine, name) if cluster is None else load(cluster))
        began = time.time()
        answer = job_states.look(there, kept, seconds=0)
        if answer.at < began:
            raise slurm.SlurmError(f"nothing was cancelled on {name}: {answer.problem}")
        group = [s for s in mine if cluster or s.profile["name"] == name]
        jobs = module.cancel(there, group, answer)
        what = f"jobs {', '.join(jobs)}" if jobs else "no job was waiting or running"
        printing.say(f"cancelled on {name}: {what}")


def _of(submissions: Sequence[Submission], name: str) -> Profile:
    """The profile that a submission was made with."""
    from metabench.cluster.profile import Profile
    from metabench.core.settings import fields

    found = next(s for s in reversed(submissions) if s.profile["name"] == name)
    # It may have been made by another version, with other settings.
    return Profile(**{k: v for k, v in found.profile.items() if k in fields(Profile)})


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
        printing.say(f"{name}: {record.status}{f': {record.reason}' * bool(record.reason)}")
        if record.traceback:
            printing.say(record.traceback.rstrip())
    for attempt in (a for s in known for a in folder.attempts(s.folder, keys[0])):
        how = attempt.end or "cut off, or at work"
        printing.say(f"job {attempt.job} on {attempt.host}: {how} {attempt.what}".rstrip())
    for title, path in cell_states.logs(known, keys[0]):
        printing.say(f"\n--- {title}: {path}")
        text = path.read_text(errors="replace").splitlines()
        printing.say("\n".join(text[-lines:]))


def profiled(name: str, choice: Choice) -> tuple[Choice, Profile]:
    """The choice with the settings that are about cells, the profile with those about it."""
    from metabench.cluster.profile import load, split_set

    cells, own = split_set(choice.set or ())
    return replace(choice, set=cells), load(name, own)


def words(cluster: str, choice: Choice, suite: Suite | Arena) -> Words:
    """What was typed to submit a suite; ``choice`` as it was before :func:`profiled`."""
    from metabench.cluster import hints

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


def _submit(cluster: str, typed: Choice, states: frozenset[str], dry_run: bool) -> int:
    from metabench.cli import printing
    from metabench.cluster import refusals
    from metabench.cluster import submission as folder
    from metabench.cluster import submit as module
    from metabench.cluster.slurm import SlurmError

    out, err = printing.console(), printing.console(stderr=True)
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
        describe(out, made, planned)
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
    from metabench.api import arena as verbs

    known = choice.arena()
    if known is None:
        plans, bad = choice.scanned()
        printing.tell_bad_files(bad)  # their cells are queued as if they had never been run
        return [(suite, planned, "") for suite, planned in plans]
    plan = verbs.plan(known, budget=choice.budget, store=choice.open_store())
    phase, planned = verbs.due(plan, states)
    return [(known, planned, phase)]


def _then(choice: Choice, planned: Sequence[Planned], phase: str, typed: Words) -> str:
    """What comes after the trials or the finals of an arena, and the command for it."""
    from metabench.cluster import hints
    from metabench.suites.planning import NEVER_RUN

    root = choice.open_store().root
    if phase == "trials":
        again = hints.command(["submit", *typed.suite, *typed.cluster], root)
        return f"these are trials; once all are done, the same command queues the finals: {again}"
    arena = hints.command(["arena", *typed.suite], root)
    if all(p.record is not None for p in planned if p.state not in NEVER_RUN):
        return f"every final is done; where all stand: {arena}"
    return f"these are finals; once all are done, where all stand: {arena}"


def describe(out: Console, made: Draft, planned: Sequence[Planned]) -> None:
    """What would be queued, in words."""
    from metabench.core.text import duration

    def line(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    jobs = sum(p.size for p in made.parts)
    cells = counted(len(planned), "cell")
    line(f"{made.suite} (budget {made.budget}) on {made.profile.name}: {cells}")
    if made.others:
        line("  not to run: " + ", ".join(f"{n} {state}" for state, n in made.others.items()))
    if made.left_out:
        names = ", ".join(sorted({*made.left_out.values()}))
        line(f"  {counted(len(made.left_out), 'cell')} with live jobs already ({names})")
    if not made.cells:
        line("  nothing to submit")
        return
    line(
        f"  {counted(made.cells, 'cell')} in {counted(len(made.parts), 'array')} of "
        f"{counted(jobs, 'job')} in all"
    )
    for part in made.parts:
        needs = made.bundles[part.bundle].needs
        count = len(made.bundles[part.bundle].members)
        line(
            f"  array of {counted(part.size, 'job')}, {part.parallel} at a time, for "
            f"{counted(count, 'cell')}: {needs.minutes} min, {needs.memory_gb:g} GB, "
            f"{counted(made.profile.cpus, 'core')}"
            + (f", {counted(made.profile.gpus, 'GPU')}" if made.profile.gpus else "")
            + (f", {made.profile.gres}" if made.profile.gres else "")
        )
    for text in made.at_most:
        line(f"  {text}")
    seconds, known = made.estimate
    if known:
        what = "GPU time" if made.profile.wants_gpu else "job time"
        line(
            f"  estimate: {duration(seconds / made.profile.at_once)} of {what} for "
            f"{counted(known, 'cell')} by similar finished ones; "
            f"{made.cells - known} of unknown cost"
        )
    else:
        line("  no estimate: no similar cell is finished")


def queue(out: Console, made: Draft, slurm: Any, planned: Sequence[Planned]) -> Submission:
    """Queue the jobs and print their numbers; raises Refusal."""
    from metabench.cluster import submit as module

    submission = module.enqueue(made, slurm, planned)
    jobs = ", ".join(a.job for a in submission.arrays)
    out.print(
        f"queued as {jobs}; see: {submission.command('status')}\nfolder: {submission.folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return submission


def with_cluster(planned: list[Planned], store: Store, out: Console) -> list[Planned]:
    """The plan with what clusters say of submitted cells; how old the answer is, and what could not
    be known, is printed."""
    import time

    from metabench.cluster import cell_states, job_states
    from metabench.cluster import submission as folder
    from metabench.cluster.slurm import Slurm

    for text in folder.unreadable(store):
        out.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    known = folder.submissions(store)
    keys = {p.cell.key for p in planned}
    mine = [s for s in known if folder.keys(s) & keys]
    for name in dict.fromkeys(str(s.profile["name"]) for s in mine):
        group = [s for s in mine if s.profile["name"] == name]
        answer = job_states.look(Slurm(_of(group, name)), store)
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
