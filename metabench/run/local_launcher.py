"""Many cells on one machine: in this process, or in a bounded number of worker processes."""

from __future__ import annotations

import contextlib
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.connection import wait

from metabench.contract.seeds import STREAMS, seed_for
from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.core.hardware import cores, gpus
from metabench.run.events import (
    Elsewhere,
    Event,
    Finished,
    Listener,
    Refused,
    Retried,
    SetAside,
    Started,
    Stopping,
    ignore,
)
from metabench.run.worker import Ended, Options, Worker, run_one
from metabench.store.record import STATUSES, Record, Status
from metabench.store.store import BadFile, Store

POLL_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 2.0
"""How often a cell that runs elsewhere is looked at, once there is nothing else to do."""
GRACE_SECONDS = 60.0
"""How far over its time limit a worker may be before it is killed."""
END_SECONDS = 10.0
TRIES = 2
"""Worker processes that may die over a cell before it counts as failed."""


@dataclass
class Summary:
    """What came of a launch."""

    records: dict[str, Record] = field(default_factory=dict)
    """Key to record: run now, or found finished (``reused``)."""
    reused: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    """Key to the reason why the cell cannot be run as it is."""
    elsewhere: set[str] = field(default_factory=set)
    unsaved: dict[str, str] = field(default_factory=dict)
    """Key to the reason why the store could not keep what came of the cell."""
    set_aside: list[BadFile] = field(default_factory=list)
    remaining: list[Cell] = field(default_factory=list)
    """Cells without a record: the launch was interrupted, or their worker was told to end."""
    interrupted: bool = False

    def count(self, status: str) -> int:
        """How many records have a status."""
        return sum(record.status == status for record in self.records.values())

    @property
    def exit_code(self) -> int:
        """0: every cell is done or refused; 130: interrupted; 1: something went wrong."""
        if self.interrupted:
            return 130
        whole = len(self.records) == self.count("done")
        return 0 if whole and not (self.unsaved or self.elsewhere or self.remaining) else 1

    def __str__(self) -> str:
        counts: dict[str, int] = {status: self.count(status) for status in STATUSES}
        counts |= {
            "not applicable": len(self.refused),
            "running elsewhere": len(self.elsewhere),
            "not saved": len(self.unsaved),
            "left": len(self.remaining),
        }
        text = ", ".join(f"{n} {what}" for what, n in counts.items() if n or what == "done")
        if self.interrupted:
            text += "; interrupted: run the same command again to go on"
        return text

    def take(self, event: Event) -> None:
        """Keep what an event says."""
        if isinstance(event, Finished):
            key = event.record.key
            self.records[key] = event.record
            if event.reused:
                self.reused.add(key)
            if event.unsaved:
                self.unsaved[key] = event.unsaved
        elif isinstance(event, SetAside):
            self.set_aside.append(event.bad)
        elif isinstance(event, Refused):
            self.refused[event.cell.key] = event.reason


def default_jobs() -> int:
    """Cells at a time where nobody says: one a GPU, or where there is none one a usable core.

    Cells side by side use cores better than the episodes of one cell do.
    """
    return len(gpus()) or cores()


def launch(
    cells: Iterable[Cell],
    store: Store,
    *,
    jobs: int = 1,
    listener: Listener | None = None,
    time_limit: float | None = None,
    checkpoint_seconds: float = 60.0,
    device: str | None = None,
    wait_elsewhere: bool = True,
    ranks: int = 1,
) -> Summary:
    """Run every cell that has no finished record, at most ``jobs`` at a time.

    With one job in this process, else in spawned workers that share the cores and take turns on
    the GPUs. A cell whose worker dies is tried once more, then failed. A cell that another
    launcher runs is left to it and looked at again at the end, until it has a record or is free
    (``wait_elsewhere``). The first SIGINT or SIGTERM lets every running cell write a checkpoint at
    its next step and ends the launch; the second ends it at once. ``time_limit``: seconds a cell.
    ``ranks``: processes that share the episodes of one cell, each with a GPU of its own where there
    are enough; they change no result.

    Raises StoreError where the store cannot be read or mended.
    """
    options = Options(
        str(store.root),
        max(1, jobs),
        device,
        checkpoint_seconds=checkpoint_seconds,
        time_limit=time_limit,
        ranks=ranks,
    )
    return _Launch(store, jobs, listener or ignore, wait_elsewhere, options).run(cells)


