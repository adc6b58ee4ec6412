"""How each cell stands: what the store says, and for open ones what Slurm says of those who might
still work on them."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metabench.cluster import submission as folders
from metabench.cluster.slurm import job_logs
from metabench.cluster.slurm.job_states import UNKNOWN, Answer, Job, ended_states
from metabench.cluster.submission import NodeStatus, Submission
from metabench.core.text import duration
from metabench.suites.planning import Planned, State

ENDS: dict[str, tuple[State, str]] = {
    "OUT_OF_MEMORY": ("out of memory", "its job ran out of memory"),
    "TIMEOUT": ("out of time", "its job came to its time limit"),
    "DEADLINE": ("out of time", "its job came to its deadline"),
    "NODE_FAIL": ("node failure", "the node of its job failed"),
    "BOOT_FAIL": ("node failure", "the node of its job did not boot"),
    "PREEMPTED": ("pre-empted", "its job had to make room, and was not queued again"),
    "CANCELLED": ("cancelled", "its job was cancelled"),
    "FAILED": ("crashed", "its job failed"),
}


JOBS_SHOWN = 4
"""Jobs whose logs are shown for a cell that none came to."""


@dataclass(frozen=True)
class _Known:
    """What is known of one submission, read once for all of its cells."""

    submission: Submission
    keys: set[str]
    jobs: list[Job]
    statuses: dict[str, NodeStatus]
    ends: dict[str, str]

    @functools.cached_property
    def told(self) -> dict[str, tuple[State | None, str, str]]:
        """Of each job how it ended, why, and what its log says of it; the first is None where
        nobody knows."""
        return {
            job.id: _told(self.submission.folder, job.id, _state(self, job)) for job in self.jobs
        }


_NOTHING: tuple[State | None, str, str] = (None, "", "")


def _state(known: _Known, job: Job) -> str:
    return known.ends.get(job.id) or job.state


def _told(folder: Path, job: str, state: str) -> tuple[State | None, str, str]:
    """Slurm may call an end FAILED, or have forgotten it, though the log says that memory ran
    out."""
    if state not in ("FAILED", "OUT_OF_MEMORY", UNKNOWN):
        return (*ENDS[state], "") if state in ENDS else _NOTHING
    said = job_logs.last_words(folder, job)
    if job_logs.OUT_OF_MEMORY.search(said):
        state = "OUT_OF_MEMORY"
    said = f"; its log: {said}" * bool(said)
    return (*ENDS[state], said) if state in ENDS else (None, "", said)


def standings(
    planned: Sequence[Planned], submissions: Sequence[Submission], answer: Answer
) -> list[Planned]:
    """The plan, with what is known of open and running cells that were submitted."""
    known = [
        _Known(
            s,
            folders.keys(s),
            [j for a in s.arrays for j in answer.jobs_of(a)],
            folders.statuses(s.folder),
            ended_states(s.folder),
        )
        for s in reversed(submissions)
    ]
    out = []
    for p in planned:
        having = [k for k in known if p.cell.key in k.keys]
        mine = having[0] if having else None
        if mine is None or p.state not in ("open", "running", "failed", "timeout"):
            out.append(p)
        elif p.state == "running":
            out.append(_running(p, having))
        elif p.state in ("failed", "timeout"):
            out.append(_again(p, mine))
        else:
            out.append(_open(p, mine, answer))
    return out


def _running(p: Planned, having: Sequence[_Known]) -> Planned:
    """``having``: the submissions of the cell; a job of any of them may have it."""
    key = p.cell.key
    said = [(at, e, k) for k in having for e in k.statuses.values()
            if (at := e.running.get(key)) is not None and not e.ended]  # fmt: skip
    if not said:
        return p
    # A job that was killed says so for ever: the latest word counts.
    at, node, known = max(said, key=lambda s: s[1].beat)
    parts = [f"job {node.job} on {node.node or node.host}"]
    parts.append(f"step {at.step}/{at.horizon}" if at.horizon else f"step {at.step}")
    parts.append(f"{at.phase}, {at.fraction:.0%}")
    spent = node.beat - at.since
    if at.fraction > 0.02:
        left = spent * (1 - at.fraction) / at.fraction - (time.time() - node.beat)
        parts.append(f"about {duration(max(0.0, left))} left")
    state = next((j.state for j in known.jobs if j.id == node.job), "")
    if state == "SUSPENDED":
        parts.append("suspended")
    return replace(p, reason=", ".join(parts))


def _again(p: Planned, known: _Known) -> Planned:
    """A cell that has failed: with jobs of a later submission on their way to it, pending."""
    live = [j for j in known.jobs if j.live]
    if not live:
        return p
    for group in folders.groups(known.submission):
        for m in group.members:
            if m.cell.key == p.cell.key:
                # Its record is the one that it had when it was submitted.
                if m.before is not None and m.before[0] >= _tries(known, p, m.before[0]):
                    return replace(p, state="pending", reason=_why_pending(live))
                return p
    return p


def _tries(known: _Known, p: Planned, before: int) -> int:
    ended = [a for a in folders.attempts(known.submission.folder, p.cell.key) if a.end]
    return before + sum(a.end == "recorded" for a in ended)


def _open(p: Planned, known: _Known, answer: Answer) -> Planned:
    history = folders.attempts(known.submission.folder, p.cell.key)
    tried = f"; tried {len(history)} times" if len(history) > 1 else ""
    if known.submission.cancelled is not None:
        return replace(p, state="cancelled", reason=f"with {known.submission.name}{tried}")
    live = [j for j in known.jobs if j.live]
    if live and all(j.held for j in live):
        repair = f"scontrol release {' '.join(sorted({j.id.partition('_')[0] for j in live}))}"
        why = f"every job that could run it is held: {live[0].reason}{tried}"
        return replace(p, state="held", reason=why, repair=repair)
    if live:
        return replace(p, state="pending", reason=_why_pending(live) + tried)
    sent = known.submission
    repair = sent.command("retry")
    if history:
        last = history[-1]
        # Slurm's word for a job that was cut off; else what its node worker or cell worker said.
        name, why, said = known.told.get(last.job, _NOTHING)
        if name:
            reason = f"{why} ({last.job} on {last.host}){said}{tried}"
            return replace(p, state=name, reason=reason, repair=repair)
    ends = {(name, why): said for name, why, said in known.told.values() if name}
    if len(ends) == 1 and not history:
        ((name, why), said) = ends.popitem()
        reason = f"{why} before it came to this cell{said}"
        return replace(p, state=name, reason=reason, repair=repair)
    why = "no job of its submission is left"
    unknown = sum(_state(known, job) == UNKNOWN for job in known.jobs)
    if unknown:
        why += f", and Slurm no longer knows {unknown} of {len(known.jobs)}"
        if answer.accounting is False:
            why += f" (no accounting: {answer.problem})"
    if history and history[-1].what:
        why += f"; last: {history[-1].what}"
    why += next((said for _, _, said in known.told.values() if said), "")
    return replace(p, state="lost", reason=why + tried, repair=repair)


def _why_pending(live: Sequence[Job]) -> str:
    """How many of the jobs that will come to a cell run, and why the others do not."""
    running = sum(j.state in ("RUNNING", "COMPLETING") for j in live)
    suspended = sum(j.state == "SUSPENDED" for j in live)
    waiting = Counter(
        j.reason or "no reason given" for j in live if j.state in ("PENDING", "CONFIGURING")
    )
    parts = []
    if running:
        parts.append(f"next in line of {running} running jobs")
    if suspended:
        parts.append(f"{suspended} suspended")
    parts += [f"{n} waiting: {reason}" for reason, n in waiting.most_common(3)]
    return ", ".join(parts)


def logs(submissions: Sequence[Submission], key: str) -> list[tuple[str, Path]]:
    """Where to read of a cell: what it printed, and the logs of the jobs that had it."""
    out: list[tuple[str, Path]] = []
    for submission in submissions:
        printed = submission.folder / "cells" / f"{key}.log"
        if printed.exists():
            out.append((f"printed by the cell in {submission.name}", printed))
        jobs = list(dict.fromkeys(a.job for a in folders.attempts(submission.folder, key)))
        if not jobs and key in folders.keys(submission):  # none came to it: why is in their logs
            jobs = submission.array_tasks()[:JOBS_SHOWN]
        for job in jobs:
            for path in sorted(submission.folder.glob(f"jobs/*/{job}_0_log.*")):
                if path.stat().st_size:
                    out.append((f"job {job}, {path.suffix.removeprefix('.')}", path))
    return out
