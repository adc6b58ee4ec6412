"""Planning and running a suite, and its status."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typed_commands import BAD_METHOD, SUITE, metabench

from metabench.store import files
from metabench.store.store import Store


def test_plan_is_a_dry_run(folder: Path) -> None:
    typed = metabench("plan", "small.toml")
    assert typed.code == 0
    assert ["reverse", "one", "0, 1", "open"] in typed.rows
    assert typed.rows[-2:] == [
        ["8 cells: 4 open, 4 not applicable"],
        ["to run: 4 cells; 4 of unknown cost"],
    ]
    assert "maml needs a lam that is the initial value" in typed.out
    assert sorted(p.name for p in folder.iterdir()) == ["small.toml"]


def test_a_run_of_nothing_says_why(folder: Path) -> None:
    typed = metabench("run", "small.toml", "--only", "maml")
    assert typed.code == 0 and "4 not applicable" in typed.err
    assert "not applicable (4 cells): maml needs a lam that is the initial value" in typed.err
    noisy = ["--task", "ridge", "--method", "pbgd", "--solver", "langevin", "--budget", "smoke"]
    for verb in ("plan", "run"):
        typed = metabench(verb, *noisy)
        assert "without noise: langevin adds some" in typed.out + typed.err
    assert not (folder / "results").exists()


@pytest.mark.slow
def test_a_cell_that_two_columns_share_is_counted_once(folder: Path) -> None:
    twice = SUITE.replace("[[rows]]", '[[columns]]\nid = "again"\ntask = "quadratic"\n[[rows]]', 1)
    (folder / "twice.toml").write_text(twice)
    assert "2/2 cells, 2 done" in metabench("run", "twice.toml", "--budget", "smoke").err


@pytest.mark.slow
def test_a_crossing_without_a_suite(folder: Path) -> None:
    words = [
        "--task",
        "quadratic",
        "--method",
        "bilevel",
        "--method",
        "fixed",
        "--budget",
        "smoke",
        "--set",
        "budget.outer_steps=1",
        "--seeds",
        "3",
    ]
    typed = metabench("run", *words)
    assert typed.code == 0, typed.err
    assert {r.cell.seed for r in Store().records()} == {3}
    assert {r.cell.budget["outer_steps"] for r in Store().records()} == {1}
    assert "fixed" in metabench("table", *words).out
    refused = metabench("run", "small.toml", "--task", "quadratic")
    assert refused.code == 2 and "not both" in refused.err


def test_settings_reach_the_cells(folder: Path) -> None:
    metabench(
        "run",
        "small.toml",
        "--budget",
        "smoke",
        "--only",
        "reverse/one",
        "--set",
        "method.inner_lr=0.05",
        "--set",
        "one.a=3",
        "--seeds",
        "5",
    )
    (record,) = Store().records()
    assert record.cell.method_settings["inner_lr"] == 0.05
    assert record.cell.task_settings["a"] == 3.0
    assert record.cell.seed == 5


def test_failed_cells_are_told_with_their_traceback(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD_METHOD)
    words = ["--task", "quadratic", "--method", "bad", "--budget", "smoke", "--plugin", "bad.py"]
    typed = metabench("run", *words)
    assert typed.code == 1
    raised = f"raised at {folder / 'bad.py'}:"
    (failed,) = Store(folder / "results" / "runs").records()
    named = f"bad/quadratic seed 0 [{failed.key[:10]}]: failed: RuntimeError: no way\n"
    assert named + f"    {raised}" in typed.err
    command = typed.err.partition("; traceback: ")[2].splitlines()[0]
    logs = metabench(*shlex.split(command)[1:])
    assert logs.code == 0 and "Traceback (most recent call last)" in logs.out
    assert 'raise RuntimeError("no way")' in logs.out
    assert metabench("run", *words, "--set", "bad.how=diverge").code == 1
    status = metabench("status", *words)
    assert f"RuntimeError: no way ({raised}" in status.out and "--tracebacks" in status.out
    assert "Traceback" not in status.out
    keys = {r.key[:10] for r in Store(folder / "results" / "runs").records()}
    assert sum(key in status.out for key in keys) == 1, "what logs is to be given"
    status = metabench("status", *words, "--tracebacks")
    assert "Traceback (most recent call last)" in status.out and "in step" in status.out
    assert named.rstrip() in status.out
    everything = metabench("status", "--plugin", "bad.py")
    assert "diverged: the sky fell" in everything.out
    assert "1 failed" in metabench("table", *words).out


def test_damaged_files_are_told(folder: Path) -> None:
    metabench("run", "small.toml", "--budget", "smoke", "--only", "reverse/one")
    (path,) = (folder / "results" / "runs").glob("*/*/record.json")
    path.write_text(path.read_text()[:100])
    status = metabench("status", "small.toml", "--budget", "smoke").out
    assert f"bad file: {path}" in status and "cannot be read as a record" in status
    table = metabench("table", "small.toml", "--budget", "smoke")
    assert f"bad file: {path}" in table.err and "bad file" not in table.out
    typed = metabench("run", "small.toml", "--budget", "smoke", "--only", "reverse/one")
    assert typed.code == 0 and "quarantined" in typed.err
    assert list((folder / "results" / "runs" / "set-aside").iterdir())


def test_a_cell_that_is_closed_to_us_is_told_and_the_others_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's run with umask 077."""
    crossing = ["--task", "ridge", "--method", "bilevel", "--budget", "smoke"]
    words = [*crossing, "--set", "budget.outer_steps=1"]
    assert metabench("run", *words, "--seeds", "1").code == 0
    (theirs,) = (path.parent for path in Store().root.glob("*/*/record.json"))

    def refusing(real: Callable[[Path], object]) -> Callable[[Path], object]:
        def look(path: Path) -> object:
            if theirs in (path, path.parent):
                raise files.Unreadable(path, PermissionError(13, "Permission denied"))
            return real(path)

        return look

    monkeypatch.setattr(files, "read", refusing(files.read))
    monkeypatch.setattr(files, "entries", refusing(files.entries))
    words += ["--seeds", "1,2"]
    told = f"{theirs}: cannot be read: Permission denied"
    plan = metabench("plan", *words)
    assert plan.code == 0 and "1 closed" in plan.out and f"chmod -R a+rX {theirs}" in plan.out
    typed = metabench("run", *words)
    assert typed.code == 1 and told in typed.err and "1 closed" in typed.err
    assert {r.cell.seed for r in Store().records()} == {2}
    assert told in metabench("status", *words).out
    table = metabench("table", *words)
    assert table.code == 0 and told in table.err