class _Launch:
    def __init__(
        self, store: Store, jobs: int, listener: Listener, wait_elsewhere: bool, options: Options
    ) -> None:
        self.store, self.jobs, self.listener, self.options = store, jobs, listener, options
        self.wait_elsewhere = wait_elsewhere
        self.summary = Summary()
        self.open: deque[Cell] = deque()
        self.elsewhere: dict[str, Cell] = {}
        self.before: dict[str, tuple[int, str] | None] = {}
        """Attempts and end of each record that was there when the launch began."""
        self.deaths: dict[str, int] = {}
        self.signals = 0
        self._told_of_stopping = False
        self._looked = 0.0

    def run(self, cells: Iterable[Cell]) -> Summary:
        for bad in self.store.mend():
            self.tell(SetAside(bad))
        unique = {cell.key: cell for cell in cells}
        self.open.extend(cell for cell in unique.values() if not self.recorded(cell))
        with self.counting_signals(), contextlib.suppress(KeyboardInterrupt):
            if self.jobs <= 1 and self.options.ranks == 1:
                self.alone()
            else:
                self.together()
        summary = self.summary
        known = summary.records.keys() | summary.refused.keys()
        summary.elsewhere = set(self.elsewhere)
        summary.interrupted = self.signals > 0
        summary.remaining = [
            cell for key, cell in unique.items() if key not in known and key not in self.elsewhere
        ]
        return summary

    def tell(self, event: Event) -> None:
        self.summary.take(event)
        self.listener(event)

    def stopping(self) -> bool:
        # Not told by the signal handler: it may come in the middle of the listener's printing.
        if self.signals and not self._told_of_stopping:
            self._told_of_stopping = True
            self.tell(Stopping())
        return self.signals > 0

    def recorded(self, cell: Cell) -> bool:
        """Whether the cell need not be run: it is done, or another launcher has meanwhile got
        whatever record it has."""
        record = self.store.get(cell.key)
        now = (record.attempts, record.ended) if record is not None else None
        news = self.before.setdefault(cell.key, now) != now
        if record is None or not (news or record.status == "done"):
            return False
        self.tell(Finished(record, reused=True))
        return True

    def next(self) -> Cell | None:
        """The next cell to run; None where there is none just now."""
        if not self.open and self.elsewhere:
            self.look_elsewhere()
        while self.open and not self.stopping():
            cell = self.open.popleft()
            if not self.recorded(cell):
                return cell
        return None

    def look_elsewhere(self) -> None:
        """Look again at the cells that others were running: recorded, free, or still running."""
        if time.monotonic() - self._looked < LOOK_AGAIN_SECONDS:
            return
        self._looked = time.monotonic()
        for key, cell in list(self.elsewhere.items()):
            if self.store.holder(key) is None:
                del self.elsewhere[key]
                self.open.append(cell)

    def waiting(self) -> bool:
        """Whether there is nothing to do but to wait for others; sleeps a little if so."""
        if not (self.elsewhere and self.wait_elsewhere) or self.stopping():
            return False
        time.sleep(POLL_SECONDS)
        return True

    def alone(self) -> None:
        """One after another in this process."""
        while not self.stopping():
            cell = self.next()
            if cell is not None:
                self.ended(run_one(cell, self.options, self.tell, self.stopping))
            elif not self.open and not self.waiting():
                return

    def together(self) -> None:
        """In worker processes, started as they are needed."""
        # A device that is named by number is one of this process's, not of a pinned worker's.
        devices = [] if ":" in (self.options.device or "") else gpus()
        workers: list[Worker] = []
        started = 0
        try:
            while not self.stopping():
                while sum(w.cell is not None for w in workers) < self.jobs:
                    cell = self.next()
                    if cell is None:
                        break
                    worker = next((w for w in workers if w.cell is None), None)
                    if worker is None:
                        worker = Worker(self.pinned(devices, started))
                        workers.append(worker)
                        started += 1
                    worker.send(cell)
                if any(w.cell is not None for w in workers):
                    self.listen(workers)
                elif not self.open and not self.waiting():
                    return
            for worker in workers:
                worker.send(None)
            while any(w.cell is not None for w in workers):
                self.listen(workers)
        finally:
            self.end(workers)

    def pinned(self, devices: list[str], started: int) -> Options:
        """The options of the next worker: its ranks take turns on the GPUs with all others."""
        if not devices:
            return self.options
        n = self.options.ranks
        mine, *others = (devices[(started * n + i) % len(devices)] for i in range(n))
        return replace(self.options, gpu=mine, rank_gpus=tuple(others))

    def listen(self, workers: list[Worker]) -> None:
        """Take what workers say; drop those that have died."""
        wait([w.connection for w in workers], POLL_SECONDS)
        for worker in list(workers):
            try:
                for message in worker.messages():
                    if isinstance(message, Started):
                        worker.since = time.monotonic()
                    if isinstance(message, Ended):
                        worker.cell = worker.since = None
                        self.ended(message)
                    else:
                        self.tell(message)
                self.enforce_limit(worker)
            except EOFError:
                workers.remove(worker)
                how = worker.death()
                if worker.cell is not None:
                    self.died(worker.cell, how)

    def enforce_limit(self, worker: Worker) -> None:
        """Kill a worker that is far over the time limit without coming to a step boundary."""
        limit = self.options.time_limit
        if limit is None or worker.cell is None or worker.since is None:
            return
        if time.monotonic() - worker.since > 1.1 * limit + GRACE_SECONDS:
            cell, worker.cell = worker.cell, None
            worker.process.kill()
            worker.process.join()
            self.fail(
                cell,
                "timeout",
                f"not finished within {limit:g} seconds, and an outer step did not end",
            )

    def ended(self, ended: Ended) -> None:
        """A cell has come to an end of some kind; records have been told of before."""
        cell = ended.cell
        if ended.how == "held":
            if cell.key not in self.elsewhere:
                self.tell(Elsewhere(cell, ended.what))
            self.elsewhere[cell.key] = cell
        elif ended.how == "cut off":
            self.died(cell, ended.what)
        elif ended.how == "refused":
            self.tell(Refused(cell, ended.what))
        elif ended.how == "unsaved":
            record = failed_record(cell, "failed", ended.what, 1)
            self.tell(Finished(record, unsaved=ended.what))

    def died(self, cell: Cell, how: str) -> None:
        """The worker of a cell is dead: once more, or failed."""
        if cell.key in self.summary.records or self.recorded(cell):
            return
        self.deaths[cell.key] = self.deaths.get(cell.key, 0) + 1
        if self.stopping():
            return
        if self.deaths[cell.key] < TRIES:
            self.open.appendleft(cell)
            self.tell(Retried(cell, how))
        else:
            self.fail(cell, "failed", f"{how}, {TRIES} times")

    def fail(self, cell: Cell, status: Status, reason: str) -> None:
        """Write a record for a cell whose worker could not; its checkpoint stays."""
        record, unsaved = failed_record(cell, status, reason, 1), ""
        try:
            claim = self.store.claim(cell.key)
            if claim is None:
                self.elsewhere[cell.key] = cell
                return
            with claim:
                known = self.store.get(cell.key)
                if known is not None and known.status == "done":
                    record = known
                else:
                    record = replace(record, attempts=known.attempts + 1 if known else 1)
                    record = self.store.write(record, claim=claim)
        except StoreError as error:
            unsaved = str(error)
        self.tell(Finished(record, unsaved=unsaved))

    def end(self, workers: list[Worker]) -> None:
        """No worker outlives the launch."""
        for worker in workers:
            if worker.cell is None:
                worker.send(None)
        for worker in workers:
            worker.process.join(END_SECONDS if worker.cell is None else 0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()

    @contextlib.contextmanager
    def counting_signals(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM is counted and the second raises
        KeyboardInterrupt."""

        def count(*_: object) -> None:
            self.signals += 1
            if self.signals == 2:  # later ones do not disturb the clearing up
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield  # signals are handled in the main thread, by whoever it belongs to
            return
        before = {s: signal.signal(s, count) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def failed_record(cell: Cell, status: Status, reason: str, attempts: int) -> Record:
    """A record of a cell whose process cannot write one; needs no torch."""
    return Record(
        key=cell.key,
        cell=cell,
        status=status,
        reason=reason,
        attempts=attempts,
        seeds={stream: seed_for(cell.seed, stream) for stream in STREAMS},
        environment={"machine": {"host": platform.node()}},
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )
