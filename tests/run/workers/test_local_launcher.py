"""Many cells: workers that die, signals, other launchers, and what people see of it."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from metabench.cli import progress
from metabench.core.cell import Cell, make_cell, place_names
from metabench.core.errors import StoreError
from metabench.run.events import (
    CellWords,
    Elsewhere,
    Event,
    Finished,
    Interrupted,
    Progress,
    Quarantined,
    Refused,
    Retried,
    Started,
    Stopping,
)
from metabench.run.workers import local_launcher as module
from metabench.run.workers.local_launcher import Summary, launch
from metabench.run.workers.worker import WorkerOptions
from metabench.store.cell_folder import LEASE, RECORD
from metabench.store.files import BadFile
from metabench.store.record import Record
from metabench.store.store import Store

Start = Callable[..., subprocess.Popen[str]]

# A method that notes each start in a file and then does as it is told.
PLUGIN = '''
"""A method for tests."""
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import State
from metabench.core.costs import Meter
from metabench.core.registry import methods

@methods.register("told")
@dataclass(frozen=True)
class Told(GradientMethod):
    """Does what it is told."""
    folder: str = ""
    do: str = ""
    pause: float = 0.0

    @property
    def needs(self):
        return frozenset()

    def init(self, ctx):
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        if type(ctx.meter) is Meter:  # not the init that is thrown away to warm up
            with open(Path(self.folder, "starts"), "a") as file:
                file.write(f"{ctx.seeds.init} {os.getpid()} {gpu}\\n")
        return State(ctx.problem.init_outer())

    def step(self, ctx, state):
        time.sleep(self.pause)
        once = Path(self.folder, f"once-{ctx.seeds.init}")
        if self.do == "die" or (self.do == "die once" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "exit":
            os._exit(3)
        if self.do == "leave":
            sys.exit(0)
        if self.do == "error":
            raise ValueError("told to")
        if self.do == "hang":
            time.sleep(1000)
        return state, {"outer_loss": 1.0}

    def adapt(self, ctx, state, episode):
        return ctx.problem.init_inner(state.lam, episode)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "told.py"
    path.write_text(PLUGIN)
    monkeypatch.setenv("METABENCH_PLUGINS", str(path))
    from metabench.core import registry

    registry.load_plugins()
    yield path
    del sys.modules["metabench_plugin_told"]
    registry.methods._classes.pop("told")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def told(folder: Path, seed: int = 0, do: str = "", pause: float = 0.0, steps: int = 3) -> Cell:
    return make_cell(
        "ridge",
        "told",
        seed=seed,
        set={
            "method": {"folder": str(folder), "do": do, "pause": pause},
            "budget": {"outer_steps": steps, "eval_every": 1000},
        },
    )


def starts(folder: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (folder / "starts").read_text().splitlines())


def test_a_grid_is_run_whatever_single_cells_do(store: Store, plugin: Path, tmp_path: Path) -> None:
    cells = [told(tmp_path, i) for i in range(4)]
    bad = told(tmp_path, 9, "error")
    refused = make_cell("ridge", "maml", set={"budget": {"outer_steps": 1}})
    events: list[Event] = []
    summary = launch([bad, refused, *cells, cells[0]], store, listener=events.append)
    assert summary.count("done") == 4 and summary.count("failed") == 1
    assert "told to" in summary.records[bad.key].traceback
    assert list(summary.refused) == [refused.key] and not summary.remaining
    assert summary.exit_code == 1 and not summary.interrupted
    assert "4 done, 1 failed, 1 not applicable" in str(summary)
    assert set(starts(tmp_path).values()) == {1}
    assert {r.key for r in store.records()} == {c.key for c in [bad, *cells]}
    assert sum(isinstance(e, Started) for e in events) == 5
    assert not list(store.root.glob(f"*/*/{LEASE}"))

    again = launch(cells, store)
    assert again.exit_code == 0 and again.reused == {c.key for c in cells}
    assert sum(starts(tmp_path).values()) == 5


def test_a_store_that_takes_nothing_is_one_error_before_any_cell(
    plugin: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot make the folder"):
        launch([told(tmp_path, 0), told(tmp_path, 1)], Store(tmp_path / "file" / "runs"))
    assert not (tmp_path / "starts").exists()


def test_code_that_ends_the_process_fails_its_cell_alone(
    store: Store, plugin: Path, tmp_path: Path
) -> None:
    cells = [told(tmp_path, 0, "leave"), told(tmp_path, 1)]
    summary = launch(cells, store)
    assert [summary.records[cell.key].status for cell in cells] == ["failed", "done"]
    assert "its code ends the process: sys.exit(0)" in summary.records[cells[0].key].reason
    assert summary.exit_code == 1


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_try_of_one_cell(
    store: Store, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    doings = ["die once", "die", "error", "", "", ""]
    cells = [told(tmp_path, i, do, pause=0.1) for i, do in enumerate(doings)]
    refused = make_cell("ridge", "maml", set={"budget": {"outer_steps": 1}})
    events: list[Event] = []
    summary = launch([*cells, refused], store, jobs=2, listener=events.append, device="cpu")
    status = [summary.records[cell.key].status for cell in cells]
    assert status == ["done", "failed", "failed", "done", "done", "done"]
    assert "signal 9, SIGKILL" in summary.records[cells[1].key].reason
    assert {e.cell.seed for e in events if isinstance(e, Retried)} == {0, 1}
    assert list(summary.refused) == [refused.key]
    assert all(store.get(cell.key) == summary.records[cell.key] for cell in cells)
    assert store.problems() == [] and not list(store.root.glob(f"*/*/{LEASE}"))
    # Workers take turns on the GPUs.
    lines = (tmp_path / "starts").read_text().splitlines()
    assert {line.split()[2] for line in lines} == {"3", "5"}


@pytest.mark.slow
def test_a_device_with_a_number_is_not_pinned_away(
    store: Store, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch([told(tmp_path)], store, jobs=2, device="cpu:0").count("done") == 1
    (line,) = (tmp_path / "starts").read_text().splitlines()
    assert line.split()[2] == "3,5"


def test_a_step_that_never_ends_is_cut_off(
    store: Store, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    cell = told(tmp_path, 0, "hang")
    summary = launch([cell], store, jobs=2, time_limit=0.5)
    assert summary.records[cell.key].status == "timeout"
    assert "did not end" in summary.records[cell.key].reason


def test_damaged_files_are_told_of_and_their_cells_run(
    store: Store, plugin: Path, tmp_path: Path
) -> None:
    cells = [told(tmp_path, i) for i in range(2)]
    launch(cells, store)
    path = store.folder(cells[0].key) / RECORD
    path.write_bytes(path.read_bytes()[:100])
    events: list[Event] = []
    summary = launch(cells, store, listener=events.append)
    (bad,) = [e.bad for e in events if isinstance(e, Quarantined)]
    assert bad.path == path and summary.quarantined == [bad]
    assert summary.reused == {cells[1].key} and summary.exit_code == 0
    assert store.get(cells[0].key).status == "done"


def test_a_store_that_cannot_be_written_is_shown(
    store: Store, plugin: Path, tmp_path: Path
) -> None:
    cells = [told(tmp_path, i) for i in range(2)]
    store.root.mkdir()
    (store.root / cells[0].key[:2]).write_text("in the way")
    summary = launch(cells, store)
    assert list(summary.unsaved) == [cells[0].key] and summary.exit_code == 1
    assert summary.records[cells[1].key].status == "done"
    assert "1 not saved" in str(summary)


# Several launchers, signals: real processes

SCRIPT = """
import sys
from metabench.core.cell import make_cell
from metabench.run.workers.local_launcher import launch
from metabench.core.registry import load_plugins
from metabench.store.store import Store
from metabench.cli.progress import view

