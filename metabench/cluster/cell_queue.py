"""Which cell of a group a node worker takes next, and which are done with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from metabench.cluster import submission as folders
from metabench.cluster.submission import Group, Member
from metabench.core.cell import place_names
from metabench.core.errors import StoreError
from metabench.run.attempts.failure import write_failure
from metabench.run.events import CellWords
from metabench.store import lease
from metabench.store.cell_folder import LEASE
from metabench.store.record import Record, Status
from metabench.store.store import Store

LOOK_AGAIN_SECONDS = 2.0


class CellQueue:
    """The cells of a group, as one of its interchangeable node workers sees them.

    ``left``: the seconds that this job still has to work in.
    """

    def __init__(self, folder: Path, group: Group, left: Callable[[], float]) -> None:
        self.folder, self.group, self.left = folder, group, left
        self.store = Store(group.store)
        names = place_names((m.row, m.column, m.cell) for m in group.members)
        self.words = CellWords(names, group.store)
        members, workers = group.members, max(1, group.workers)
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) % workers
        # Each begins with a stretch of its own, and helps the others at the end.
        first = index * len(members) // workers
        self.members = [*members[first:], *members[:first]]
        self.first = 0
        self.finished: set[str] = set()
        self.running: set[str] = set()
        """What this job itself is running."""
        self.later: dict[str, float] = {}
        """When a cell that somebody else holds is looked at again."""
        self.deaths: dict[str, int] = {}
        self.pulses: dict[str, lease.Pulse | None] = {}
        """Leases of others when they were first looked at closely."""
        self.unsaved: dict[str, str] = {}

    def next(self, *, ignore_time: bool = False) -> Member | None:
        """The next cell that is open, free, and short enough for the time left."""
        count = len(self.members)
        for at in range(count):
            place = (self.first + at) % count
            member = self.members[place]
            if self.open(member) and (ignore_time or self.fits(member)):
                self.first = place
                return member
        return None

    def open(self, member: Member) -> bool:
        """Whether a cell is to be run and nobody runs it; gives up one that is cut off always."""
        key, now = member.cell.key, time.monotonic()
        if key in self.finished or key in self.running or self.later.get(key, 0.0) > now:
            return False
        record = self.store.get(key)
        if record is not None and self.final(member, record):
            self.finished.add(key)
            return False
        if self.store.holder(key) is not None:
            self.later[key] = now + LOOK_AGAIN_SECONDS
            return False
        history = folders.attempts(self.folder, key)
        if folders.fruitless(history) >= folders.TRIES:
            self.give_up(member, history)
            return False
        return True

    def doubtful(self) -> bool:
        """Whether a cell that somebody else holds may yet come free by itself: its lease has not
        been seen to beat, as that of a job that died with its node would not be."""
        out = False
        for member in self.members:
            key = member.cell.key
            if key in self.finished:
                continue
            now = lease.pulse(self.store.folder(key) / LEASE)
            before = self.pulses.setdefault(key, now)
            if now is None:
                # Free, unless it is too long for what is left of this job, or done by now.
                out = out or self.later.pop(key, None) is not None
            elif not now.sure and now == before:
                out = True
        return out

    def fits(self, member: Member) -> bool:
        """Whether to begin a cell: it will end in time, or needs more than one job anyway and half
        of this one is left."""
        need = 1.2 * (member.estimated_seconds or 0.0)
        whole = 60 * self.group.minutes - self.group.signal_seconds
        return self.left() >= min(need, whole / 2)

    def final(self, member: Member, record: Record) -> bool:
        """Whether a record is the one that this submission is to make."""
        return record.status == "done" or member.before != (record.attempts, record.ended)

    def died(self, key: str) -> None:
        """Count a worker that died over a cell: the history may be on a full disk."""
        self.deaths[key] = self.deaths.get(key, 0) + 1
        if self.deaths[key] > folders.TRIES:
            self.finished.add(key)

    def give_up(self, member: Member, history: list[folders.Attempt]) -> None:
        """A record for a cell that is cut off again and again."""
        cell = member.cell
        last = [a for a in history if a.end in ("", "stopped")][-folders.TRIES :]
        how = next((a.what for a in reversed(last) if a.what), "nothing was heard of it")
        hosts = ", ".join(dict.fromkeys(a.host for a in last))
        status: Status = "timeout" if all(a.end == "stopped" for a in last) else "failed"
        reason = f"cut off {len(last)} times without getting further, on {hosts}: {how}"
        self.finished.add(cell.key)
        try:
            record = write_failure(
                self.store, cell, status, reason, lambda known: self.final(member, known)
            )
        except StoreError as error:
            self.unsaved[cell.key] = str(error)
            record = None
        if cell.key in self.unsaved or (record is not None and record.reason == reason):
            say(f"{self.words.of(cell)}: {reason}")


def say(text: str) -> None:
    """A line in the job's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
