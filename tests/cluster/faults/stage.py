"""A cluster, a store, and cells that can be disturbed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metabench.cluster import profile
from metabench.cluster import submission as folder
from metabench.cluster.slurm import commands as slurm
from metabench.cluster.slurm import job_states
from metabench.cluster.submission import Attempt, Submission
from metabench.cluster.submitting import draft as drafting
from metabench.cluster.submitting import refusals
from metabench.cluster.submitting import submit as submitting
from metabench.cluster_profiles.local_cluster import Cluster
from metabench.contract.seeds import seed_for
from metabench.core.cell import Cell
from metabench.store.store import Store
from metabench.suites import planning

PAUSE, FOLDER, SLOW = (f"METABENCH_TEST_{name}" for name in ("PAUSE", "FOLDER", "SLOW"))
SECONDS = 420.0
"""How long the cells of one fault may take."""
STEPS = 16

PLUGIN = f'''
"""A method that takes its time, and stumbles where it is told to."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from metabench.core.registry import methods

_fsync = os.fsync


def slowly(fd):
    time.sleep(float(os.environ["{SLOW}"]))
    _fsync(fd)


def freeze_after_the_lease_is_checked():
    """SIGSTOP in the middle of Store.write: from then on others see no heartbeat."""
    from metabench.store.lease import Lease
    from metabench.store.store import Store

    write, held = Store.write, Lease.held

    def frozen(self):
        answer = held(self)
        if threading.current_thread() is threading.main_thread():
            Lease.held = held
            claim = json.loads(self.path.read_text())
            with self.path.open("r+") as file:  # as if on another machine, where no pid can be seen
                file.truncate()
                json.dump({{**claim, "place": "elsewhere"}}, file)
            note = Path(os.environ["{FOLDER}"], "frozen.tmp")
            note.write_text(f"{{os.getpid()}} {{self.path}}")
            note.rename(note.with_suffix(""))
            os.kill(os.getpid(), signal.SIGSTOP)
        return answer

    def written(self, *args, **words):
        Lease.held = frozen
        try:
            return write(self, *args, **words)
        finally:
            Lease.held = held

    Store.write = written


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
            if what.startswith("freeze"):  # after the next look at the lease that allows writing
                freeze_after_the_lease_is_checked()
            if what.startswith("fail"):
                raise ValueError("told to fail")
        return super().step(ctx, state)
'''


class Lost(Exception):
    """What was promised and did not come, in words."""


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
        answer = job_states.look(there, self.store, seconds=0)
        made = drafting.draft(
            self.planned(self.seeds),
            own,
            self.store,
            "faults",
            "laptop",
            states=states,
            busy=job_states.busy(self.store, answer),
            max_array=there.max_array(),
        )
        against = refusals.refusals(made, there, [])
        if against:
            raise refusals.Refusal("; ".join(against))
        return submitting.submit(made, there)

    def command(self, *words: str, under: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        """A command of metabench about the same cells, in a process of its own; ``under``: what
        starts it."""
        chosen = ["--task", "ridge", "--method", "paced", "--store", str(self.store.root)]
        chosen += [w for one in self.words() for w in ("--set", one)]
        chosen += ["--seeds", f"0-{max(self.seeds)}", "--plugin", str(self.plugin)]
        settings = {"parallel": 2, "query_seconds": 0, "checkpoint_seconds": 1.0}
        if "--cluster" in words:
            chosen += [w for k, v in settings.items() for w in ("--set", f"slurm.{k}={v}")]
        return subprocess.Popen(
            [*under, sys.executable, "-P", "-m", "metabench", *words, *chosen],
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

    def at_work(self, submission: Submission) -> tuple[folder.NodeStatus, Attempt]:
        """A job that is in the middle of a cell, and its attempt at that cell."""

        def find() -> tuple[folder.NodeStatus, Attempt] | None:
            for node in folder.statuses(submission.folder).values():
                for key, at in node.running.items():
                    history = folder.attempts(submission.folder, key)
                    last = history[-1] if history else None
                    if last is None or last.end or last.step is None or node.ended:
                        continue
                    if last.job == node.job and at.phase != "starting":
                        return node, last
            return None

        found: tuple[folder.NodeStatus, Attempt] = self.until("a cell at work", find)
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
        return job_states.look(slurm.Slurm(self.profile()), self.store, seconds=0)

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
