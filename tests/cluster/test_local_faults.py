"""Random faults of local runs: that they are injected, and that harm is seen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cluster.faults.local import KINDS
from cluster.faults.oracle import compared, left_over

from metabench.core.cell import make_cell
from metabench.run.runner import run_cell
from metabench.store.cell_folder import CHECKPOINT, LEASE
from metabench.store.store import Store

ROOT = Path(__file__).parents[2]
BUDGET = {"outer_steps": 2, "eval_every": 2, "valid_episodes": 1, "test_episodes": 1}


def test_the_judge_sees_what_is_lost_changed_or_left_behind(tmp_path: Path) -> None:
    cells = [make_cell("quadratic", "bilevel", seed=s, set={"budget": BUDGET}) for s in (0, 1)]
    reference, kept = Store(tmp_path / "reference"), Store(tmp_path / "runs")
    record = run_cell(cells[0], kept)
    assert compared(cells, kept, reference) == (1, 1), "one lost, one identical"
    assert left_over(kept) == []
    kept.folder(cells[0].key).joinpath("record.json").unlink()
    kept.write(replace(record, steps=record.steps + 1))
    assert compared(cells, kept, reference) == (1, 0), "the other has another result"
    place = kept.folder(cells[1].key)
    place.mkdir(parents=True)
    for name in (LEASE, CHECKPOINT, f".{LEASE}.1.tmp"):
        (place / name).touch()
    unreadable, *files = (Path(p).name for p in left_over(kept))
    assert unreadable == f"{LEASE}: cannot be read as a lease"
    assert set(files) == {LEASE, CHECKPOINT, f".{LEASE}.1.tmp"}


@pytest.mark.slow
def test_faults_of_local_runs_do_no_harm(tmp_path: Path) -> None:
    """One of each kind that takes no worker processes, by the command that draws hundreds."""
    words = ["--local", "9", "--seed", "1", "--on", str(tmp_path), "--out", str(tmp_path / "out")]
    kinds = [name for name in KINDS if name != "worker_killed"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.faults", *kinds, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 faults" in done.stdout and (tmp_path / "out" / "local.md").exists()
