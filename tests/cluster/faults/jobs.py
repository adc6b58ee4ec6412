"""Faults of jobs and nodes: killed, warned, moved, cancelled, away."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from metabench.cluster import submission as folder
from metabench.cluster.cell_states import standings
from metabench.cluster.slurm import commands as slurm
from metabench.cluster.submitting import submit as submitting
from metabench.contract.seeds import seed_for

from .registry import fault, kill, parent
from .stage import PAUSE, SLOW, Lost, Stage


@fault()
def nothing(stage: Stage) -> None:
    """None: the undisturbed case."""
    stage.submit(pause=0.05)
    stage.finish()


@fault()
def worker_killed(stage: Stage) -> None:
    """Kill -9 of the process that runs a cell."""
    submission = stage.submit()
    _, attempt = stage.at_work(submission)
    kill(attempt.pid)
    stage.finish()


@fault()
def node_worker_killed(stage: Stage) -> None:
    """Kill -9 of the job's own process, its workers left."""
    submission = stage.submit()
    node, _ = stage.at_work(submission)
    kill(node.pid)
    stage.finish()


@fault()
def step_killed(stage: Stage) -> None:
    """Kill -9 of slurmstepd, the step's processes orphaned."""
    submission = stage.submit()
    node, _ = stage.at_work(submission)
    step = parent(node.pid)
    assert "slurmstepd" in Path(f"/proc/{step}/cmdline").read_text()
    kill(step)
    stage.finish()


@fault()
def signalled(stage: Stage) -> None:
    """The warning signal, once to each job."""
    submission = stage.submit()
    stage.at_work(submission)
    stage.warn()
    stage.finish()


@fault()
def signalled_often(stage: Stage) -> None:
    """The warning signal, five times."""
    submission = stage.submit(seeds=1, pause=3.0)
    for _ in range(5):
        node, _ = stage.at_work(submission)
        stage.ask("scancel", "--signal=USR2", node.job)
        before = node.restart

        def again(job: str = node.job, before: int = before) -> bool:
            return folder.statuses(submission.folder)[job].restart > before

        stage.until("a new start", again)
    stage.finish()


@fault()
def signalled_in_writing(stage: Stage) -> None:
    """The warning signal while files are being written (every write takes 1.5 s)."""
    os.environ[SLOW] = "1.5"
    submission = stage.submit(seeds=3, pause=0.1, checkpoint_seconds=0.2)
    for _ in range(3):
        node, _ = stage.at_work(submission)
        stage.ask("scancel", "--signal=USR2", node.job)
        time.sleep(3.0)
    stage.finish()


@fault()
def deaf(stage: Stage) -> None:
    """A step that never ends and is deaf to signals, then the warning."""
    stage.tell(0, "hang")
    stage.submit(seeds=3, parallel=1)

    def hangs() -> bool:
        return not (stage.home / f"do-{seed_for(0, 'init')}").exists()

    stage.until("a cell that hangs", hangs)
    time.sleep(1.0)
    stage.warn()
    stage.finish()


@fault()
def requeued(stage: Stage) -> None:
    """``scontrol`` requeue."""
    submission = stage.submit()
    node, _ = stage.at_work(submission)
    stage.ask("scontrol", "requeue", node.job)
    stage.finish()


@fault()
def preempted(stage: Stage) -> None:
    """A job of higher priority takes the node (GraceTime 5 s)."""
    extra = {"nodelist": "n2", "exclusive": True}
    submission = stage.submit(partition="low", parallel=1, extra=extra)
    stage.at_work(submission)
    options = ("-p", "high", "-w", "n2", "--exclusive", "-o", "/dev/null")
    stage.ask("sbatch", *options, "--wrap=sleep 3")
    stage.until("pre-emption", lambda: any(j.state != "RUNNING" for j in stage.live()))
    stage.finish()


@fault()
def node_down(stage: Stage) -> None:
    """The administrator sets the node down; it comes back after 15 s."""
    submission = stage.submit(extra={"nodelist": "n3"})
    node, _ = stage.at_work(submission)
    stage.ask("scontrol", "update", f"nodename={node.node}", "state=down", "reason=test")
    time.sleep(15)
    stage.ask("scontrol", "update", f"nodename={node.node}", "state=resume")
    stage.finish()


@fault()
def node_lost(stage: Stage) -> None:
    """Power loss of a node: kill -9 of slurmd and everything under it."""
    submission = stage.submit(extra={"exclude": "n1,n2"}, parallel=1)
    node, _ = stage.at_work(submission)
    daemon = stage.cluster.daemon(f"slurmd-{node.node}").pid()
    raw = stage.ask("squeue", "-h", "-j", node.job, "-o", "%A").strip()
    doomed = [daemon] if daemon else []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = f"SLURM_JOB_ID={raw}\0".encode() in (path / "environ").read_bytes()
            step = f"slurmstepd: [{raw}." in (path / "cmdline").read_text(errors="replace")
            if mine or step:
                doomed.append(int(path.name))
    for pid in doomed:
        kill(pid)
    try:
        stage.finish()
    finally:
        stage.cluster.up()


