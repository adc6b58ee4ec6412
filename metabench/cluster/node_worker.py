"""What runs on a node: claim the next open cell, run it, record it, take the next while time lasts.

Elements are interchangeable: any number of them may work on a group of cells, none of them matters.
On a signal every running cell keeps a checkpoint at its next step and is released, and the job
requeues itself where there is something left to do.
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
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from metabench.cluster import snapshot
from metabench.cluster import submission as folders
from metabench.cluster.submission import Element, Member, Running
from metabench.core.errors import MetabenchError, StoreError
from metabench.core.hardware import cores, gpus
from metabench.run import rank_processes
from metabench.run.events import Event, Finished, Interrupted, Progress, Retried, Started, describe
from metabench.run.local_launcher import failed_record
from metabench.run.process import limit_memory
from metabench.run.worker import Ended, Options, Worker
from metabench.store import lease
from metabench.store.record import Status
from metabench.store.store import CLAIM, Store

PICKLE_SECONDS = 15.0
"""How long an element waits for submitit's pickle before it goes on without: the launcher may have
died between sbatch and the last rename."""
TRIES = 5
"""Attempts cut off without getting any further, after which a cell has failed."""
POLL_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 2.0
NOTE_SECONDS = 2.0
"""Between two notes about itself while something happens."""
BEAT_SECONDS = 20.0
"""Between two notes about itself while nothing does."""
TERM_SECONDS = 20.0
"""What SIGTERM leaves before SIGKILL, on most sites thirty."""
SPARE_SECONDS = 15.0
"""Kept back from the warning time, for requeueing."""
FOUND = "found in the store"
NOT_BEGUN = "not begun"
"""How an attempt ended that was stopped before the cell was taken up."""
REFUSED = 3
"""Exit code of an element that must not be tried again."""
RANK_LOST = 5
"""Exit code of an element that has lost a rank: its job is started again."""


def work(run: str, number: int) -> dict[str, Any]:
    """Work on a group of a submission until nothing is open or time is up; what was done, as plain
    data. It is a hint: what counts is in the store."""
    try:
        made = _Work(Path(run), number)
        try:
            return made.run()
        finally:
            if made.group.ranks > 1:
                rank_processes.over(meeting_place(made.folder))
    except MetabenchError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(REFUSED) from None


def attend(run: str, number: int, rank: int) -> None:
    """Be another rank of the cells that the first task of this job claims, until it is done."""
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
        say(f"job {job_id()} on {platform.node()}: rank {rank}, {cores()} cores")
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
        snapshot.check(self.group.code)
        self.store = Store(self.group.store)
        self.started = float(os.environ.get("SLURM_JOB_START_TIME") or time.time())
        self.ends = self.started + 60 * self.group.minutes
        self.job = job_id()
        self.number = number
        self.signal = ""
        self.finished: set[str] = set()
        self.later: dict[str, float] = {}
        self.attempt: dict[str, str] = {}
        """The attempt at each cell in hand."""
        self.running: dict[str, Running] = {}
        self.deaths: dict[str, int] = {}
        self.pulses: dict[str, lease.Pulse | None] = {}
        """Claims of others when they were first looked at closely."""
        self.done = 0
        self.unsaved: dict[str, str] = {}
        self.too_long = False
        self.rank_lost = ""
        self._noted = 0.0
        self._news = True
        members = self.group.members
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) % max(1, self.group.elements)
        # Each begins with a stretch of its own, and helps the others at the end.
        first = index * len(members) // max(1, self.group.elements)
        self.members = [*members[first:], *members[:first]]
        self.first = 0

    def run(self) -> dict[str, Any]:
        """The life of an element."""
        signal.signal(signal.SIGUSR2, self.warned)
        signal.signal(signal.SIGTERM, self.warned)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        from metabench.core.registry import load_plugins

        load_plugins()
        say(
            f"job {self.job} on {platform.node()}: {cores()} cores, "
            f"GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'not told')}, restart "
            f"{os.environ.get('SLURM_RESTART_COUNT', '0')}, {len(self.members)} cells"
        )
        self.note(force=True)
        self.loop()
        if self.rank_lost:
            self.note(ended=self.rank_lost, force=True)
            raise SystemExit(RANK_LOST)
        # Those that it stopped itself are free by now.
        self.later.clear()
        left = self.next(ignore_time=True) is not None
        ended = "nothing left to do"
        if self.signal == "SIGTERM":
            ended = "terminated"
        elif left and self.group.requeue:
            ended = self.requeue()
        elif left:
            ended = "out of time"
        self.note(ended=ended, force=True)
        say(f"job {self.job}: {self.done} cells recorded; {ended}")
        return {"recorded": self.done, "ended": ended, "unsaved": self.unsaved}

    def warned(self, number: int, _: object) -> None:
        """Only a flag: it is acted on between steps. Slurm's own end goes before a warning."""
        if self.signal != "SIGTERM":
            self.signal = signal.Signals(number).name

    def stopping(self) -> bool:
        """Whether to stop: told to, or nearly out of time although no signal came."""
        return bool(self.signal) or self.left() <= 0

    def left(self) -> float:
        """Seconds to work."""
        return self.ends - self.group.signal_seconds - time.time()

    def loop(self) -> None:
        devices = gpus()
        share, several = len(devices) > 1, self.group.ranks > 1
        options = Options(
            str(self.store.root),
            self.group.at_once,
            # Where nodes do not bind jobs to cores, more are usable than were asked for.
            cores=min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())),
            checkpoint_seconds=self.group.checkpoint_seconds,
            memory_fraction=self.group.memory_fraction,
            output=str(self.folder / "cells"),
            ranks=self.group.ranks,
            meet=str(meeting_place(self.folder)) if several else None,
        )
        workers: list[Worker] = []
        started = 0
        try:
            while not (self.stopping() or self.rank_lost):
                while sum(w.cell is not None for w in workers) < self.group.at_once:
                    member = self.next()
                    if member is None:
                        break
                    worker = next((w for w in workers if w.cell is None), None)
                    if worker is None:
                        # The first of several ranks is the first of its node.
                        gpu = devices[0 if several else started % len(devices)] if share else None
                        with _warnings_held():
                            worker = Worker(replace(options, gpu=gpu))
                        workers.append(worker)
                        started += 1
                    self.begin(member, worker)
                if not any(w.cell is not None for w in workers):
                    if self.doubtful():
                        time.sleep(LOOK_AGAIN_SECONDS)
                        self.note()
                        continue
                    return
                self.listen(workers)
                self.note()
            say(f"stopping: {self.rank_lost or self.signal or 'out of time'}")
            for worker in workers:
                worker.send(None)
            grace = min(
                max(5.0, self.group.signal_seconds - SPARE_SECONDS), self.ends - time.time()
            )
            if self.signal == "SIGTERM":
                grace = TERM_SECONDS
            deadline = time.monotonic() + grace
            while any(w.cell is not None for w in workers) and time.monotonic() < deadline:
                self.listen(workers)
        finally:
            self.end(workers)

    def next(self, *, ignore_time: bool = False) -> Member | None:
        """The next cell that is open, free, and short enough for the time left."""
        count, now = len(self.members), time.monotonic()
        for at in range(count):
            place = (self.first + at) % count
            member = self.members[place]
            key = member.cell.key
            if key in self.finished or key in self.running or self.later.get(key, 0.0) > now:
                continue
            if self.final(member):
                self.finished.add(key)
                continue
            if self.store.holder(key) is not None:
                self.later[key] = now + LOOK_AGAIN_SECONDS
                continue
            history = folders.attempts(self.folder, key)
            if folders.fruitless(history) >= TRIES:
                self.give_up(member, history)
                continue
            if not ignore_time and not self.fits(member):
                self.too_long = True
                continue
            self.first = place
            return member
        return None

    def doubtful(self) -> bool:
        """Whether a cell that somebody else holds may yet come free by itself: its claim has not
        been seen to beat, as that of a job that died with its node would not be."""
        out = False
        for member in self.members:
            key = member.cell.key
            if key in self.finished:
                continue
            now = lease.pulse(self.store.folder(key) / CLAIM)
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

    def final(self, member: Member) -> bool:
        """Whether a cell has the record that this submission is to make."""
        record = self.store.get(member.cell.key)
        if record is None:
            return False
        return record.status == "done" or member.before != (record.attempts, record.ended)

    def begin(self, member: Member, worker: Worker) -> None:
        key = member.cell.key
        self.attempt[key] = uuid.uuid4().hex[:12]
        self.running[key] = Running(time.time())
        self.tell(
            key, job=self.job, host=platform.node(), at=time.time(), pid=worker.process.pid or 0
        )
        worker.send(member.cell)
        self._news = True

    def tell(self, key: str, **what: Any) -> None:
        """Add to the history of a cell; the disk may refuse, which costs no result."""
        with contextlib.suppress(OSError):
            folders.note_attempt(self.folder, key, attempt=self.attempt[key], **what)

    def listen(self, workers: list[Worker]) -> None:
        """Take what workers say; drop those that have died."""
        wait([w.connection for w in workers], POLL_SECONDS)
        for worker in list(workers):
            try:
                for message in worker.messages():
                    if isinstance(message, Ended):
                        worker.cell = None
                        self.ended(message)
                    else:
                        self.hear(message)
            except EOFError:
                workers.remove(worker)
                if worker.cell is not None:
                    self.died(worker, worker.death())

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
            self.tell(event.cell.key, step=event.step)
        elif isinstance(event, Interrupted):
            self.tell(event.cell.key, what=f"stopped at step {event.step}")
        elif isinstance(event, Finished):
            self.tell(event.record.key, what=FOUND if event.reused else event.record.status)
            if event.unsaved:
                self.unsaved[event.record.key] = event.unsaved
        text = describe(event)
        if text:
            say(text)

    def ended(self, ended: Ended) -> None:
        key = ended.cell.key
        self._news = True
        self.running.pop(key, None)
        if ended.how == "cut off":
            self.rank_lost = ended.what
            self.tell(key, what=ended.what)
            say(describe(Retried(ended.cell, ended.what)))
            return
        self.tell(key, end=ended.how, **({"what": ended.what} if ended.what else {}))
        if ended.how == "held":
            self.later[key] = time.monotonic() + LOOK_AGAIN_SECONDS
            return
        if ended.how == "recorded":
            self.done += 1
            self.finished.add(key)
        elif ended.how in ("refused", "unsaved"):
            say(f"{ended.cell}: {ended.how}: {ended.what}")
            self.unsaved[key] = ended.what
            self.finished.add(key)

    def died(self, worker: Worker, how: str) -> None:
        """A worker is gone: its cell is open again, unless that has happened too often."""
        assert worker.cell is not None
        key = worker.cell.key
        self._news = True
        self.running.pop(key, None)
        if self.stopping() and worker.process.exitcode == 0:
            self.tell(key, end=NOT_BEGUN)
            return
        self.tell(key, what=how)
        say(describe(Retried(worker.cell, how)))
        # The history may be on a full disk: it is not the only count.
        self.deaths[key] = self.deaths.get(key, 0) + 1
        if self.deaths[key] > TRIES:
            self.finished.add(key)

    def give_up(self, member: Member, history: list[folders.Attempt]) -> None:
        """A record for a cell that is cut off again and again; its checkpoint stays."""
        last = [a for a in history if a.end in ("", "stopped")][-TRIES:]
        how = next((a.what for a in reversed(last) if a.what), "nothing was heard of it")
        hosts = ", ".join(dict.fromkeys(a.host for a in last))
        stopped = all(a.end == "stopped" for a in last)
        status: Status = "timeout" if stopped else "failed"
        reason = f"cut off {len(last)} times without getting further, on {hosts}: {how}"
        self.finished.add(member.cell.key)
        try:
            mine = self.store.claim(member.cell.key)
            if mine is None:
                return
            with mine:
                if self.final(member):
                    return
                known = self.store.get(member.cell.key)
                tries = known.attempts + 1 if known is not None else 1
                record = failed_record(member.cell, status, reason, tries)
                self.store.write(record, claim=mine)
        except StoreError as error:
            self.unsaved[member.cell.key] = str(error)
        say(f"{member.cell}: {reason}")

    def end(self, workers: list[Worker]) -> None:
        """No worker outlives the element."""
        for worker in workers:
            if worker.cell is None:
                worker.send(None)
        for worker in workers:
            # With a warning every second counts, and an idle worker has nothing to lose.
            worker.process.join(10.0 if worker.cell is None and not self.signal else 0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
                if worker.cell is not None:
                    self.died(worker, "killed: it came to no step boundary in the time of warning")
            worker.connection.close()

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
            folders.write_element(
                self.folder,
                Element(
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


@contextlib.contextmanager
def _warnings_held() -> Iterator[None]:
    """A process started inside never gets the warning, which Slurm sends to every process of a
    step and which would kill it; what comes meanwhile is delivered here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say(text: str) -> None:
    """A line in the job's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main(jobs: str, run: str, number: str) -> None:
    """What the batch script starts: submitit's pickle, or the same call where it never came."""
    rank = int(os.environ.get("SLURM_PROCID") or 0)
    if rank:
        attend(run, int(number), rank)
        return
    from submitit.core import job_environment, submission

    os.environ["SUBMITIT_FOLDER"] = jobs
    paths = job_environment.JobEnvironment().paths
    # Left by an attempt that was cut off; submitit would fail over it for good.
    for stale in Path(jobs).glob(f"{job_id()}_*.save_tmp"):
        stale.unlink(missing_ok=True)
    deadline = time.monotonic() + PICKLE_SECONDS
    while not paths.submitted_pickle.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if paths.submitted_pickle.exists():
        submission.process_job(jobs)
    else:
        say(f"{paths.submitted_pickle} never came: its launcher must have died; going on without")
        work(run, int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