if __name__ == "__main__":
    load_plugins()
    root, folder, jobs, cells, pause, steps = sys.argv[1:]
    made = [
        make_cell("ridge", "told", seed=i, set={
            "method": {"folder": folder, "pause": float(pause)},
            "budget": {"outer_steps": int(steps), "eval_every": 1000},
        })
        for i in range(int(cells))
    ]
    with view(len(made), int(jobs)) as listener:
        summary = launch(made, Store(root), jobs=int(jobs), listener=listener)
    print(summary)
    sys.exit(summary.exit_code)
"""


def heard() -> None:
    """These tests may run under nohup, which has SIGHUP ignored in all that it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts launchers, each with its own group of processes; none outlives the test."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = []

    def begin(*arguments: object, terminal: int | None = None) -> subprocess.Popen[str]:
        root = str(tmp_path / "runs")
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), root, str(tmp_path), *map(str, arguments)],
                stdout=subprocess.PIPE if terminal is None else terminal,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=heard,
            )
        )
        return started[-1]

    yield begin
    for launcher in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        if launcher.stdout is not None:
            launcher.stdout.close()


def wait_for(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_launchers_share_a_grid(
    store: Store, plugin: Path, tmp_path: Path, start: Start
) -> None:
    launcher = start(1, 12, 0.02, 5)
    wait_for((tmp_path / "starts").exists)
    summary = launch([told(tmp_path, i, pause=0.02, steps=5) for i in range(12)], store)
    assert summary.exit_code == 0 and "12 done" in str(summary)
    out, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, out
    assert "12 done" in out
    found = starts(tmp_path)
    assert len(found) == 12 and set(found.values()) == {1}
    assert all(r.attempts == 1 for r in store.records())
    pids = {line.split()[1] for line in (tmp_path / "starts").read_text().splitlines()}
    assert pids == {str(launcher.pid), str(os.getpid())}


@pytest.mark.parametrize(
    ("jobs", "number", "group"),
    [
        pytest.param(1, signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, True, marks=pytest.mark.slow),
        (2, signal.SIGTERM, False),
        pytest.param(2, signal.SIGHUP, True, marks=pytest.mark.slow),  # a lost terminal
    ],
)
def test_a_signal_ends_the_launch_at_step_boundaries(
    store: Store, plugin: Path, tmp_path: Path, start: Start, jobs: int, number: int, group: bool
) -> None:
    launcher = start(jobs, 3, 0.05, 200)
    wait_for(lambda: (tmp_path / "starts").exists() and len(starts(tmp_path)) == jobs)
    time.sleep(0.3)
    # Ctrl-C reaches the whole group of processes; kill(1) only the one.
    (os.killpg if group else os.kill)(launcher.pid, number)
    out, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, out
    assert "run the same command again" in out and "Traceback" not in out
    assert out.count("checkpoint kept") == jobs
    assert out.count("interrupt again to end at once") == 1
    assert not list(store.root.glob(f"*/*/{LEASE}"))
    assert len(list(store.root.glob("*/*/checkpoint.pt"))) == jobs
    assert store.problems() == []


def test_what_cannot_be_printed_costs_no_cell(store: Store, plugin: Path, tmp_path: Path) -> None:
    def lost(event: Event) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert launch([told(tmp_path)], store, listener=lost).exit_code == 0


@pytest.mark.slow
def test_a_lost_terminal_costs_no_checkpoint(
    store: Store, plugin: Path, tmp_path: Path, start: Start
) -> None:
    """The system tells all its processes, the shell once more, and nothing can be printed there."""
    terminal, other_end = os.openpty()
    launcher = start(2, 2, 0.05, 2000, terminal=other_end)
    os.close(other_end)
    wait_for(lambda: (tmp_path / "starts").exists() and len(starts(tmp_path)) == 2)
    time.sleep(0.3)
    os.close(terminal)
    os.killpg(launcher.pid, signal.SIGHUP)
    os.kill(launcher.pid, signal.SIGHUP)
    launcher.wait(30)
    assert len(list(store.root.glob("*/*/checkpoint.pt"))) == 2
    assert not list(store.root.glob(f"*/*/{LEASE}"))


def test_a_hangup_is_counted_once_and_under_nohup_never(store: Store) -> None:
    before = signal.getsignal(signal.SIGHUP)
    options = WorkerOptions(str(store.root))
    try:
        for handler, expected in ((signal.SIG_DFL, 1), (signal.SIG_IGN, 0)):
            signal.signal(signal.SIGHUP, handler)
            launched = module._Launch(store, 1, lambda event: None, True, options)
            with launched.counting_signals():
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGHUP)
            assert launched.signals == expected
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_do_not_outlive_a_killed_launcher(
    store: Store, plugin: Path, tmp_path: Path, start: Start
) -> None:
    launcher = start(2, 2, 0.05, 2000)
    wait_for(lambda: (tmp_path / "starts").exists() and len(starts(tmp_path)) == 2)
    pids = [int(line.split()[1]) for line in (tmp_path / "starts").read_text().splitlines()]
    launcher.kill()
    launcher.communicate()

    def gone(pid: int) -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True

    wait_for(lambda: all(gone(pid) for pid in pids), 20)
    # They had the time to say where they stood.
    assert len(list(store.root.glob("*/*/checkpoint.pt"))) == 2
    assert not list(store.root.glob(f"*/*/{LEASE}"))


