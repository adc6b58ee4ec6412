"""Many cells on one machine: in this process, or in a bounded number of worker processes."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from metabench.core.cell import Cell
from metabench.core.environment.hardware import asked_threads, gpus
from metabench.core.errors import StoreError
from metabench.run.attempts.failure import failed_record, write_failure
from metabench.run.events import (
    Elsewhere,
    Event,
    Finished,
    Listener,
    Quarantined,
    Refused,
    Retried,
    Stopping,
    ignore,
)
from metabench.run.workers.pool import POLL_SECONDS, Died, NotStarted, Pool, Worker
from metabench.run.workers.process import FROM_TERMINAL
from metabench.run.workers.worker import Ended, WorkerOptions, run_one
from metabench.store import files
from metabench.store.files import BadFile
from metabench.store.record import STATUSES, Record, Status
from metabench.store.store import Store

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
    quarantined: list[BadFile] = field(default_factory=list)
    remaining: list[Cell] = field(default_factory=list)
    """Cells without a record: the launch was interrupted, or their worker was asked to end."""
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
        elif isinstance(event, Quarantined):
            self.quarantined.append(event.bad)
        elif isinstance(event, Refused):
            self.refused[event.cell.key] = event.reason


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
    (``wait_elsewhere``). The first SIGINT, SIGTERM or SIGHUP (which nohup has ignored) lets every
    running cell write a checkpoint at its next step and ends the launch; the second ends it at
    once. ``time_limit``: seconds a cell.
    ``ranks``: processes that share the episodes of one cell, each with a GPU of its own where there
    are enough; they change no result.

    Raises StoreError where the store cannot be read or repaired; NotStarted and SettingError where
    nothing can be run as this process is set up, which makes no record.
    """
    asked_threads()
    options = WorkerOptions(
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
        self,
        store: Store,
        jobs: int,
        listener: Listener,
        wait_elsewhere: bool,
        options: WorkerOptions,
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
        self._stop_reported = False
        self._looked = 0.0

    def run(self, cells: Iterable[Cell]) -> Summary:
        for bad in self.store.repair():
            self.report(Quarantined(bad))
        unique = {cell.key: cell for cell in cells}
        self.open.extend(cell for cell in unique.values() if not self.recorded(cell))
        if self.open:
            files.ensure_writable(self.store.root)
        with self.counting_signals(), contextlib.suppress(KeyboardInterrupt):
            if self.jobs <= 1 and self.options.ranks == 1:
                self.in_this_process()
            else:
                self.in_workers()
        summary = self.summary
        known = summary.records.keys() | summary.refused.keys()
        summary.elsewhere = set(self.elsewhere)
        summary.interrupted = self.signals > 0
        summary.remaining = [
            cell for key, cell in unique.items() if key not in known and key not in self.elsewhere
        ]
        return summary

    def report(self, event: Event) -> None:
        self.summary.take(event)
        try:
            self.listener(event)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.listener = ignore  # the terminal is gone; the cells are not to suffer for it

    def stopping(self) -> bool:
        # Not reported by the signal handler: it may come in the middle of the listener's printing.
        if self.signals and not self._stop_reported:
            self._stop_reported = True
            self.report(Stopping())
        return self.signals > 0

    def recorded(self, cell: Cell) -> bool:
        """Whether the cell need not be run: it is done, or another launcher has meanwhile got
        whatever record it has."""
        record = self.store.get(cell.key)
        now = (record.attempts, record.ended) if record is not None else None
        news = self.before.setdefault(cell.key, now) != now
        if record is None or not (news or record.status == "done"):
            return False
        self.report(Finished(record, reused=True))
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

    def in_this_process(self) -> None:
        """One after another in this process."""
        while not self.stopping():
            cell = self.next()
            if cell is not None:
                self.ended(run_one(cell, self.options, self.report, self.stopping))
            elif not self.open and not self.waiting():
                return

    def in_workers(self) -> None:
        """In worker processes, started as they are needed."""
        pool = Pool(self.jobs, self.worker_options)
        try:
            while not self.stopping():
                while not pool.full and (cell := self.next()) is not None:
                    pool.idle_worker().send(cell)
                if pool.at_work():
                    self.listen(pool)
                elif not self.open and not self.waiting():
                    return
            self.wind_down(pool)
        except NotStarted:
            with contextlib.suppress(NotStarted):  # once is enough
                self.wind_down(pool)
            raise
        finally:
            pool.end(END_SECONDS)

    def wind_down(self, pool: Pool) -> None:
        """Let what runs come to its next step boundaries."""
        pool.stop()
        while pool.at_work():
            self.listen(pool)

    def worker_options(self, started: int) -> WorkerOptions:
        """The options of the next worker: its ranks take turns on the GPUs with all others."""
        # A device that is named by number is one of this process's, not of a pinned worker's.
        devices = [] if ":" in (self.options.device or "") else gpus()
        if not devices:
            return self.options
        n = self.options.ranks
        mine, *others = (devices[(started * n + i) % len(devices)] for i in range(n))
        return replace(self.options, gpu=mine, rank_gpus=tuple(others))

    def listen(self, pool: Pool) -> None:
        """Take what workers say, and end those that are far over their time."""
        for message in pool.listen():
            if isinstance(message, Ended):
                self.ended(message)
            elif isinstance(message, Died):
                self.died(message.cell, message.how, began=message.began)
            else:
                self.report(message)
        for worker in pool.at_work():
            self.enforce_limit(worker)

    def enforce_limit(self, worker: Worker) -> None:
        """Kill a worker that is far over the time limit without coming to a step boundary."""
        limit = self.options.time_limit
        if limit is None or worker.cell is None or worker.since is None:
            return
        if time.monotonic() - worker.since > 1.1 * limit + GRACE_SECONDS:
            cell, worker.cell = worker.cell, None
            worker.kill()
            self.fail(
                cell,
                "timeout",
                f"not finished within {limit:g} seconds, and an outer step did not end",
            )

    def ended(self, ended: Ended) -> None:
        """A cell has come to an end of some kind; records have been reported before."""
        cell = ended.cell
        if ended.how == "held":
            if cell.key not in self.elsewhere:
                self.report(Elsewhere(cell, ended.what))
            self.elsewhere[cell.key] = cell
        elif ended.how == "cut off":
            self.died(cell, ended.what)
        elif ended.how == "refused":
            self.report(Refused(cell, ended.what))
        elif ended.how == "unsaved":
            record = failed_record(cell, "failed", ended.what)
            self.report(Finished(record, unsaved=ended.what))

    def died(self, cell: Cell, how: str, *, began: bool = True) -> None:
        """The worker of a cell is dead: once more, or failed where that had ``began`` the cell."""
        if cell.key in self.summary.records or self.recorded(cell):
            return
        self.deaths[cell.key] = self.deaths.get(cell.key, 0) + began
        if self.stopping():
            return
        if self.deaths[cell.key] < TRIES:
            self.open.appendleft(cell)
            self.report(Retried(cell, how))
        else:
            self.fail(cell, "failed", f"{how}, {TRIES} times")

    def fail(self, cell: Cell, status: Status, reason: str) -> None:
        """A record for a cell whose worker could not write one."""
        try:
            record = write_failure(self.store, cell, status, reason, lambda r: r.status == "done")
        except StoreError as error:
            unsaved = failed_record(cell, status, reason)
            self.report(Finished(unsaved, unsaved=str(error)))
            return
        if record is None:
            self.elsewhere[cell.key] = cell
        else:
            self.report(Finished(record))

    @contextlib.contextmanager
    def counting_signals(self) -> Iterator[None]:
        """Inside, the first SIGINT, SIGTERM or SIGHUP is counted and the second raises
        KeyboardInterrupt; a SIGHUP that is ignored stays so."""

        def count(number: int, _: object) -> None:
            if self.signals and number not in (signal.SIGINT, signal.SIGTERM):
                return  # for a lost terminal the system and the shell send one each
            self.signals += 1
            if self.signals == 2:  # later ones do not disturb the clearing up
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield  # signals are handled in the main thread, by whoever it belongs to
            return
        before = {
            s: signal.signal(s, count)
            for s in {*FROM_TERMINAL, signal.SIGINT, signal.SIGTERM}
            if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
