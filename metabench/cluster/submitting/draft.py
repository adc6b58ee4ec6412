"""A submission before it is made: the cells that it takes, in jobs with what each needs."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from metabench.cluster import submission as folders
from metabench.cluster.profile import Profile
from metabench.cluster.slurm import job_logs
from metabench.cluster.slurm.batch import script, teardown_lines
from metabench.cluster.slurm.job_states import ended_states
from metabench.cluster.submission import Member
from metabench.cluster.submitting import packing
from metabench.cluster.submitting.hints import Words
from metabench.cluster.submitting.packing import Bundle, Part, Setbacks
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites.planning import Planned

TAKEN = frozenset({"open", "timeout"})
"""States of the cells that ``submit`` takes; ``retry`` takes others too."""


@dataclass(frozen=True)
class Draft:
    """A submission before it is made: what would be queued, and what would be left out."""

    folder: Path
    profile: Profile
    suite: str
    budget: str
    store: Store
    bundles: list[Bundle]
    parts: list[Part]
    left_out: dict[str, str] = field(default_factory=dict)
    """Cells that other live jobs have already, by key, with the submission."""
    others: dict[str, int] = field(default_factory=dict)
    """State to number of the cells that are not to be run."""
    at_most: list[str] = field(default_factory=list)
    """What to tell of cells that ran out of something and can get no more of it."""
    later: int = 0
    """Cells that stay open, for another submission: more kinds of jobs would be needed than one
    user may have jobs (``most_jobs``)."""
    words: Words | None = None

    @property
    def cells(self) -> int:
        """How many would be run."""
        return sum(len(b.members) for b in self.bundles)

    @property
    def estimate(self) -> tuple[float, int]:
        """Seconds of work where it is known, and for how many cells."""
        known = [
            m.estimated_seconds
            for b in self.bundles
            for m in b.members
            if m.estimated_seconds is not None
        ]
        return sum(known), len(known)

    def name(self, at: int) -> str:
        """The name of the jobs of part ``at``."""
        return f"mb-{self.folder.name.rpartition('-')[2]}-{at}"

    def scripts(self) -> list[str]:
        """The sbatch file of each part."""
        return [self.script(at) for at in range(len(self.parts))]

    def script(self, at: int) -> str:
        """The sbatch file of one part."""
        part, profile = self.parts[at], self.profile
        needs = self.bundles[part.bundle].needs
        words = [str(self.folder), str(part.bundle)]
        # -P: a checkout in the folder that jobs start in is not the code that was submitted.
        command = f"{profile.command()} -P -u -m metabench.cluster.node_worker {shlex.join(words)}"
        return script(
            profile,
            command,
            self.jobs_folder(at),
            self.name(at),
            needs.minutes,
            needs.memory_gb,
            part.parallel,
            teardown_lines(self.folder),
            f"metabench {self.suite} {self.budget}",
            part.size,
        )

    def jobs_folder(self, at: int) -> Path:
        """Of a part's logs and sbatch file; there before the first job starts."""
        return self.folder / "jobs" / str(at)


def draft(
    planned: Sequence[Planned],
    profile: Profile,
    store: Store,
    suite: str,
    budget: str,
    *,
    states: Iterable[str] = TAKEN,
    busy: Mapping[str, str] | None = None,
    max_array: int | None = None,
    words: Words | None = None,
) -> Draft:
    """What a submission of the planned cells in ``states`` would be; nothing is asked or written.

    ``busy``: cells that a live submission has, with its name; ``words``: what was typed.
    """
    states, busy = frozenset(states), busy or {}
    unique = {p.cell.key: p for p in planned if p.state in states}
    # A failed cell has had its turn there.
    left_out = {k: busy[k] for k, p in unique.items() if k in busy and p.state in TAKEN}
    records = {r.key: r for r in store.records()}
    members = []
    for key, p in unique.items():
        if key in left_out:
            continue
        known = records.get(key)
        before = (known.attempts, known.ended) if known is not None else None
        members.append(Member(p.row, p.column, p.cell, p.estimated_seconds, before))
    peaks = packing.peaks(records.values())
    suffered = setbacks(store, {m.cell.key for m in members}, records.values())
    found = packing.bundles(members, profile, peaks, suffered)
    others: dict[str, int] = {}
    for p in planned:
        if p.state not in states:
            others[p.state] = others.get(p.state, 0) + 1
    return Draft(
        folders.new_folder(store, suite),
        profile,
        suite,
        budget,
        store,
        found,
        packing.parts(found, max_array or profile.max_array or 1001, profile.parallel),
        left_out,
        others,
        packing.at_most(members, profile, peaks, suffered),
        len(members) - sum(len(b.members) for b in found),
        words,
    )


def setbacks(store: Store, keys: set[str], records: Iterable[Record]) -> dict[str, Setbacks]:
    """How often each cell ran out of memory or of time in earlier submissions, and by its record
    among ``records``."""
    out: dict[str, Setbacks] = {}
    given_up: Counter[str] = Counter()
    for submission in folders.submissions(store):
        mine = keys & folders.keys(submission)
        jobs = submission.array_tasks() if mine else []
        ends = ended_states(submission.folder)
        late = {job for job, state in ends.items() if state == "TIMEOUT"}
        starved = {job for job, state in ends.items() if state == "OUT_OF_MEMORY"}
        starved |= {job for job in jobs if job_logs.starved(submission.folder, job)}
        for key in mine:
            history = folders.attempts(submission.folder, key)
            # Those that were cut off over the cell; where none came to it, all that should have.
            had = {a.job for a in history if not a.end} if history else {*jobs}
            memory = bool(had & starved) or any("out of memory" in a.what for a in history)
            known = out.get(key, Setbacks())
            out[key] = Setbacks(known.memory + memory, known.time + bool(had & late))
            stopped = folders.fruitless(a for a in history if a.end == "stopped")
            given_up[key] += stopped >= folders.TRIES
    given_up |= Counter({r.key: 1 for r in records if r.key in keys and r.status == "timeout"})
    for key, times in given_up.items():
        known = out.get(key, Setbacks())
        out[key] = replace(known, time=known.time + times)
    return out