def test_a_cell_that_runs_elsewhere_is_left_alone(
    store: Store, plugin: Path, tmp_path: Path
) -> None:
    cells = [told(tmp_path, i) for i in range(2)]
    events: list[Event] = []
    with store.lease(cells[0].key):
        summary = launch(cells, store, listener=events.append, wait_elsewhere=False)
    assert summary.elsewhere == {cells[0].key} and summary.exit_code == 1
    assert [e.cell for e in events if isinstance(e, Elsewhere)] == [cells[0]]
    assert "1 running elsewhere" in str(summary)
    assert launch(cells, store).exit_code == 0


# What people see


def events_of_a_launch() -> list[Event]:
    cells = [Cell("ridge", "bilevel", "sgd", i) for i in range(5)]
    done, failed = (
        Record(key=c.key, cell=c, status=s, reason=r, cost={"seconds": 75.0})
        for c, s, r in ((cells[0], "done", ""), (cells[1], "failed", "ValueError: no"))
    )
    return [
        Quarantined(BadFile(Path("a/record.json"), "is garbled", Path("set-aside/x"))),
        Finished(replace(done, key=cells[4].key, cell=cells[4]), reused=True),
        Started(cells[0]),
        Started(cells[1], 7),
        Progress(cells[0], 10, 100, 0.1, "training", {"outer_loss": 0.25}),
        Finished(failed),
        Retried(cells[1], "its process died (signal 9)"),
        Refused(cells[2], "needs a head"),
        Elsewhere(cells[3], "process 7 on there"),
        Progress(cells[0], 60, 100, 0.6, "training", {}),
        Finished(done, unsaved="full"),
        Started(cells[1]),
        Stopping(),
        Interrupted(cells[1], 3),
    ]


