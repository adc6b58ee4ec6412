"""What runs on a node: take the next open cell, run it, record it, and so on while time lasts.

Node workers are interchangeable: any number of them may work on a group of cells, any of them may
be lost. On a signal every running cell keeps a checkpoint at its next step and is released, and the
job requeues itself where there is something left to do.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metabench.cluster import submission as folders
from metabench.cluster.cell_queue import LOOK_AGAIN_SECONDS, CellQueue, say
from metabench.cluster.submission import Member, NodeStatus, Running
from metabench.cluster.submitting import snapshot
from metabench.core.environment.hardware import cores, gpus
from metabench.core.errors import MetabenchError, StoreError
from metabench.core.text import counted
from metabench.run.events import Event, Finished, Interrupted, Progress, Retried, Started, describe
from metabench.run.workers import rank_processes
from metabench.run.workers.pool import Died, NotStarted, Pool
from metabench.run.workers.process import held_back, limit_memory
from metabench.run.workers.worker import Ended, WorkerOptions
from metabench.store import identity

NOTE_SECONDS = 2.0
"""Between two notes about itself while something happens."""
BEAT_SECONDS = 20.0
"""Between two notes about itself while nothing does."""
TERM_SECONDS = 20.0
"""What SIGTERM leaves before SIGKILL, on most sites thirty."""
SPARE_SECONDS = 15.0
"""Kept back from the warning time, for requeueing."""
END_SECONDS = 10.0
"""For an idle worker to end, without a warning."""
FOUND = "found in the store"
TOO_SLOW = "killed: it came to no step boundary in the time of warning"
NOT_BEGUN = "not begun"
"""How an attempt ended that was stopped before the cell was taken up."""
REFUSED = 3
"""Exit code of a node worker that must not be tried again."""
RANK_LOST = 5
"""Exit code of a node worker that has lost a rank: its job is started again."""


def work(run: str, number: int) -> None:
    """Work on a group of a submission until nothing is open or time is up."""
    try:
        made = _Work(Path(run), number)
        try:
            made.run()
        finally:
            if made.group.ranks > 1:
                rank_processes.over(meeting_place(made.folder))
    except MetabenchError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(REFUSED) from None


def attend(run: str, number: int, rank: int) -> None:
    """Be another rank of the cells that the first task of this job leases, until it is done."""
    # The first task acts on warnings, at a step boundary that all ranks come to.
    for warning in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(warning, signal.SIG_IGN)
    try:
        group = folders.read_group(Path(run) / f"group-{number}.json")
        snapshot.check(group.code)
        devices = gpus()
        if devices:
            local = int(os.environ.get("SLURM_LOCALID") or 0)
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[local % len(devices)]
        limit_memory(group.memory_fraction)
        say(f"job {job_id()} on {platform.node()}: rank {rank}, {counted(cores(), 'core')}")
        rank_processes.attend(meeting_place(Path(run)), rank)
    except MetabenchError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(REFUSED) from None


def meeting_place(run: Path) -> Path:
    """The file in which the first task of this job tells the others where to come."""
    return run / "ranks" / f"{job_id()}-{os.environ.get('SLURM_RESTART_COUNT') or 0}.json"


def job_id() -> str:
    """Of the Slurm job that this process is part of."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "none")


class _Work:
    def __init__(self, run: Path, number: int) -> None:
        self.folder = run
        self.group = folders.read_group(run / f"group-{number}.json")
        self.check_store()
        snapshot.check(self.group.code)
        self.started = float(os.environ.get("SLURM_JOB_START_TIME") or time.time())
        self.ends = self.started + 60 * self.group.minutes
        self.job = job_id()
        self.signal = ""
        self.queue = CellQueue(run, self.group, self.left)
        self.attempt: dict[str, str] = {}
        """The attempt at each cell that is being run."""
        self.running: dict[str, Running] = {}
        self.done = 0
        self.rank_lost = ""
        self._noted = 0.0
        self._news = True

    def run(self) -> None:
        """All that a node worker does."""
        signal.signal(signal.SIGUSR2, self.warned)
        signal.signal(signal.SIGTERM, self.warned)
        from metabench.core.registry import load_plugins

        load_plugins()
        say(
            f"job {self.job} on {platform.node()}: {counted(cores(), 'core')}, "
            f"GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'unknown')}, restart "
            f"{os.environ.get('SLURM_RESTART_COUNT', '0')}, "
            f"{counted(len(self.queue.members), 'cell')}"
        )
        self.note(force=True)
        self.loop()
        if self.rank_lost:
            self.note(ended=self.rank_lost, force=True)
            raise SystemExit(RANK_LOST)
        # Those that it stopped itself are free by now.
        self.queue.later.clear()
        left = self.queue.next(ignore_time=True) is not None
        ended = "nothing left to do"
        if self.signal == "SIGTERM":
            ended = "terminated"
        elif left and self.group.requeue:
            ended = self.requeue()
        elif left:
            ended = "out of time"
        self.note(ended=ended, force=True)
        say(f"job {self.job}: {counted(self.done, 'cell')} recorded; {ended}")

    def warned(self, number: int, _: object) -> None:
        """Only a flag: it is acted on between steps. Slurm's own end goes before a warning."""
        if self.signal != "SIGTERM":
            self.signal = signal.Signals(number).name

    def stopping(self) -> bool:
        """Whether to stop: asked to, or nearly out of time although no signal came."""
        return bool(self.signal) or self.left() <= 0

    def left(self) -> float:
        """Seconds to work."""
        return self.ends - self.group.signal_seconds - time.time()

    def loop(self) -> None:
        """Run cells side by side until nothing is open or the time is up."""
        pool = Pool(self.group.at_once, self.worker_options())
        try:
            while not (self.stopping() or self.rank_lost):
                self.check_store()
                while not pool.full and (member := self.queue.next()) is not None:
                    self.begin(member, pool)
                if pool.at_work():
                    self.listen(pool)
                elif self.queue.doubtful():
                    time.sleep(LOOK_AGAIN_SECONDS)
                else:
                    return
                self.note()
            say(f"stopping: {self.rank_lost or self.signal or 'out of time'}")
            pool.stop()
            deadline = time.monotonic() + self.grace()
            while pool.at_work() and time.monotonic() < deadline:
                self.listen(pool)
        except NotStarted as error:
            if error.cell is not None:
                self.over(error.cell.key)
                self.note_attempt(error.cell.key, end=NOT_BEGUN, what=str(error))
            raise
        finally:
            # With a warning every second counts, and an idle worker has nothing to lose.
            for cell in pool.end(0.0 if self.signal else END_SECONDS):
                self.died(Died(cell, TOO_SLOW, None))

    def check_store(self) -> None:
        """Raise StoreError where the store is not at its path any more: nothing may grow there."""
        identity.check(Path(self.group.store), self.group.store_id)

    def grace(self) -> float:
        """Seconds that running cells have to come to a step boundary."""
        if self.signal == "SIGTERM":
            return TERM_SECONDS
        return min(max(5.0, self.group.signal_seconds - SPARE_SECONDS), self.ends - time.time())

    def worker_options(self) -> Callable[[int], WorkerOptions]:
        """From how many were started before to the options of the next: they take turns on the
        GPUs."""
        devices = gpus()
        several = self.group.ranks > 1
        options = WorkerOptions(
            self.group.store,
            self.group.at_once,
            # Where nodes do not bind jobs to cores, more are usable than were asked for.
            cores=min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())),
            checkpoint_seconds=self.group.checkpoint_seconds,
            memory_fraction=self.group.memory_fraction,
            output=str(self.folder / "cells"),
            ranks=self.group.ranks,
            meet=str(meeting_place(self.folder)) if several else None,
            store_id=self.group.store_id,
        )

        def turn(started: int) -> WorkerOptions:
            if len(devices) <= 1:
                return options
            # The first of several ranks is the first of its node.
            return replace(options, gpu=devices[0 if several else started % len(devices)])

        return turn

    def begin(self, member: Member, pool: Pool) -> None:
        """Give a cell to a worker; the attempt is noted before anything can happen to it."""
        key = member.cell.key
        with held_back(signal.SIGUSR2):  # Slurm sends the warning to every process of a step
            worker = pool.idle_worker()
        self.attempt[key] = uuid.uuid4().hex[:12]
        self.running[key] = Running(time.time())
        self.queue.running.add(key)
        self.note_attempt(
            key, job=self.job, host=platform.node(), at=time.time(), pid=worker.process.pid or 0
        )
        worker.send(member.cell)
        self._news = True

    def note_attempt(self, key: str, **what: Any) -> None:
        """Add to the history of a cell; the disk may refuse, which costs no result."""
        with contextlib.suppress(OSError):
            folders.note_attempt(self.folder, key, attempt=self.attempt[key], **what)

    def listen(self, pool: Pool) -> None:
        """Take what workers say."""
        for message in pool.listen():
            if isinstance(message, Ended):
                self.ended(message)
            elif isinstance(message, Died):
                self.died(message)
            else:
                self.hear(message)

    def hear(self, event: Event) -> None:
        if isinstance(event, Progress):
            key = event.cell.key
            if key in self.running:
                # That a cell has got going is worth telling at once, how far it is now and then.
                self._news = self._news or self.running[key].phase == "starting"
                self.running[key] = replace(
                    self.running[key],
                    step=event.step,
                    horizon=event.horizon,
                    fraction=event.fraction,
                    phase=event.phase,
                    latest=dict(event.latest),
                )
            return
        if isinstance(event, Started):
            self.note_attempt(event.cell.key, step=event.step)
        elif isinstance(event, Interrupted):
            self.note_attempt(event.cell.key, what=f"stopped at step {event.step}")
        elif isinstance(event, Finished):
            self.note_attempt(event.record.key, what=FOUND if event.reused else event.record.status)
            if event.unsaved:
                self.queue.unsaved[event.record.key] = event.unsaved
        text = describe(event, self.queue.words)
        if text:
            say(text)

    def ended(self, ended: Ended) -> None:
        key = ended.cell.key
        self.over(key)
        if ended.how == "cut off":
            self.rank_lost = ended.what
            self.note_attempt(key, what=ended.what)
            say(describe(Retried(ended.cell, ended.what), self.queue.words))
            return
        self.note_attempt(key, end=ended.how, **({"what": ended.what} if ended.what else {}))
        if ended.how == "held":
            self.queue.later[key] = time.monotonic() + LOOK_AGAIN_SECONDS
        elif ended.how == "recorded":
            self.done += 1
            self.queue.finished.add(key)
        elif ended.how in ("refused", "unsaved"):
            say(f"{self.queue.words.of(ended.cell)}: {ended.how}: {ended.what}")
            self.queue.unsaved[key] = ended.what
            self.queue.finished.add(key)

    def died(self, died: Died) -> None:
        """A worker is gone: its cell is open again, unless that has happened too often."""
        key = died.cell.key
        self.over(key)
        if not died.began or (self.stopping() and died.exit_code == 0):
            self.note_attempt(key, end=NOT_BEGUN)
            return
        self.note_attempt(key, what=died.how)
        say(describe(Retried(died.cell, died.how), self.queue.words))
        self.queue.died(key)

    def over(self, key: str) -> None:
        self._news = True
        self.running.pop(key, None)
        self.queue.running.discard(key)

    def requeue(self) -> str:
        """Ask Slurm to start this job again; what came of it."""
        try:
            done = subprocess.run(
                ["scontrol", "requeue", self.job],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            said = done.stderr.strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        return f"could not be requeued: {said}" if said else "requeued"

    def note(self, *, ended: str = "", force: bool = False) -> None:
        """Say how it stands, not too often."""
        since = time.monotonic() - self._noted
        if not force and since < (NOTE_SECONDS if self._news else BEAT_SECONDS):
            return
        self._noted, self._news = time.monotonic(), False
        with contextlib.suppress(StoreError, OSError):
            folders.write_status(
                self.folder,
                NodeStatus(
                    job=self.job,
                    restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
                    host=platform.node(),
                    node=os.environ.get("SLURMD_NODENAME", ""),
                    pid=os.getpid(),
                    started=self.started,
                    ends=self.ends,
                    beat=time.time(),
                    cores=cores(),
                    gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
                    done=self.done,
                    ended=ended,
                    running=dict(self.running),
                ),
            )


def main(run: str, number: str) -> None:
    """What the batch script starts in each task of a job."""
    rank = int(os.environ.get("SLURM_PROCID") or 0)
    if rank:
        attend(run, int(number), rank)
    else:
        work(run, int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