@fault()
def batch_scripts_killed(stage: Stage) -> None:
    """Kill -9 of every batch script, which would have requeued its job; then what status tells to
    type."""
    stage.seeds = list(range(3))
    os.environ[PAUSE] = "0.4"
    said, _ = stage.command("submit", "--cluster", "local").communicate(timeout=150)
    (submission,) = folder.submissions(stage.store) or (None,)
    if submission is None:
        raise Lost(f"the submission failed: {said}")
    stage.at_work(submission)
    home = str(stage.cluster.home).encode()
    while stage.live():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"slurm_script" in (words := path.read_bytes()) and home in words:
                    kill(int(path.parent.name))
        time.sleep(0.3)
    standing = standings(stage.planned(stage.seeds), [submission], stage.answer())
    repairs = {p.repair for p in standing if p.state == "crashed"}
    if len(repairs) != 1:
        raise Lost(f"status says {[(p.state, p.repair) for p in standing]}")
    program, *words = shlex.split(repairs.pop())
    command = [sys.executable, "-P", "-m", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode:
        raise Lost(f"{words}: {done.stdout}{done.stderr}")
    stage.finish()


@fault()
def frozen_in_writing(stage: Stage) -> None:
    """SIGSTOP between the look at the lease and the writing of the record; another job takes the
    cell over, then SIGCONT."""
    stage.tell(0, "freeze")
    stage.submit(seeds=3, parallel=2)
    note = stage.home / "frozen"
    stage.until("a worker that is frozen", note.exists)
    pid, claim = note.read_text().split()
    os.utime(claim, (time.time() - 1000, time.time() - 1000))
    try:
        # Whoever holds the folder's lock while it is frozen cannot be taken over, which is safe.
        with contextlib.suppress(Lost):
            stage.until("its cell done by another", lambda: stage.final(stage.cells()[0]), 45)
    finally:
        os.kill(int(pid), signal.SIGCONT)
    stage.finish()


@fault()
def suspended(stage: Stage) -> None:
    """``scontrol`` suspend for 8 s, then resume."""
    submission = stage.submit()
    node, _ = stage.at_work(submission)
    stage.ask("scontrol", "suspend", node.job)
    time.sleep(8)
    states = {j.id: j.state for j in stage.live()}
    if states.get(node.job) != "SUSPENDED":
        raise Lost(f"job {node.job} is {states.get(node.job)}, not SUSPENDED")
    stage.ask("scontrol", "resume", node.job)
    stage.finish()


@fault()
def cancelled(stage: Stage) -> None:
    """Metabench cancel of all, then a new submission."""
    submission = stage.submit()
    stage.at_work(submission)
    there = slurm.Slurm(stage.profile())
    submitting.cancel(there, folder.submissions(stage.store), stage.answer())
    stage.until("the end of all jobs", lambda: not stage.live())
    if all(stage.final(c) for c in stage.cells()):
        raise Lost("nothing was left to cancel")
    stage.again(frozenset({"open", "timeout"}))
    stage.finish()


@fault()
def partly_cancelled(stage: Stage) -> None:
    """Scancel of a part of the array."""
    submission = stage.submit(seeds=5)
    node, _ = stage.at_work(submission)
    job = submission.arrays[0].job
    others = [i for i in range(5) if f"{job}_{i}" != node.job][:2]
    stage.ask("scancel", *(f"{job}_{i}" for i in others))
    stage.finish()


@fault()
def two_at_once(stage: Stage) -> None:
    """Two cells beside each other in each job, and one of them killed."""
    submission = stage.submit(seeds=5, at_once=2, parallel=1)
    _, attempt = stage.at_work(submission)
    kill(attempt.pid)
    stage.finish()


@fault()
def dies_always(stage: Stage) -> None:
    """A cell dies each time: failed with the reason, the others done."""
    stage.tell(1, "die always")
    stage.submit(seeds=3, pause=0.05)

    def ended() -> bool:
        records = [stage.store.get(c.key) for c in stage.cells()]
        return all(r is not None for r in records)

    stage.until("a record of each cell", ended, 150)
    record = stage.store.get(stage.cells()[1].key)
    if record is None or record.status != "failed" or "SIGKILL" not in record.reason:
        raise Lost("the cell that dies has no record that says so")
    (stage.home / f"do-{seed_for(1, 'init')}").unlink()
    stage.until("the end of all jobs", lambda: not stage.live())
    # A node worker that had taken the cell up before the record was there has done it by now.
    if not all(stage.final(c) for c in stage.cells()):
        stage.again(frozenset({"failed"}))
    stage.finish()
