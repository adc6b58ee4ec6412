"""Faults, injected into a real one-machine Slurm; what became of the cells after each.

    python -m metabench.cluster_profiles.faults [FAULT ...] [--accounting yes|no|both] [--out
    FOLDER]

Every fault has cells of its own in a store of its own, and one judge: every cell has exactly one
final record, equal to the last bit to that of an undisturbed run in this process; no half-written
file, no claim and no checkpoint is left. Nothing runs but on a cluster that this program brings up
(``local_cluster.py``), and it ends none but its own processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metabench.cluster import job_states, profile, slurm
from metabench.cluster import submission as folder
from metabench.cluster import submit as submitting
from metabench.cluster.submission import Attempt, Submission
from metabench.cluster_profiles.local_cluster import (
    Cluster,
    ClusterError,
    Options,
    missing_packages,
    program,
)
from metabench.contract.seeds import seed_for
from metabench.core.cell import Cell
from metabench.core.errors import MetabenchError
from metabench.core.registry import load_plugin
from metabench.store.record import curve_outcome
from metabench.store.store import CHECKPOINT, CLAIM, Store
from metabench.suites import planning

PAUSE, FOLDER, SLOW = (f"METABENCH_TEST_{name}" for name in ("PAUSE", "FOLDER", "SLOW"))
SECONDS = 420.0
"""How long the cells of one fault may take."""
STEPS = 16

PLUGIN = f'''
"""A method that takes its time, and stumbles where it is told to."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from metabench.core.registry import methods

_fsync = os.fsync


def slowly(fd):
    time.sleep(float(os.environ["{SLOW}"]))
    _fsync(fd)