def test_plain_lines_say_what_happened() -> None:
    out = io.StringIO()
    clock = iter(range(0, 10**6, 10))
    lines = progress.Lines(
        progress.Tally(5, 1, lambda: float(next(clock))), Console(file=out, width=300)
    )
    with lines as listener:
        for event in events_of_a_launch():
            listener(event)
    text = out.getvalue()
    for part in (
        "bad file: a/record.json: is garbled; quarantined as set-aside/x",
        "found in the store",
        "goes on from step 7",
        "failed: ValueError: no",
        "once more",
        "not applicable: needs a head",
        "running elsewhere (process 7 on there)",
        "done in 1 min 15 s; NOT SAVED: full",
        "stopping: every running cell keeps a checkpoint at its next step",
        "stopped at step 3, checkpoint kept",
        "4/5 cells, 2 done, 1 failed, 1 not applicable, 1 running elsewhere",
    ):
        assert part in text
    lines_of_text = text.splitlines()
    assert lines_of_text.count(lines_of_text[-1]) == 1 and text.count("quarantined") == 1


def test_the_last_count_stands_once() -> None:
    """After the last cell, and at the end of the launch."""
    out = io.StringIO()
    cell = Cell("ridge", "bilevel", "sgd", 3)
    with progress.view(1, 1, Console(file=out, width=300)) as listener:
        listener(Started(cell))
        listener(Finished(Record(cell.key, cell, "done", cost={"seconds": 1.0})))
    assert out.getvalue().splitlines()[-2:] == [f"{cell}: done in 1.0 s", "1/1 cell, 1 done"]


