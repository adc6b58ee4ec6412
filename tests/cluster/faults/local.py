"""Random faults of runs on one machine, many in a command, and what became of the cells.

Each launcher is forked from this process, which has torch ready: a fault then costs about a second.
What a fault does is drawn from the seed and its number alone; when it strikes is a moment of a
clock, so that a second run of the same number strikes at nearly the same place.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metabench.core.cell import Cell, make_cell
from metabench.core.errors import MetabenchError
from metabench.run.events import Event, Finished
from metabench.run.workers.local_launcher import launch
from metabench.run.workers.process import held_back
from metabench.store.cell_folder import CHECKPOINT, LEASE
from metabench.store.store import Store

from .oracle import compared, left_over
from .stage import PAUSE, PLUGIN

PATIENCE = 60.0
"""Seconds after which a launcher hangs."""
MOMENT = 0.8
"""Seconds of an undisturbed launch, about."""
CRASHED = 70
"""Exit code of a launcher that ended with a traceback."""


class Harm(Exception):
    """What went wrong, in words."""


@dataclass
class Trial:
    """A store, two cells, and the launchers that come and go over them."""

    store: Store
    cells: list[Cell]
    draw: random.Random
    live: set[int] = field(default_factory=set)
    launches: int = 0
    redone: bool = False
    """Whether a finished record was damaged, so that its cell is rightly run once more."""

    @property
    def finished(self) -> Path:
        """A line for each record that a launcher said it had made."""
        return self.store.root.with_suffix(".finished")

    def start(self, jobs: int = 1, largest: int | None = None) -> int:
        """A launcher; ``largest``: bytes that a file of it may have."""
        self.launches += 1
        with held_back(signal.SIGINT):  # until the launcher can tell that it was interrupted
            pid = os.fork()
            if pid == 0:
                self._launcher(jobs, largest)
        self.live.add(pid)
        return pid

    def _launcher(self, jobs: int, largest: int | None) -> None:
        code = CRASHED
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            log = os.open(self.store.root.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_RDWR)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
            found = launch(
                self.cells, self.store, jobs=jobs, listener=self._note, checkpoint_seconds=0
            )
            code = found.exit_code
        except MetabenchError:
            code = 1
        except KeyboardInterrupt:  # before the first cell
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _note(self, event: Event) -> None:
        if isinstance(event, Finished) and not (event.reused or event.unsaved):
            with contextlib.suppress(OSError), self.finished.open("a") as file:
                file.write(f"{event.record.key} {event.record.status}\n")

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal, where the launcher is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait(self, pid: int) -> int:
        """The exit code of a launcher; raises Harm where it hangs or ended with a traceback."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.live.discard(pid)
                if os.waitstatus_to_exitcode(status) == CRASHED:
                    said = self.store.root.with_suffix(".log").read_text(errors="replace")
                    raise Harm(f"a traceback: {said.strip().splitlines()[-1]}")
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise Harm("a launcher hangs")

    def finish(self) -> None:
        """Launch undisturbed until all is done: once, where what was left behind can be used."""
        for _ in range(2):
            if self.wait(self.start()) == 0:
                return
        raise Harm("two undisturbed launches did not finish the cells")

    def pause(self, most: float = MOMENT) -> None:
        """A moment."""
        time.sleep(self.draw.uniform(0, most))

    def end(self) -> None:
        """End whatever is left."""
        for pid in self.live:
            self.signal(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


Act = Callable[[Trial], None]
KINDS: dict[str, tuple[str, int, Act]] = {}
"""Name to what it does, how often it is drawn, and how."""


def kind(weight: int) -> Callable[[Act], Act]:
    """Enter a function under its name."""

    def enter(act: Act) -> Act:
        KINDS[act.__name__] = ((act.__doc__ or "").strip().rstrip("."), weight, act)
        return act

    return enter


@kind(5)
def killed(trial: Trial) -> None:
    """SIGKILL of the launcher, one to three times."""
    for _ in range(trial.draw.randint(1, 3)):
        pid = trial.start()
        trial.pause()
        trial.signal(pid, signal.SIGKILL)
        trial.wait(pid)


@kind(4)
def terminated(trial: Trial) -> None:
    """SIGTERM, or Ctrl-C once or twice."""
    pid = trial.start()
    trial.pause()
    number = trial.draw.choice([signal.SIGTERM, signal.SIGINT])
    for _ in range(trial.draw.randint(1, 2)):
        trial.signal(pid, number)
        trial.pause(0.05)
    trial.wait(pid)


@kind(3)
def stopped(trial: Trial) -> None:
    """SIGSTOP, another launcher meanwhile, then SIGCONT."""
    first = trial.start()
    trial.pause()
    trial.signal(first, signal.SIGSTOP)
    second = trial.start()
    trial.pause()
    trial.signal(first, signal.SIGCONT)
    trial.wait(first)
    trial.wait(second)


@kind(4)
def taken_over(trial: Trial) -> None:
    """SIGSTOP until another has taken over, as from a machine that slept, then SIGCONT."""
    first = trial.start()
    trial.pause()
    trial.signal(first, signal.SIGSTOP)
    for claim in trial.store.root.glob(f"*/*/{LEASE}"):
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(claim.read_text())
            with claim.open("r+") as file:
                file.truncate()
                json.dump({**told, "place": "elsewhere"}, file)
            os.utime(claim, (time.time() - 1000, time.time() - 1000))
    second = trial.start()
    trial.pause(2 * MOMENT)
    trial.signal(first, signal.SIGCONT)
    trial.wait(first)
    trial.wait(second)


@kind(4)
def disk_full(trial: Trial) -> None:
    """A disk that takes no file above a size, then room again."""
    trial.wait(trial.start(largest=int(10 ** trial.draw.uniform(0, 4.5))))


@kind(5)
def damaged(trial: Trial) -> None:
    """A run to its end or to SIGKILL, then files of the store cut, overwritten, emptied, halved."""
    pid = trial.start()
    trial.pause(2 * MOMENT)
    trial.signal(pid, signal.SIGKILL)
    trial.wait(pid)
    files = sorted(f for f in trial.store.root.glob("*/*/*") if f.is_file())
    for file in trial.draw.sample(files, min(len(files), trial.draw.randint(1, 2))):
        trial.redone = trial.redone or file.name != CHECKPOINT
        data = file.read_bytes()
        cut = trial.draw.randrange(len(data) + 1)
        spoilt = [data[:cut], data[:cut] + b"\0" * (len(data) - cut), b"", os.urandom(len(data))]
        how = trial.draw.randrange(5)
        if how < 4:
            file.write_bytes(spoilt[how])
            # A lease that names nobody is over after two minutes: they are over.
            os.utime(file, (time.time() - 1000, time.time() - 1000))
        else:
            file.with_name(f".{file.name}.{trial.draw.getrandbits(32):x}.tmp").write_bytes(
                data[:cut]
            )


@kind(4)
def two_launchers(trial: Trial) -> None:
    """Two launchers at the same moment, one of them perhaps killed."""
    pids = [trial.start() for _ in range(2)]
    if trial.draw.random() < 0.5:
        trial.pause()
        trial.signal(trial.draw.choice(pids), signal.SIGKILL)
    for pid in pids:
        trial.wait(pid)


@kind(1)
def worker_killed(trial: Trial) -> None:
    """SIGKILL or SIGTERM of a worker process of a launcher with two."""
    pid = trial.start(jobs=2)
    trial.pause(8.0)
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            number = trial.draw.choice([signal.SIGKILL, signal.SIGTERM])
            trial.signal(int(trial.draw.choice(children)), number)
    trial.wait(pid)


@dataclass
class Row:
    """A line of the table: all faults of a kind on a file system."""

    kind: str
    how: str
    place: str
    faults: int = 0
    cells: int = 0
    lost: int = 0
    doubled: int = 0
    identical: int = 0
    left_over: int = 0
    launches: int = 0
    seconds: float = 0.0
    verdict: str = "ok"


def run(
    count: int, seed: int, places: Sequence[tuple[str, Path]], kinds: Sequence[str] = ()
) -> Iterator[tuple[int, Row]]:
    """Inject ``count`` faults, the file systems of ``places`` (a name, a folder) taking turns;
    after each its number and the row that it belongs to."""
    from metabench.run import determinism

    cells = _cells(places[0][1])
    determinism.facts()  # asks git, which would take longer than a cell
    reference = Store(places[0][1] / "reference")
    if os.fork() == 0:  # no thread of a run may be there when launchers are forked
        compared(cells, reference, reference)
        _undisturbed(cells, reference)
    os.wait()
    names = [*kinds] or [*KINDS]
    rows: dict[tuple[str, str], Row] = {}
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        name = draw.choices(names, [KINDS[n][1] for n in names])[0]
        title, folder = places[number % len(places)]
        row = rows.setdefault((name, title), Row(name, KINDS[name][0], title))
        trial = Trial(Store(folder / f"{number}-{name}"), cells, draw)
        _inject(trial, KINDS[name][2], row, number, reference)
        yield number, row


def _undisturbed(cells: Sequence[Cell], reference: Store) -> None:
    from metabench.run.runner import run_cell

    try:
        for cell in cells:
            run_cell(cell, reference)
    finally:
        os._exit(0)


def _inject(trial: Trial, act: Act, row: Row, number: int, reference: Store) -> None:
    start, said = time.monotonic(), ""
    try:
        act(trial)
        trial.finish()
    except Harm as harm:
        said = str(harm)
    finally:
        trial.end()
    lost, identical = compared(trial.cells, trial.store, reference)
    left = left_over(trial.store)
    lines = trial.finished.read_text().split("\n") if trial.finished.exists() else []
    made = Counter(line for line in lines if line.endswith(" done"))
    doubled = 0 if trial.redone else sum(n > 1 for n in made.values())
    row.faults += 1
    row.cells += len(trial.cells)
    row.lost += lost
    row.doubled += doubled
    row.identical += identical
    row.left_over += len(left)
    row.launches += trial.launches
    row.seconds = round(row.seconds + time.monotonic() - start, 1)
    if not said and (lost or doubled or left or identical < len(trial.cells)):
        said = f"{lost} lost, {doubled} doubled, {identical} identical, left over: {left}"
    if said:
        row.verdict = f"fault {number}: {said}"
    else:
        shutil.rmtree(trial.store.root, ignore_errors=True)
        for suffix in (".log", ".finished"):
            trial.store.root.with_suffix(suffix).unlink(missing_ok=True)


def _cells(folder: Path) -> list[Cell]:
    from metabench.core.registry import load_plugin

    plugin = folder / "paced.py"
    plugin.write_text(PLUGIN)
    os.environ["METABENCH_PLUGINS"], os.environ[PAUSE] = "", "0.02"
    load_plugin(plugin)
    limits = {"outer_steps": 12, "eval_every": 4, "valid_episodes": 2, "test_episodes": 2}
    return [make_cell("ridge", "paced", seed=seed, set={"budget": limits}) for seed in (0, 1)]
