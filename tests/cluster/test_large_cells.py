"""One cell on several tasks of a job: what Slurm is asked for, and a real one that does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.faults.oracle import judge
from cluster.faults.stage import Stage

from metabench.cluster import submission as folder
from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import Partition, beyond
from metabench.cluster.submission import Group, Member
from metabench.cluster.submitting import draft as drafting
from metabench.core.cell import Cell, make_cell
from metabench.core.environment import provenance
from metabench.run.runner import run_cell
from metabench.store.store import Store
from metabench.suites.planning import Planned

CELL = make_cell("glyphs", "maml", set={
    "task": {"filters": 4, "meta_batch": 4, "queries": 2}, "method": {"inner_steps": 2},
    "budget": {"outer_steps": 3, "eval_every": 3, "valid_episodes": 3, "test_episodes": 3},
})  # fmt: skip


def draft(tmp_path: Path, **settings: object) -> drafting.Draft:
    profile = Profile(**{"name": "x", "cpus": 2, **settings})  # type: ignore[arg-type]
    cell = Cell("ridge", "bilevel", "sgd", 0)
    return drafting.draft([Planned("r", "c", cell, "open")], profile, Store(tmp_path), "s", "b")


def test_nodes_and_ranks_are_tasks_of_one_job(tmp_path: Path) -> None:
    script = draft(tmp_path, ranks=6, nodes=2, gpus=3).script(0)
    lines = script.splitlines()
    wanted = {"nodes": 2, "ntasks-per-node": 3, "gpus-per-node": 3, "cpus-per-task": 2}
    for name, value in wanted.items():
        assert f"#SBATCH --{name}={value}" in lines
    assert " --ntasks=6 --cpus-per-task=2 --kill-on-bad-exit=1 " in script
    one = draft(tmp_path).script(0)
    assert "#SBATCH --nodes=1" in one and " --ntasks=1 " in one and "kill-on-bad" not in one


def test_what_ranks_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks 3 on nodes 2: give each node as many"):
        Profile(ranks=3, nodes=2)
    with pytest.raises(ValueError, match="at_once 2 with ranks 2"):
        Profile(ranks=2, at_once=2)
    node = Partition("main", 4, 64.0, {"gpu": 2}, 60 * 24, True)
    assert beyond(Profile(ranks=4, nodes=2, cpus=2), [node]) == []
    (said,) = beyond(Profile(ranks=4, cpus=2), [node])
    assert said == "cpus 2 for each of 4 ranks: a node of partition main has 4"


@pytest.mark.slow
def test_tasks_of_a_job_work_on_one_cell(tmp_path: Path) -> None:
    """The node worker's own entries, as two processes of a job without Slurm."""
    run, store = tmp_path / "run", Store(tmp_path / "runs")
    for name in ("cells", "elements"):
        (run / name).mkdir(parents=True)
    sha = provenance.digest(provenance.files())
    group = Group([Member("r", "c", CELL)], 60, 1.0, str(store.root), sha, ranks=2)
    group.write(run / "group-0.json")
    code = "import sys; from metabench.cluster import node_worker; "
    calls = ["node_worker.work(sys.argv[1], 0)", "node_worker.attend(sys.argv[1], 0, 1)"]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code + call, str(run)],
            env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_PROCID": str(rank),
                 "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, call in enumerate(calls)
    ]  # fmt: skip
    try:
        said = [task.communicate(timeout=120)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], said
    record = store.get(CELL.key)
    assert record is not None and record.environment["ranks"] == 2
    assert record.outcome() == run_cell(CELL, device="cpu").outcome()
    assert "rank 1" in said[1]


@pytest.mark.slow
def test_cells_on_two_tasks_are_those_of_one_and_a_warning_is_acted_on_by_both(
    stage: Stage,
) -> None:
    submission = stage.submit(seeds=2, pause=0.3, ranks=2, parallel=1)
    script = (submission.folder / "jobs" / "0" / "sbatch.sh").read_text()
    assert "--ntasks=2" in script and "#SBATCH --ntasks-per-node=2" in script
    node, _ = stage.at_work(submission)
    stage.ask("scancel", "--signal=USR2", node.job)
    stage.finish()
    verdict = judge(stage)
    assert verdict.good and verdict.attempts > 2
    for cell in stage.cells():
        record = stage.store.get(cell.key)
        assert record is not None and record.environment["ranks"] == 2
    stopped = [
        attempt
        for cell in stage.cells()
        for attempt in folder.attempts(submission.folder, cell.key)
        if attempt.end == "stopped"
    ]
    assert stopped, "no cell kept a checkpoint at the warning"