def test_a_launch_names_places_of_the_suite_and_where_a_cell_failed() -> None:
    cell = Cell("ridge", "bilevel", "sgd", 3)
    names = place_names([("reverse", "one", cell), ("reverse", "two", cell)])
    words = CellWords(names, "else where")
    called = f"reverse/one, reverse/two seed 3 [{cell.key[:10]}]"
    trace = """Traceback (most recent call last):
  File "/home/me/metabench/run/loop.py", line 7, in train
    step()
  File "/home/me/mine.py", line 12, in step
    raise
  File "/venv/lib/python3.11/site-packages/torch/nn/a.py", line 5, in b
ValueError: no
in two lines
"""
    record = Record(cell.key, cell, "failed", "ValueError: no\nin two lines", trace)
    out = io.StringIO()
    with progress.view(1, 1, Console(file=out, width=300), words=words) as listener:
        for event in (Started(cell), Progress(cell, 1, 2, 0.5), Finished(record)):
            listener(event)
    lines = out.getvalue().splitlines()
    assert lines[0] == f"{called}: starts"
    at = lines.index(f"{called}: failed: ValueError: no")
    command = f"metabench logs {cell.key[:10]} --store 'else where'"
    assert lines[at + 2] == f"    raised at /home/me/mine.py:12; traceback: {command}"
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True)
    with progress.view(1, 1, console, words=words) as listener:
        assert isinstance(listener, progress.Live)
        listener(Started(cell))
        console.print(listener.render())
    assert called in out.getvalue()


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        ("", ""),
        ("MemoryError", ""),
        ('  File "/usr/lib/python3.11/ast.py", line 5, in b\n', "/usr/lib/python3.11/ast.py:5"),
        (
            '  File "/v/lib/python3.11/site-packages/metabench/run/loop.py", line 2, in a\n'
            '  File "/v/lib/python3.11/site-packages/torch/b.py", line 5, in b\n',
            "/v/lib/python3.11/site-packages/metabench/run/loop.py:2",
        ),
    ],
)
def test_where_an_error_was_raised(trace: str, place: str) -> None:
    cell = Cell("ridge", "bilevel", "sgd", 3)
    assert Record(cell.key, cell, "failed", "no", trace).raised_at == place


def test_the_live_view_draws_every_state() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True)
    with progress.view(5, 1, console) as listener:
        assert isinstance(listener, progress.Live)
        for event in events_of_a_launch():
            listener(event)
            console.print(listener.render())
    text = out.getvalue()
    assert "10/100" in text and "outer_loss 0.25" in text and "60/100" in text
    assert isinstance(progress.view(1, 1, Console(file=io.StringIO())), progress.Lines)


def test_time_left() -> None:
    now = [0.0]
    tally = progress.Tally(4, 2, lambda: now[0])
    cells = [Cell("ridge", "bilevel", "sgd", i) for i in range(4)]
    assert tally.seconds_left() is None
    tally.take(Started(cells[0], 50))
    tally.take(Progress(cells[0], 50, 100, 0.5))
    now[0] = 10.0
    tally.take(Progress(cells[0], 75, 100, 0.75))
    # A quarter took 10 s: 10 s are left of this one, 3 whole ones of 40 s wait, two at a time.
    assert tally.seconds_left() == pytest.approx((10 + 3 * 40) / 2)
    now[0] = 20.0
    tally.take(Finished(Record(key=cells[0].key, cell=cells[0], status="done")))
    assert tally.seconds_left() == pytest.approx(3 * 40 / 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.23, "4.2 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_exit_codes() -> None:
    assert Summary().exit_code == 0
    assert Summary(interrupted=True).exit_code == 130
    assert str(Summary()) == "0 done"
    left = Summary(remaining=[make_cell("quadratic", "fixed", set={"budget": {"outer_steps": 1}})])
    assert left.exit_code == 1, "a worker was told to end, and its cell has no record"
    assert str(left) == "0 done, 1 left"