@methods.register("paced")
@dataclass(frozen=True)
class Paced(methods.get("bilevel")):
    """The method ``bilevel``, slowed down by the environment: its results are the same."""

    def step(self, ctx, state):
        if "{SLOW}" in os.environ:
            os.fsync = slowly
        time.sleep(float(os.environ.get("{PAUSE}") or 0))
        told = Path(os.environ.get("{FOLDER}") or "/nowhere", f"do-{{ctx.seeds.init}}")
        if told.exists():
            what = told.read_text()
            if not what.endswith("always"):
                told.unlink()
            if what.startswith("hang"):
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
                time.sleep(10000)
            if what.startswith("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if what.startswith("fail"):
                raise ValueError("told to fail")
        return super().step(ctx, state)
'''


class Lost(Exception):
    """What was promised and did not come, in words."""


@dataclass(frozen=True)
class Verdict:
    """What the judge found."""

    cells: int
    lost: int
    doubled: int
    identical: int
    left_over: list[str]
    attempts: int

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.identical == self.cells and not (self.lost or self.doubled or self.left_over)


class Stage:
    """A cluster, a store, and cells to disturb."""

    def __init__(self, cluster: Cluster, home: Path, reference: Store) -> None:
        self.cluster, self.home, self.reference = cluster, home, reference
        home.mkdir(parents=True, exist_ok=True)
        self.plugin = home / "paced.py"
        self.store = Store(home / "runs")
        self.seeds: list[int] = []
        self.budget = ""
        self.deadline = time.monotonic() + SECONDS
        os.environ["SLURM_CONF"] = str(cluster.conf)
        os.environ[FOLDER] = str(home)

    def profile(self, **settings: Any) -> profile.Profile:
        """The local profile, with two jobs at a time."""
        base = {"parallel": 2, "query_seconds": 0, "checkpoint_seconds": 1.0}
        return profile.load("local", {**base, **settings})

    def words(self, steps: int = STEPS) -> list[str]:
        """``--set`` words of the cells."""
        limits = {"outer_steps": steps, "eval_every": 4, "valid_episodes": 2, "test_episodes": 2}
        return [f"budget.{name}={value}" for name, value in limits.items()]

    def planned(self, seeds: list[int], steps: int = STEPS) -> list[planning.Planned]:
        """The cells of some seeds, and how they stand."""
        suite = planning.suite_of_pairs(["ridge"], ["paced"])
        chosen = planning.choose(suite, "laptop", set=self.words(steps), seeds=seeds)
        return planning.plan(chosen, self.store)

    def cells(self) -> list[Cell]:
        """All cells that were submitted."""
        return [p.cell for p in self.planned(self.seeds)]

    def tell(self, seed: int, what: str) -> None:
        """Let a cell stumble: "die", "hang", "fail"; "die always" at every attempt."""
        (self.home / f"do-{seed_for(seed, 'init')}").write_text(what)

    def submit(self, seeds: int = 4, pause: float = 0.4, **settings: Any) -> Submission:
        """Queue cells; what the environment says now travels with them."""
        os.environ[PAUSE] = str(pause)
        self.seeds = list(range(seeds))
        return self.again(frozenset({"open", "timeout"}), **settings)

    def again(self, states: frozenset[str], **settings: Any) -> Submission:
        """Queue those of the cells that are in one of the states."""
        own = self.profile(**settings)
        there = slurm.Slurm(own)
        answer = submitting.look(there, self.store, seconds=0)
        made = submitting.draft(
            self.planned(self.seeds),
            own,
            self.store,
            "faults",
            "laptop",
            states=states,
            busy=submitting.busy(self.store, answer),
            max_array=there.max_array(),
        )
        against = submitting.refusals(made, there, [])
        if against:
            raise submitting.Refusal("; ".join(against))
        return submitting.submit(made, there)

    def command(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """A command of metabench about the same cells, in a process of its own."""
        chosen = ["--task", "ridge", "--method", "paced", "--store", str(self.store.root)]
        chosen += [w for one in self.words() for w in ("--set", one)]
        chosen += ["--seeds", f"0-{max(self.seeds)}", "--plugin", str(self.plugin)]
        settings = {"parallel": 2, "query_seconds": 0, "checkpoint_seconds": 1.0}
        chosen += [w for k, v in settings.items() for w in ("--set", f"slurm.{k}={v}")]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "metabench", *words, *chosen],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # waiting

    def until(self, what: str, done: Callable[[], Any], seconds: float = 180.0) -> Any:
        """The first true answer; raises Lost."""
        end = min(self.deadline, time.monotonic() + seconds)
        while time.monotonic() < end:
            found = done()
            if found:
                return found
            time.sleep(0.2)
        raise Lost(f"{what} did not come about")

    def at_work(self, submission: Submission) -> tuple[folder.Element, Attempt]:
        """A job that is in the middle of a cell, and its attempt at that cell."""

        def find() -> tuple[folder.Element, Attempt] | None:
            for element in folder.elements(submission.folder).values():
                for key, at in element.running.items():
                    history = folder.attempts(submission.folder, key)
                    last = history[-1] if history else None
                    if last is None or last.end or last.step is None or element.ended:
                        continue
                    if last.job == element.job and at.phase != "starting":
                        return element, last
            return None

        found: tuple[folder.Element, Attempt] = self.until("a cell at work", find)
        time.sleep(0.5)
        return found

    def finish(self, *, resubmit: bool = False) -> None:
        """Wait until every cell has its record; raises Lost where no job is left to make it."""
        idle = 0
        while time.monotonic() < self.deadline:
            open_ = [c for c in self.cells() if not self.final(c)]
            if not open_:
                break
            live = self.live()
            idle = 0 if live else idle + 1
            if any(j.held for j in live):
                for job in {j.id.partition("_")[0] for j in live if j.held}:
                    self.ask("scontrol", "release", job)
            if idle >= 4:
                if not resubmit:
                    raise Lost(f"{len(open_)} cells open and no job left for them")
                self.again(frozenset({"open", "timeout"}))
                idle = 0
            time.sleep(0.5)
        else:
            raise Lost("not finished in time")
        # Let the last jobs end by themselves.
        with contextlib.suppress(Lost):
            self.until("the end of all jobs", lambda: not self.live(), 40)

    def final(self, cell: Cell) -> bool:
        """Whether a cell is done."""
        record = self.store.get(cell.key)
        return record is not None and record.status == "done"

    def answer(self) -> job_states.Answer:
        """What Slurm says now."""
        return submitting.look(slurm.Slurm(self.profile()), self.store, seconds=0)

    def live(self) -> list[job_states.Job]:
        """Jobs of this stage that may still work."""
        answer = self.answer()
        return [j for s in folder.submissions(self.store) for j in answer.live(s)]

    def ask(self, *command: str) -> str:
        """A Slurm command."""
        return self.cluster.ask(*command).stdout

    def warn(self) -> None:
        """Send the warning to every running job; scancel would go on trying at waiting ones."""
        for job in self.live():
            if job.state == "RUNNING":
                self.ask("scancel", "--signal=USR2", job.id)

    # the judge

    def judge(self) -> Verdict:
        """Compare every record with the undisturbed one; look for what was left behind."""
        cells = self.cells()
        identical = lost = 0
        for cell in cells:
            record = self.store.get(cell.key)
            if record is None or record.status != "done":
                lost += 1
                continue
            wanted = undisturbed(cell, self.reference)
            same = record.outcome() == wanted.outcome() and curve_outcome(
                self.store.curve(record)
            ) == curve_outcome(self.reference.curve(wanted))
            identical += same
        left = [str(b) for b in self.store.problems()]
        for pattern in (f"*/*/{CLAIM}", f"*/*/{CHECKPOINT}", "*/*/.*.tmp"):
            left += [str(f.relative_to(self.store.root)) for f in self.store.root.glob(pattern)]
        histories = [
            folder.attempts(s.folder, c.key) for c in cells for s in folder.submissions(self.store)
        ]
        done: dict[str, int] = {}
        for cell in cells:
            for s in folder.submissions(self.store):
                for a in folder.attempts(s.folder, cell.key):
                    real = a.end == "recorded" and a.what == "done"
                    done[cell.key] = done.get(cell.key, 0) + real
        doubled = sum(n > 1 for n in done.values())
        return Verdict(len(cells), lost, doubled, identical, left, sum(map(len, histories)))


def undisturbed(cell: Cell, reference: Store) -> Any:
    """The record of a cell, run here without any disturbance."""
    from metabench.run.runner import run_cell

    record = reference.get(cell.key)
    if record is not None and record.status == "done":
        return record
    before = {name: os.environ.pop(name) for name in (PAUSE, FOLDER, SLOW) if name in os.environ}
    try:
        return run_cell(cell, reference)
    finally:
        os.environ.update(before)


# faults

Act = Callable[[Stage], None]


@dataclass(frozen=True)
class Fault:
    """A fault: how it is injected, and what it needs."""

    name: str
    how: str
    act: Act
    accounting_only: bool = False
    root: bool = False


FAULTS: dict[str, Fault] = {}


def fault(*, accounting_only: bool = False, root: bool = False) -> Callable[[Act], Act]:
    """Enter a function under its name; its docstring says what it does."""

    def enter(act: Act) -> Act:
        how = (act.__doc__ or "").strip().rstrip(".")
        FAULTS[act.__name__] = Fault(act.__name__, how, act, accounting_only, root)
        return act

    return enter


def children(pid: int) -> list[int]:
    """Live processes whose parent is ``pid``."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                out.append(int(stat.parent.name))
    return out


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """SIGKILL, where it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
def element_killed(stage: Stage) -> None:
    """Kill -9 of the job's own process, its workers left."""
    submission = stage.submit()
    element, _ = stage.at_work(submission)
    kill(element.pid)
    stage.finish()


@fault()
def step_killed(stage: Stage) -> None:
    """Kill -9 of slurmstepd, the step's processes orphaned."""
    submission = stage.submit()
    element, _ = stage.at_work(submission)
    step = parent(element.pid)
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
    submission = stage.submit(seeds=1, pause=1.0)
    for _ in range(5):
        element, _ = stage.at_work(submission)
        stage.ask("scancel", "--signal=USR2", element.job)
        before = element.restart

        def again(job: str = element.job, before: int = before) -> bool:
            return folder.elements(submission.folder)[job].restart > before

        stage.until("a new start", again)
    stage.finish()


@fault()
def signalled_in_writing(stage: Stage) -> None:
    """The warning signal while files are being written (every write takes 1.5 s)."""
    os.environ[SLOW] = "1.5"
    submission = stage.submit(seeds=3, pause=0.1, checkpoint_seconds=0.2)
    for _ in range(3):
        element, _ = stage.at_work(submission)
        stage.ask("scancel", "--signal=USR2", element.job)
        time.sleep(3.0)
    stage.finish()


@fault()
def stale_draft(stage: Stage) -> None:
    """A stale file of submitit's, then the signal."""
    submission = stage.submit()
    element, _ = stage.at_work(submission)
    jobs = next((submission.folder / "jobs").iterdir())
    for name in ("submitted.pkl.save_tmp", "0_result.save_tmp", "0_result.pkl.save_tmp"):
        (jobs / f"{element.job}_{name}").write_bytes(b"half")
    stage.ask("scancel", "--signal=USR2", element.job)
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
    element, _ = stage.at_work(submission)
    stage.ask("scontrol", "requeue", element.job)
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
    element, _ = stage.at_work(submission)
    stage.ask("scontrol", "update", f"nodename={element.node}", "state=down", "reason=test")
    time.sleep(15)
    stage.ask("scontrol", "update", f"nodename={element.node}", "state=resume")
    stage.finish()


@fault()
def node_lost(stage: Stage) -> None:
    """Power loss of a node: kill -9 of slurmd and everything under it."""
    submission = stage.submit(extra={"exclude": "n1,n2"}, parallel=1)
    element, _ = stage.at_work(submission)
    daemon = stage.cluster.daemon(f"slurmd-{element.node}").pid()
    raw = stage.ask("squeue", "-h", "-j", element.job, "-o", "%A").strip()
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
def suspended(stage: Stage) -> None:
    """``scontrol`` suspend for 8 s, then resume."""
    submission = stage.submit()
    element, _ = stage.at_work(submission)
    stage.ask("scontrol", "suspend", element.job)
    time.sleep(8)
    states = {j.id: j.state for j in stage.live()}
    if states.get(element.job) != "SUSPENDED":
        raise Lost(f"job {element.job} is {states.get(element.job)}, not SUSPENDED")
    stage.ask("scontrol", "resume", element.job)
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
    element, _ = stage.at_work(submission)
    job = submission.arrays[0].job
    others = [i for i in range(5) if f"{job}_{i}" != element.job][:2]
    stage.ask("scancel", *(f"{job}_{i}" for i in others))
    stage.finish()


@fault()
def controller_killed(stage: Stage) -> None:
    """Kill -9 of slurmctld under running jobs; it comes back after 6 s."""
    submission = stage.submit(pause=0.8)
    stage.at_work(submission)
    # Its state is saved every few seconds.
    time.sleep(6)
    kill(stage.cluster.daemon("slurmctld").pid() or 0)
    time.sleep(6)
    if not stage.answer().problem:
        raise Lost("the watcher did not notice that the controller is away")
    stage.cluster.up()
    stage.finish()


@fault()
def controller_away(stage: Stage) -> None:
    """Slurmctld away at submission: refused, nothing queued; then submitted again."""
    stage.seeds = [0]
    kill(stage.cluster.daemon("slurmctld").pid() or 0)
    try:
        stage.submit()
    except MetabenchError:
        pass
    else:
        raise Lost("a submission without a controller was accepted")
    finally:
        stage.cluster.up()
    stage.submit(pause=0.1)
    stage.finish()


@fault(accounting_only=True)
def database_away(stage: Stage) -> None:
    """Slurmdbd stopped under running jobs."""
    submission = stage.submit()
    stage.at_work(submission)
    stage.cluster.daemon("slurmdbd").stop()
    try:
        stage.finish()
    finally:
        stage.cluster.up()


@fault()
def launcher_killed(stage: Stage) -> None:
    """The launcher dies between sbatch and submitit's last rename."""
    stage.seeds = list(range(4))
    os.environ[PAUSE] = "0.1"
    path = wrapped_sbatch(stage, 'out=$("$real" "$@"); code=$?; echo "$out"; kill -9 $PPID')
    launcher = stage.command("submit", "--cluster", "local", PATH=path)
    launcher.communicate(timeout=150)
    if launcher.returncode != -signal.SIGKILL:
        raise Lost(f"the launcher was not killed: {launcher.returncode}")
    stage.finish()


@fault()
def accepted_unseen(stage: Stage) -> None:
    """Sbatch says that it timed out, though the job was accepted."""
    stage.seeds = list(range(4))
    os.environ[PAUSE] = "0.1"
    words = '"$real" "$@" > /dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1'
    launcher = stage.command("submit", "--cluster", "local", PATH=wrapped_sbatch(stage, words))
    said, _ = launcher.communicate(timeout=150)
    if launcher.returncode:
        raise Lost(f"the submission failed: {said}")
    stage.finish()
    (submission,) = folder.submissions(stage.store)
    names = stage.ask("squeue", "-h", "--states=all", "-o", "%F %j").splitlines()
    if len({n for n in names if submission.arrays[0].name in n}) != 1:
        raise Lost("the array was queued twice")


def wrapped_sbatch(stage: Stage, words: str) -> str:
    """A PATH with an sbatch that does something else besides, the first time that it queues."""
    place = stage.home / "bin"
    place.mkdir(exist_ok=True)
    real = next(
        str(Path(p, "sbatch"))
        for p in os.environ["PATH"].split(os.pathsep)
        if Path(p, "sbatch").is_file()
    )
    script = place / "sbatch"
    script.write_text(
        f"#!/bin/bash\nreal={real}\n"
        f'case "$*" in *--test-only*) exec "$real" "$@" ;; esac\n{words}\n'
    )
    script.chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


@fault()
def two_launchers(stage: Stage) -> None:
    """Two launchers submit the same cells at the same moment."""
    stage.seeds = list(range(6))
    os.environ[PAUSE] = "0.1"
    launchers = [stage.command("submit", "--cluster", "local") for _ in range(2)]
    for launcher in launchers:
        said, _ = launcher.communicate(timeout=150)
        if launcher.returncode:
            raise Lost(f"a submission failed: {said}")
    stage.finish()


@fault()
def python_gone(stage: Stage) -> None:
    """Python is not there when the jobs start; put back, then retry."""
    link = stage.home / "python"
    link.symlink_to(sys.executable)
    submission = stage.submit(seeds=2, pause=0.05, python=str(link), extra={"begin": "now+4"})
    link.rename(stage.home / "hidden")
    stage.until("the end of all jobs", lambda: not stage.live())
    answer = stage.answer()
    states = {j.state for a in submission.arrays for j in answer.elements(a)}
    if states != {"FAILED"}:
        raise Lost(f"jobs without Python are {states}")
    (stage.home / "hidden").rename(link)
    stage.again(frozenset({"open"}))
    stage.finish()


@fault()
def code_edited(stage: Stage) -> None:
    """Code and plug-in edited while the jobs wait."""
    submission = stage.submit(pause=0.05, extra={"begin": "now+4"})
    before = stage.plugin.read_text()
    stage.plugin.write_text("raise SystemExit('edited')\n")
    try:
        stage.finish()
    finally:
        stage.plugin.write_text(before)
    for cell in stage.cells():
        record = stage.store.get(cell.key)
        if record is None or record.environment["git"].get("sha256") != submission.code:
            raise Lost("a record does not name the code that was submitted")


@fault()
def snapshot_edited(stage: Stage) -> None:
    """The snapshot itself is tampered with: refused; then submitted again."""
    submission = stage.submit(seeds=2, pause=0.05, extra={"begin": "now+4"})
    with (submission.folder / "code" / "metabench" / "loop.py").open("a") as file:
        file.write("\n# edited\n")
    stage.until("the end of all jobs", lambda: not stage.live())
    if any(stage.final(c) for c in stage.cells()):
        raise Lost("cells were run with other code than was submitted")
    stage.again(frozenset({"open"}))
    stage.finish()


@fault()
def nested(stage: Stage) -> None:
    """Submitted from within an array job, whose variables leak."""
    stage.seeds = list(range(3))
    os.environ[PAUSE] = "0.05"
    launcher = stage.command("submit", "--cluster", "local")
    words = launcher.args
    launcher.kill()
    launcher.communicate()
    assert isinstance(words, list)
    script = stage.home / "outer.sh"
    quoted = " ".join(f"'{w}'" for w in words)
    script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=7 RANK=3\nsrun {quoted}\n")
    options = ("--array=0-0", "-n1", "--mem=200M", "-o", str(stage.home / "outer.out"))
    stage.ask("sbatch", *options, str(script))
    stage.until("the inner submission", lambda: folder.submissions(stage.store))
    stage.finish()


@fault(root=True)
def disk_full(stage: Stage) -> None:
    """A full disk under the store; then room, and retry --failed."""
    stage.store.root.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(stage.store.root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        raise Lost("cannot mount a small file system here")
    try:
        submission = stage.submit(seeds=2, parallel=1)
        stage.at_work(submission)
        filler = stage.store.root / "cluster" / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        stage.until("the end of all jobs", lambda: not stage.live(), 120)
        filler.unlink()
        remount = ["mount", "-o", "remount,size=64m", str(stage.store.root)]
        subprocess.run(remount, check=True)
        stage.again(frozenset({"open", "timeout", "failed"}))
        stage.finish()
        stage.verdict = stage.judge()  # type: ignore[attr-defined]
    finally:
        subprocess.run(["umount", "-l", str(stage.store.root)], check=False)


@fault()
def ghost(stage: Stage) -> None:
    """A claim of another machine that went down 95 s ago: waited for until its lease is over."""
    stage.seeds = [0, 1]
    (first, _) = stage.cells()
    place = stage.store.folder(first.key)
    place.mkdir(parents=True)
    away = {"host": "gone", "place": "gone/boot/space", "pid": 1, "started": "1", "nonce": "n"}
    (place / CLAIM).write_text(json.dumps({**away, "since": time.time() - 200}))
    # The plan would leave it to its holder, so it is made first.
    os.utime(place / CLAIM, (time.time() - 1000, time.time() - 1000))
    stage.submit(seeds=2, pause=0.05, extra={"begin": "now+3"})
    os.utime(place / CLAIM, (time.time() - 95, time.time() - 95))
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
    # An element that had taken the cell up before the record was there has done it by now.
    if not all(stage.final(c) for c in stage.cells()):
        stage.again(frozenset({"failed"}))
    stage.finish()


# all of them


@dataclass(frozen=True)
class Row:
    """A line of the fault table."""

    fault: str
    how: str
    accounting: bool
    cells: int
    lost: int
    doubled: int
    identical: int
    left_over: int
    attempts: int
    seconds: float
    verdict: str


def perform(one: Fault, cluster: Cluster, home: Path, reference: Store) -> Row:
    """Inject one fault; what the judge says."""
    before = dict(os.environ)
    start = time.monotonic()
    stage = Stage(cluster, home, reference)
    stage.plugin.write_text(PLUGIN)
    os.environ["METABENCH_PLUGINS"] = str(stage.plugin)
    forget_plugin()
    load_plugin(stage.plugin)
    said = ""
    try:
        one.act(stage)
    except (Lost, MetabenchError, ClusterError) as error:
        said = str(error)
    except Exception as error:  # a fault of the fault: the others go on
        said = f"{type(error).__name__}: {error}"
    finally:
        for job in {j.id.partition("_")[0] for j in live_or_none(stage)}:
            stage.ask("scancel", job)
        verdict: Verdict = getattr(stage, "verdict", None) or stage.judge()
        os.environ.clear()
        os.environ.update(before)
    if not said:
        said = "ok" if verdict.good else "; ".join(verdict.left_over) or "not the same"
    return Row(
        one.name,
        one.how,
        cluster.options.accounting,
        verdict.cells,
        verdict.lost,
        verdict.doubled,
        verdict.identical,
        len(verdict.left_over),
        verdict.attempts,
        round(time.monotonic() - start, 1),
        said,
    )


def live_or_none(stage: Stage) -> list[job_states.Job]:
    """Live jobs, none where Slurm does not answer."""
    with contextlib.suppress(MetabenchError, ClusterError):
        return stage.live()
    return []


def forget_plugin() -> None:
    """Let the next stage load its own copy of the method."""
    from metabench.core.registry import methods

    sys.modules.pop("metabench_plugin_paced", None)
    methods._classes.pop("paced", None)


@contextlib.contextmanager
def running_cluster(home: Path, options: Options) -> Iterator[Cluster]:
    """A cluster that is up inside, and gone afterwards."""
    cluster = Cluster(home, options)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    names = ["fault", "how", "accounting", "cells", "lost", "doubled", "identical", "left over"]
    names += ["attempts", "seconds", "verdict"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        values = asdict(row)
        values["accounting"] = "yes" if row.accounting else "no"
        lines.append("| " + " | ".join(str(v).replace("|", "/") for v in values.values()) + " |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Run the command line; 1 where a fault did harm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--accounting", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--base-port", type=int, default=18817)
    parser.add_argument("--home", type=Path, help="a folder for clusters and stores")
    parser.add_argument("--out", type=Path, help="a folder for faults.md and faults.json")
    given = parser.parse_args(words)
    unknown = [name for name in given.faults if name not in FAULTS]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; known: {', '.join(FAULTS)}")
    kinds = {"yes": [True], "no": [False], "both": [False, True]}[given.accounting]
    if missing := missing_packages(any(kinds)):
        parser.error(f"{', '.join(missing)} not installed: see local_cluster.py install")
    home = given.home or Path(tempfile.mkdtemp(prefix="metabench-faults-"))
    rows: list[Row] = []
    for accounting in kinds:
        place = home / ("with" if accounting else "without")
        options = Options(base_port=given.base_port + 1000 * accounting, accounting=accounting)
        with running_cluster(place / "cluster", options) as cluster:
            for name in given.faults or FAULTS:
                one = FAULTS[name]
                if (one.accounting_only and not accounting) or (one.root and os.geteuid()):
                    continue
                row = perform(one, cluster, place / name, Store(home / "reference"))
                rows.append(row)
                print(
                    f"{row.fault:<22} accounting {accounting!s:<5} {row.cells} cells, "
                    f"{row.lost} lost, {row.doubled} doubled, {row.identical} identical, "
                    f"{row.attempts} attempts, {row.seconds} s: {row.verdict}",
                    flush=True,
                )
                if given.out:
                    write(given.out, rows)
    return int(any(row.verdict != "ok" for row in rows))


def write(out: Path, rows: list[Row]) -> None:
    """faults.json and faults.md; rows of other faults that are there already stay."""
    out.mkdir(parents=True, exist_ok=True)
    known: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((out / "faults.json").read_text())["rows"]
    merged = {(r["accounting"], r["fault"]): Row(**r) for r in known}
    merged |= {(r.accounting, r.fault): r for r in rows}
    order = [*FAULTS]
    rows = sorted(
        (r for r in merged.values() if r.fault in FAULTS),
        key=lambda r: (r.accounting, order.index(r.fault)),
    )
    about = {
        "command": "python -m metabench.cluster_profiles.faults --out FOLDER",
        "python": platform.python_version(),
        "slurm": slurm_version(),
        "rows": [asdict(r) for r in rows],
    }
    (out / "faults.json").write_text(json.dumps(about, indent=1) + "\n")
    head = (
        "# Faults on a one-machine Slurm\n\n"
        f"Slurm {about['slurm']}, Python {about['python']}; made by `{about['command']}`.\n"
        "identical: equal in every bit to a run in one process without faults.\n\n"
    )
    (out / "faults.md").write_text(head + table(rows))


def slurm_version() -> str:
    """Of the commands here."""
    # Unlike sinfo it answers without a configuration.
    command = [program("slurmctld"), "-V"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"[\d.]+", done.stdout)
    return found.group() if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
