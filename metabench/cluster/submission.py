"""What a submission leaves on disk: who was asked to run what, and what became of each attempt.

``<store>/cluster/<run>/`` holds ``submission.json``, ``group-N.json`` (the cells of an array),
``code/`` and the wheel, ``jobs/`` (sbatch files, logs of jobs), ``elements/``
(the last word of each job), ``cells/`` (attempts and output of each cell). All of it is plain data;
none of it says whether a cell is done: that is the store's alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metabench.cluster.profile import Profile
from metabench.cluster.submitting import hints
from metabench.cluster.submitting.snapshot import write_json
from metabench.core import settings
from metabench.core.catalogue import suite_names
from metabench.core.cell import Cell
from metabench.core.errors import MetabenchError
from metabench.store.store import CLUSTER, Store

SUBMISSION = "submission.json"
STATUSES = "elements"
"""The folder of what jobs say of themselves; its name is that of earlier versions."""
TRIES = 5
"""Attempts cut off without getting any further, after which a cell has failed."""
_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError)
"""What reading plain data raises that is not what was written."""


@dataclass(frozen=True)
class Array:
    """One sbatch: its name, its id ("" where it never arrived), its size, when it was accepted."""

    name: str
    group: int
    size: int
    job: str = ""
    submitted: float = 0.0
    """Seconds since the epoch; tells the job from an older one with the same id."""

    def array_tasks(self) -> list[str]:
        """The ids of its jobs."""
        if not self.job:
            return []
        return [self.job] if self.size == 1 else [f"{self.job}_{i}" for i in range(self.size)]


@dataclass(frozen=True)
class Submission:
    """One ``submit``: of which suite, with which profile, as which arrays."""

    folder: Path
    suite: str
    budget: str
    profile: dict[str, Any]
    store: str
    code: str
    """sha256 of the snapshot."""
    submitted: float
    cells: int
    estimated_seconds: float | None = None
    """Of all cells whose cost could be estimated."""
    arrays: list[Array] = field(default_factory=list)
    cancelled: float | None = None
    words: hints.Words | None = None
    """None: it was not made on the command line, or by an earlier version."""

    def command(self, verb: str) -> str:
        """What to type for ``verb`` (status, retry or cancel) of the same cells, in words where its
        suite has no name that could be typed."""
        words = self.words
        if words is None:
            if verb != "cancel" and self.suite not in suite_names():
                return f"the call that made it ({verb} of {self.suite})"
            site = ["--cluster", str(self.profile.get("name"))]
            words = hints.Words([self.suite, "--budget", self.budget], [], site)
        # A submission is cancelled as a whole.
        more = {"cancel": [], "status": words.cells, "retry": [*words.cells, *words.cluster]}
        return hints.command([verb, *words.suite, *more[verb]], self.folder.parents[1])

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def array_tasks(self) -> list[str]:
        """The ids of all its jobs."""
        return [e for array in self.arrays for e in array.array_tasks()]

    def write(self) -> None:
        """Keep it."""
        data = asdict(self)
        del data["folder"]
        write_json(self.folder / SUBMISSION, data)


@dataclass(frozen=True)
class Member:
    """A cell of a group: its place in the table, what is known of its cost, and how many attempts
    its record (if it has one) had when it was submitted."""

    row: str
    column: str
    cell: Cell
    estimated_seconds: float | None = None
    before: tuple[int, str] | None = None


@dataclass(frozen=True)
class Group:
    """Cells with equal needs, for any number of interchangeable workers."""

    members: list[Member]
    minutes: int
    memory_gb: float
    store: str
    code: str
    at_once: int = 1
    signal_seconds: int = 180
    checkpoint_seconds: float = 120.0
    requeue: bool = True
    memory_fraction: float | None = None
    workers: int = 1
    ranks: int = 1
    """Tasks of a job, which share the episodes of one cell."""
    store_id: str = ""

    def write(self, path: Path) -> None:
        """Keep it."""
        write_json(path, asdict(self))


def read_group(path: Path) -> Group:
    """A group; raises MetabenchError where it cannot be read."""
    try:
        data = json.loads(path.read_text())
        members = [
            Member(
                **{
                    **m,
                    "cell": Cell(**m["cell"]),
                    "before": tuple(m["before"]) if m["before"] is not None else None,
                }
            )
            for m in data.pop("members")
        ]
        if "elements" in data:  # written by an earlier version
            data["workers"] = data.pop("elements")
        return Group(members=members, **data)
    except _DAMAGED as error:
        raise MetabenchError(f"{path} cannot be read: {error}") from None


def root(store: Store) -> Path:
    """Where the submissions of a store are."""
    return store.root / CLUSTER


def submissions(store: Store) -> list[Submission]:
    """Every submission to a store that can be read, oldest first."""
    found = (_read(path) for path in root(store).glob(f"*/{SUBMISSION}"))
    return sorted((s for s in found if s is not None), key=lambda s: (s.submitted, s.name))


def unreadable(store: Store) -> list[str]:
    """What to tell of submissions that cannot be read: nothing is known of their jobs."""
    return [
        f"{path} cannot be read: nothing is known of the jobs of that submission"
        for path in sorted(root(store).glob(f"*/{SUBMISSION}"))
        if _read(path) is None
    ]


def _read(path: Path) -> Submission | None:
    with contextlib.suppress(*_DAMAGED):
        data = json.loads(path.read_text())
        arrays = [Array(**a) for a in data.pop("arrays")]
        words = hints.Words(**given) if (given := data.pop("words", None)) else None
        made = Submission(folder=path.parent, arrays=arrays, words=words, **data)
        if isinstance(made.profile["name"], str):
            return made
    return None


def profile_of(submissions: Sequence[Submission], name: str) -> Profile:
    """The profile that a submission was made with, the newest of that name."""
    found = next(s for s in reversed(submissions) if s.profile["name"] == name)
    # It may have been made by another version, with other settings.
    return Profile(**{k: v for k, v in found.profile.items() if k in settings.fields(Profile)})


def groups(submission: Submission) -> Iterator[Group]:
    """The groups of a submission in order."""
    for path in sorted(submission.folder.glob("group-*.json")):
        yield read_group(path)


def keys(submission: Submission) -> set[str]:
    """The cells of a submission; cheaper than its groups."""
    try:
        found = json.loads((submission.folder / "keys.json").read_text())
    except (OSError, ValueError):
        found = None
    if isinstance(found, list):
        return {str(key) for key in found}
    return {m.cell.key for g in groups(submission) for m in g.members}


# attempts


@dataclass(frozen=True)
class Attempt:
    """A worker's go at a cell. ``step``: from which outer step, None where it never came to that;
    ``end``: how it ended, "" where it was cut off or is still going on."""

    job: str
    host: str
    at: float
    pid: int = 0
    step: int | None = None
    end: str = ""
    what: str = ""


def _attempts_file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.jsonl"


def note_attempt(folder: Path, key: str, **what: Any) -> None:
    """Add a line to the history of a cell: ``start``, ``step`` or ``end``."""
    path = _attempts_file(folder, key)
    path.parent.mkdir(exist_ok=True)
    line = json.dumps(what, sort_keys=True) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def attempts(folder: Path, key: str) -> list[Attempt]:
    """The attempts at a cell in one submission, in order."""
    out: dict[str, Attempt] = {}
    try:
        lines = _attempts_file(folder, key).read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            data = json.loads(line)
            number = data.pop("attempt")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut off by a crash
        known = out.get(number)
        with contextlib.suppress(TypeError):
            out[number] = Attempt(**data) if known is None else replace(known, **data)
    return list(out.values())


def fruitless(history: Iterable[Attempt]) -> int:
    """How many of the last attempts were cut off without getting further than the one before."""
    furthest, count = -1, 0
    for attempt in history:
        if attempt.end in ("held", "recorded", "refused", "unsaved", "not begun"):
            continue
        step = -1 if attempt.step is None else attempt.step
        count = 1 if step > furthest else count + 1
        furthest = max(furthest, step)
    return count


# what jobs say of themselves


@dataclass(frozen=True)
class Running:
    """A cell that a job is running: since when, how far, of how much."""

    since: float
    step: int = 0
    horizon: int | None = None
    fraction: float = 0.0
    phase: str = "starting"
    latest: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeStatus:
    """The last word of one job about itself."""

    job: str
    restart: int
    host: str
    node: str
    pid: int
    started: float
    ends: float
    beat: float
    cores: int = 0
    gpus: str | None = None
    done: int = 0
    ended: str = ""
    running: dict[str, Running] = field(default_factory=dict)


def write_status(folder: Path, status: NodeStatus) -> None:
    """Keep what a job says of itself."""
    path = folder / STATUSES / f"{status.job}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(status))


def statuses(folder: Path) -> dict[str, NodeStatus]:
    """The last word of every job of a submission that has said any, by id."""
    out = {}
    for path in (folder / STATUSES).glob("*.json"):
        with contextlib.suppress(*_DAMAGED):
            data = json.loads(path.read_text())
            running = {k: Running(**r) for k, r in data.pop("running").items()}
            out[path.stem] = NodeStatus(running=running, **data)
    return out


def new_folder(store: Store, suite: str) -> Path:
    """A path for a submission, which is not there yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return root(store) / f"{stamp}-{suite}-{os.urandom(3).hex()}"
