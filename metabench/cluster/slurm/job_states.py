"""What Slurm says of jobs: squeue first, sacct where there is one, and honest ignorance after that.

One question for all jobs together, at most one in ``query_seconds``: the answer is kept beside the
submissions, and every command reads it there. A job is known by its id and its name, which is
drawn anew for every array: ids begin again after a crash of the controller.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from metabench.cluster import submission as folders
from metabench.cluster.slurm.commands import Slurm, SlurmError
from metabench.cluster.submission import Array, Submission
from metabench.cluster.submitting.snapshot import write_json
from metabench.core.errors import MetabenchError
from metabench.store.store import Store

LIVE = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "STOPPED",
        "RESIZING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "SPECIAL_EXIT",
        "SIGNALING",
        "STAGE_OUT",
    }
)
"""States of jobs that may still work; a node failure or a pre-emption is none only once squeue no
longer knows the job, because it may have been queued again."""
UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Job:
    """A job as the scheduler tells it."""

    id: str
    state: str
    reason: str = ""
    node: str = ""
    left: str = ""
    """Time left, as squeue writes it."""
    source: str = "squeue"

    @property
    def live(self) -> bool:
        """Whether it may still work."""
        return self.state in LIVE

    @property
    def held(self) -> bool:
        """Whether it waits for somebody to release it."""
        return self.state == "REQUEUE_HOLD" or "held" in self.reason.lower()


@dataclass(frozen=True)
class Answer:
    """All that is known of the jobs of some submissions, and when it was asked."""

    at: float
    jobs: dict[str, Job]
    """By "ARRAY NAME/INDEX"."""
    ids: dict[str, str] = field(default_factory=dict)
    """Array name to job id, where the launcher died before it could note it."""
    accounting: bool | None = None
    """None: not asked, because squeue knew every job."""
    problem: str = ""

    def of(self, array: Array, job: str) -> Job:
        """What is known of one task of an array."""
        return self.jobs.get(f"{array.name}/{job}") or Job(job, UNKNOWN, source="nobody")

    def jobs_of(self, array: Array) -> list[Job]:
        """What is known of each task of an array."""
        known = array if array.job else replace(array, job=self.ids.get(array.name, ""))
        return [self.of(array, e) for e in known.array_tasks()]

    def live(self, submission: Submission) -> list[Job]:
        """Its jobs that may still work."""
        return [j for a in submission.arrays for j in self.jobs_of(a) if j.live]


def ask(
    slurm: Slurm, submissions: Sequence[Submission], cache: Path, *, seconds: float | None = None
) -> Answer:
    """What is known of the jobs of ``submissions``; asked again only where the last answer is older
    than ``seconds`` (default: the profile's) or older than a submission."""
    wait = slurm.profile.query_seconds if seconds is None else seconds
    before = _read(cache)
    arrays = [a for s in submissions for a in s.arrays]
    newest = max((a.submitted for a in arrays), default=0.0)
    if before is not None and time.time() - before.at < wait and before.at > newest:
        return before
    now = time.time()
    try:
        jobs, ids = _squeue(slurm, arrays)
    except SlurmError as error:
        return Answer(
            before.at if before else 0.0,
            before.jobs if before else {},
            before.ids if before else {},
            before.accounting if before else None,
            str(error),
        )
    ended = {k: j for k, j in (before.jobs if before else {}).items() if not j.live}
    missing: dict[str, Array] = {}
    for array in arrays:
        for job in replace(array, job=array.job or ids.get(array.name, "")).array_tasks():
            key = f"{array.name}/{job}"
            if key in jobs:
                continue
            if key in ended and ended[key].state != UNKNOWN:
                jobs[key] = ended[key]
            else:
                missing[job] = array
    accounting: bool | None = None
    problem = ""
    if missing:
        try:
            jobs |= _sacct(slurm, missing)
            accounting = True
        except SlurmError as error:
            accounting, problem = False, str(error)
    answer = Answer(now, jobs, ids, accounting, problem)
    with contextlib.suppress(Exception):  # the next command asks again
        write_json(cache, asdict(answer))
    return answer


def _read(cache: Path) -> Answer | None:
    try:
        data = json.loads(cache.read_text())
        jobs = {k: Job(**j) for k, j in data.pop("jobs").items()}
        return Answer(jobs=jobs, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _squeue(slurm: Slurm, arrays: Iterable[Array]) -> tuple[dict[str, Job], dict[str, str]]:
    names = {a.name for a in arrays}
    said = slurm.run(
        "squeue", "--me", "-h", "-r", "--states=all", "-o", "%i|%j|%T|%N|%L|%r", seconds=120
    )
    jobs: dict[str, Job] = {}
    ids: dict[str, str] = {}
    for line in said.splitlines():
        words = line.split("|", 5)
        if len(words) < 6 or words[1] not in names:
            continue
        job, name, state, node, left, reason = words
        jobs[f"{name}/{job}"] = Job(job, state, _plain(reason), node, left)
        ids[name] = job.partition("_")[0]
    return jobs, ids


def _sacct(slurm: Slurm, missing: dict[str, Array]) -> dict[str, Job]:
    """Those that the controller has forgotten: the last state of each, of jobs with our name."""
    first = min(a.submitted for a in missing.values())
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(first - 60))
    wanted = ",".join(sorted({e.partition("_")[0] for e in missing}))
    said = slurm.run(
        "sacct", "-n", "-P", "-X", "-S", since, "-j", wanted, "-o", "JobID,JobName,State,NodeList",
        seconds=120,
    )  # fmt: skip
    out = {}
    for line in said.splitlines():
        job, name, state, node = line.split("|")[:4]
        array = missing.get(job)
        if array is not None and array.name == name:
            # "CANCELLED by 1000"
            word, _, rest = state.partition(" ")
            out[f"{name}/{job}"] = Job(job, word, rest, node, source="sacct")
    return out


def _plain(reason: str) -> str:
    return "" if reason in ("None", "(null)") else reason


def ended_states(folder: Path) -> dict[str, str]:
    """Job ids to how Slurm ended them, as far as anybody has asked."""
    try:
        found = json.loads((folder / "ended.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_ended(submissions: Iterable[Submission], answer: Answer) -> None:
    """Note how jobs ended while Slurm still knows it."""
    for submission in submissions:
        known = ended_states(submission.folder)
        found = {
            job.id: job.state
            for array in submission.arrays
            for job in answer.jobs_of(array)
            if not job.live and job.state != "UNKNOWN"
        }
        if {**known, **found} != known:
            with contextlib.suppress(MetabenchError):
                write_json(submission.folder / "ended.json", {**known, **found})


def look(slurm: Slurm, store: Store, *, seconds: float | None = None) -> Answer:
    """What Slurm says of every submission to a store that is not over."""
    known = folders.submissions(store)
    cache = folders.root(store) / f"queue-{slurm.profile.name or 'profile'}.json"
    mine = [s for s in known if s.profile.get("name") == slurm.profile.name]
    answer = ask(slurm, mine, cache, seconds=seconds)
    if not answer.problem:
        keep_ended(mine, answer)
    return answer


def busy(store: Store, answer: Answer) -> dict[str, str]:
    """Cells that a submission with live jobs has, by key, with the submission's name."""
    out: dict[str, str] = {}
    for submission in folders.submissions(store):
        if submission.cancelled is None and answer.live(submission):
            out |= dict.fromkeys(folders.keys(submission), submission.name)
    return out
