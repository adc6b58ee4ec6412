"""SIGKILL at any moment: a run that goes on ends with the bits of an undisturbed one."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metabench.core.cell import Cell, make_cell
from metabench.store.cell_folder import CHECKPOINT, CURVE, LAM, RECORD
from metabench.store.record import curve_outcome
from metabench.store.store import Store

# One process imports torch and forks the runs, so that kills are cheap and fall on real work.
FORKS = """
import os, random, signal, sys, time
import torch
from metabench.core.cell import make_cell
from metabench.run.runner import run_cell
from metabench.store.store import Store
from metabench.run import determinism
from metabench.run.attempts import checkpoint

torch.set_num_threads(1)
determinism.facts()
root, seed, least = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
budget = {"outer_steps": 40, "eval_every": 9, "test_episodes": 3}
cells = [
    make_cell("ridge", "bilevel", solver="adam", set={"budget": budget}),
    make_cell("ridge", "bilevel", solver="momentum", set={
        "task": {"carried": True}, "method": {"truncate": 2}, "budget": budget}),
    make_cell("quadratic", "maml", set={
        "task": {"formulation": "init", "dim": 5}, "method": {"inner_steps": 3, "test_steps": 5},
        "budget": budget}),
]
kills = 0
for cell in cells:
    run_cell(cell)  # once for all that is slow the first time
    start = time.monotonic()
    run_cell(cell, Store(root + "/whole"))
    whole = time.monotonic() - start
    done = False
    here = 0
    while not done:
        pid = os.fork()
        if pid == 0:
            if here == 0:  # one kill, however busy the machine is, with something to go on from
                save = checkpoint.save
                def save_and_die(*args):
                    save(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                checkpoint.save = save_and_die
            run_cell(cell, Store(root + "/pieces"), checkpoint_seconds=0)
            os._exit(0)
        # Enough time for some steps; after a while enough for all, so that the test ends.
        if here:
            time.sleep(rng.uniform(0.0, 0.5 * whole) if here < 2 * least else 60 * whole)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, status
        here += killed
        done = not killed
    assert here >= least, here
    kills += here
print(kills)
"""


def same_stores(whole: Store, pieces: Store, cells: list[Cell]) -> None:
    """Every cell is done in both, with the same outcome to the last bit, and nothing else is
    left."""
    for cell in cells:
        one, two = whole.get(cell.key), pieces.get(cell.key)
        assert one is not None and two is not None
        assert one.status == "done", one.reason
        assert one.outcome() == two.outcome()
        assert curve_outcome(whole.curve(one)) == curve_outcome(pieces.curve(two))
        a, b = (store.folder(cell.key) / LAM for store in (whole, pieces))
        assert a.read_bytes() == b.read_bytes()
        assert set(os.listdir(pieces.folder(cell.key))) == {RECORD, CURVE, LAM}
    assert pieces.problems() == []
    assert {path.name for path in pieces.root.iterdir()} == {cell.key[:2] for cell in cells}


@pytest.mark.slow
def test_a_cell_killed_again_and_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path), "1", "3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 9
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    pieces.repair()  # a kill may fall between the last record and the end of its lease
    same_stores(whole, pieces, [record.cell for record in whole.records()])
    assert any(record.attempts > 1 for record in pieces.records())


LAUNCH = """
import json, sys
from metabench.run.workers.local_launcher import launch
from metabench.core.cell import Cell
from metabench.store.store import Store

if __name__ == "__main__":
    cells = [Cell(**cell) for cell in json.loads(sys.argv[2])]
    summary = launch(cells, Store(sys.argv[1]), jobs=2, checkpoint_seconds=0)
    print(summary)
    sys.exit(summary.exit_code)
"""


class Launches:
    """Two-process launches of one grid on one store, one after another."""

    def __init__(self, root: Path, cells: list[Cell]) -> None:
        import json
        from dataclasses import asdict

        self.store, self.cells = Store(root), cells
        self.command = [
            sys.executable,
            "-c",
            LAUNCH,
            str(root),
            json.dumps([asdict(c) for c in cells]),
        ]
        self.process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Start a launch unless one is going on."""
        if self.process is not None:
            if self.process.poll() is None:
                return
            out, _ = self.process.communicate()
            assert self.process.returncode != 0, f"done before all kills had fallen\n{out}"
        self.process = subprocess.Popen(
            self.command,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def working(self) -> list[int]:
        """The processes that hold cells now and have come as far as a checkpoint."""
        holders = (
            self.store.holder(cell.key)
            for cell in self.cells
            if (self.store.folder(cell.key) / CHECKPOINT).exists()
        )
        return [holder.pid for holder in holders if holder is not None]

    def wait_for_work(self, seconds: float) -> list[int]:
        """Until there is a process at work, or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pids = self.working()
            if pids:
                return pids
            time.sleep(0.01)
        return []

    def kill_all(self) -> None:
        """The launcher and all its workers at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None

    def finish(self) -> None:
        """A last launch, left in peace."""
        self.begin()
        assert self.process is not None
        out, _ = self.process.communicate()
        if self.process.returncode != 0:  # this one had lost workers: what failed is run again
            self.process = None
            self.begin()
            out, _ = self.process.communicate()
        assert self.process.returncode == 0, out
        self.process = None


@pytest.fixture
def launches(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Launches]:
    made = Launches(tmp_path / "pieces", grid(*request.param))
    yield made
    made.kill_all()


def grid(size: int, steps: int) -> list[Cell]:
    budget = {"outer_steps": steps, "eval_every": 50}
    crossings = [
        ("ridge", "bilevel", {}),
        ("ridge", "bilevel", {"task": {"carried": True}, "method": {"inner_steps": 4}}),
        ("quadratic", "maml", {"task": {"formulation": "init", "dim": 3}}),
        ("ridge", "random", {"method": {"inner_steps": 5}}),
    ]
    return [
        make_cell(task, method, seed=seed, set={**set_, "budget": budget})
        for seed in range(size)
        for task, method, set_ in crossings
    ]


def kill(launches: Launches, kills: int, rng: random.Random) -> None:
    """Alternately a single worker and everything at once, at random moments."""
    for i in range(kills):
        launches.begin()
        # Now and then while processes are still starting, else while they work.
        pids = launches.wait_for_work(rng.uniform(0, 4) if rng.random() < 0.1 else 60)
        time.sleep(rng.uniform(0, 0.5))
        if i % 2 or not pids:
            launches.kill_all()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(launches.working() or pids), signal.SIGKILL)


def check(launches: Launches, tmp_path: Path, kills: int) -> None:
    from metabench.run.runner import run_cell

    kill(launches, kills, random.Random(7))
    assert len(launches.store.records()) < len(launches.cells), "nothing was left to recover"
    launches.finish()
    whole = Store(tmp_path / "whole")
    for cell in launches.cells:
        run_cell(cell, whole)
    same_stores(whole, launches.store, launches.cells)
    assert any(record.environment["resumed"] for record in launches.store.records())


@pytest.mark.slow
@pytest.mark.parametrize("launches", [(1, 300)], indirect=True)
def test_a_launch_killed_six_times_ends_as_if_undisturbed(
    launches: Launches, tmp_path: Path
) -> None:
    check(launches, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("launches", [(3, 1500)], indirect=True)
def test_a_launch_killed_fifty_times_ends_as_if_undisturbed(
    launches: Launches, tmp_path: Path
) -> None:
    check(launches, tmp_path, 50)