def test_missing_packages_and_data_are_told_with_their_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.py").write_text(
        BAD_METHOD.replace("how: str", "packages = ('no_such_package',)\n    how: str")
    )
    words = ["--task", "quadratic", "--method", "bad", "--budget", "smoke", "--plugin", "bad.py"]
    assert "repair it with: pip install no_such_package" in metabench("plan", *words).out
    for verb in ("run", "reproduce"):
        typed = metabench(verb, *words)
        assert typed.code == 1, "as where data is missing"
        assert "repair it with: pip install no_such_package" in typed.err
    assert "pip install no_such_package" in typed.out, "the table says why it is a hole"
    assert Store().records() == []


@pytest.mark.slow
def test_parallel_jobs(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metabench", "run", "small.toml", "--jobs", "2", "--store", "p"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(Store(folder / "p").records()) == 4


def test_watching_ends_where_nothing_runs_or_waits(  # type: ignore[no-untyped-def]
    type_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.cli.commands import running
    from metabench.suites.loading import load

    (item, *_) = load("quickstart").cells("smoke")
    held = Store(tmp_path / "runs").lease(item.cell.key)
    assert held is not None
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            held.release()

    monkeypatch.setattr(running.time, "sleep", nap)
    done = type_("status", "quickstart", "--budget", "smoke", "--watch")
    assert done.exit_code == 0, done.output
    assert naps == [running.WATCH_SECONDS] * 2
    assert done.output.count("1 running, 4 open") == 2 and done.output.count("5 open") == 1
