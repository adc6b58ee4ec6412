"""Worker processes as those see them who give them cells: a launcher, or the job on a node."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from metabench.core.cell import Cell
from metabench.core.errors import MetabenchError
from metabench.run.events import Event, Started
from metabench.run.workers import worker as process
from metabench.run.workers.process import death, interrupts_ignored
from metabench.run.workers.worker import Ended, NotReady, Ready, WorkerOptions

POLL_SECONDS = 0.5
STARTS = 3
"""Workers killed one after another before they have started, after which none is started."""


class NotStarted(MetabenchError):
    """Why worker processes cannot start: an error of the launch, whatever cell they were for."""

    def __init__(self, why: str, cell: Cell | None = None) -> None:
        super().__init__(f"worker processes cannot start: {why}")
        self.cell = cell


@dataclass(frozen=True)
class Died:
    """A worker process is gone, with the cell that it had."""

    cell: Cell
    how: str
    exit_code: int | None
    began: bool = True
    """Whether it could have been the cell's fault: the process had started."""


class Worker:
    """A worker process, the pipe to it, and the cell it has."""

    def __init__(self, options: WorkerOptions) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Not a daemon: a task may want processes of its own, to load data.
        self.process = context.Process(target=process.main, args=(theirs, options))
        with interrupts_ignored():  # from its first moment: the launcher decides
            self.process.start()
        theirs.close()
        self.ready = False
        self.cell: Cell | None = None
        self.since: float | None = None
        """When the cell started; None while its process or its problem is still being made."""

    def send(self, cell: Cell | None) -> None:
        """A cell to run, or None: stop at the next step boundary and end."""
        if cell is not None:
            self.cell, self.since = cell, None
        with contextlib.suppress(OSError):  # a dead worker is noticed when it is listened to
            self.connection.send(cell)

    def messages(self) -> Iterator[Event | Ended | Ready | NotReady]:
        """What it has said since; raises EOFError once it is dead and all has been read."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except OSError:
            raise EOFError from None
        if not self.process.is_alive() and not self.connection.poll():
            raise EOFError

    def kill(self) -> None:
        """SIGKILL, and wait for the end; the cell stays its own."""
        self.process.kill()
        self.process.join()


class Pool:
    """At most ``size`` workers at work, started as they are needed; none outlives :meth:`end`.

    ``options``: from how many were started before to the options of the next. Raises NotStarted
    where none could.
    """

    def __init__(self, size: int, options: Callable[[int], WorkerOptions]) -> None:
        self.size, self.options = size, options
        self.workers: list[Worker] = []
        self.started = 0
        self.killed = 0
        """Workers that were killed before they had started, since the last one that did."""
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script is not None and not Path(script).exists():
            raise NotStarted(
                f"they import the calling script again, and {script} is no file: save it in one, "
                "or run one cell at a time (jobs=1)"
            )

    def at_work(self) -> list[Worker]:
        """The workers that have a cell."""
        return [worker for worker in self.workers if worker.cell is not None]

    @property
    def full(self) -> bool:
        """Whether nobody can take a cell."""
        return len(self.at_work()) >= self.size

    def idle_worker(self) -> Worker:
        """A worker without a cell, a new one where there is none."""
        worker = next((w for w in self.workers if w.cell is None), None)
        if worker is None:
            worker = Worker(self.options(self.started))
            self.workers.append(worker)
            self.started += 1
        return worker

    def listen(self) -> Iterator[Event | Ended | Died]:
        """What the workers have to say, after half a second without a word nothing; those that
        have died are dropped. Raises NotStarted."""
        wait([w.connection for w in self.workers], POLL_SECONDS)
        for worker in list(self.workers):
            try:
                for message in worker.messages():
                    if isinstance(message, Ready):
                        worker.ready, self.killed = True, 0
                        continue
                    if isinstance(message, NotReady):
                        self.workers.remove(worker)
                        worker.process.join()
                        raise NotStarted(message.why, worker.cell)
                    if isinstance(message, Started):
                        worker.since = time.monotonic()
                    if isinstance(message, Ended):
                        worker.cell = worker.since = None
                    yield message
            except EOFError:
                self.workers.remove(worker)
                if worker.cell is not None:
                    yield self._died(worker, worker.cell)

    def _died(self, worker: Worker, cell: Cell) -> Died:
        """What to tell of a dead worker; raises NotStarted where others would fare the same."""
        how, code = death(worker.process), worker.process.exitcode or 0
        if not worker.ready:
            self.killed += 1
            if code >= 0:
                how += '; a script that runs several jobs needs if __name__ == "__main__":'
            if code >= 0 or self.killed >= STARTS:
                raise NotStarted(how, cell)
        return Died(cell, how, code, worker.ready)

    def stop(self) -> None:
        """Ask all to stop at their next step boundaries, and to end."""
        for worker in self.workers:
            worker.send(None)

    def end(self, seconds: float) -> list[Cell]:
        """End all: the idle ones have ``seconds`` for it, the others are killed. The cells that
        were cut off so."""
        cut_off = []
        for worker in self.workers:
            if worker.cell is None:
                worker.send(None)
        for worker in self.workers:
            worker.process.join(seconds if worker.cell is None else 0)
            if worker.process.is_alive():
                worker.kill()
                if worker.cell is not None:
                    cut_off.append(worker.cell)
            worker.connection.close()
        return cut_off
