"""Every CI run: cells through a real Slurm, in under a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.faults.oracle import judge
from cluster.faults.stage import Stage

from metabench.cluster import profile
from metabench.cluster import submission as folder
from metabench.cluster.cell_states import standings
from metabench.cluster.probe import examine
from metabench.cluster.slurm.commands import Slurm, beyond
from metabench.cluster.submitting.refusals import Refusal


@pytest.mark.slow
def test_twenty_cells_four_at_a_time_in_arrays_of_eight_one_of_them_failing(stage: Stage) -> None:
    stage.tell(3, "fail always")
    submission = stage.submit(seeds=20, pause=0.0, parallel=4, max_array=8)
    assert [a.size for a in submission.arrays] == [8, 8, 4]
    script = (submission.folder / "jobs" / "0" / "sbatch.sh").read_text()
    assert "#SBATCH --array=0-7%2" in script and "--signal=USR2@30" in script

    def recorded() -> bool:
        return all(stage.store.get(c.key) is not None for c in stage.cells())

    stage.until("a record of every cell", recorded, 150)
    stage.until("the end of all jobs", lambda: not stage.live())
    verdict = judge(stage)
    assert (verdict.lost, verdict.identical, verdict.doubled) == (1, 19, 0)
    assert verdict.left_over == []
    records = [stage.store.get(c.key) for c in stage.cells()]
    failed = [r for r in records if r is not None and r.status != "done"]
    assert [r.cell.seed for r in failed] == [3] and "told to fail" in failed[0].traceback
    for record in records:
        assert record is not None
        assert record.environment["git"]["sha256"] == submission.code
    done = next(r for r in records if r is not None and r.status == "done")
    machine = done.environment["machine"]
    assert machine["slurm"]["array"] in {a.job for a in submission.arrays}
    assert machine["affinity"]

    # What people are shown of it.
    planned = standings(stage.planned(stage.seeds), folder.submissions(stage.store), stage.answer())
    assert sorted({p.state for p in planned}) == ["done", "failed"]
    said = subprocess.run(
        [sys.executable, "-m", "metabench", "logs", failed[0].key[:12]],
        env={**os.environ, "METABENCH_STORE": str(stage.store.root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "told to fail" in said.stdout and "recorded" in said.stdout
    # The failed one alone is tried again, and the others are not run twice.
    (stage.home / next(p.name for p in stage.home.glob("do-*"))).unlink()
    again = stage.again(frozenset({"failed"}))
    assert again.cells == 1
    stage.finish()
    assert judge(stage).good


def test_what_the_partition_does_not_have_is_refused(stage: Stage) -> None:
    with pytest.raises(Refusal, match="gpu 9: a node of partition main has 2"):
        stage.submit(seeds=1, gpus=9)
    with pytest.raises(Refusal, match="no partition 'gpu'; the cluster has high, low, main"):
        stage.submit(seeds=1, partition="gpu")
    with pytest.raises(Refusal, match="time 90 min: partition main allows 60"):
        stage.submit(seeds=1, time=90)
    with pytest.raises(Refusal, match="there is no such program"):
        stage.submit(seeds=1, python="/no/such/python")
    with pytest.raises(Refusal, match="not in a folder that nodes share"):
        stage.submit(seeds=1, shared=["/nowhere"])
    # Slurm's own word, for what only it knows.
    with pytest.raises(Exception, match=r"nothing was queued: sbatch: .*feature"):
        stage.submit(seeds=1, constraint="nonsense")
    assert folder.submissions(stage.store) == [] and stage.live() == []


@pytest.mark.parametrize(
    ("settings", "seen"), [({"gpus": 2}, {"0,1"}), ({"gres": "shard:1"}, {"0", "1"})]
)
def test_gpus_and_shards_reach_a_job(
    stage: Stage, settings: dict[str, object], seen: set[str]
) -> None:
    found = {f.name: f for f in examine(stage.profile(**settings), stage.store)}
    assert not [f for f in found.values() if f.bad]
    (answer,) = (stage.store.root / "cluster").glob("probe-*/answer.json")
    assert json.loads(answer.read_text())["visible_gpus"] in seen
    assert found["GPU"].verdict in ("note", "ok")
    assert {"job", "python", "folder", "affinity", "clock", "accounting"} <= found.keys()
    assert "forgotten" in found["accounting"].detail


def test_the_cluster_tells_what_it_has(stage: Stage) -> None:
    there = Slurm(stage.profile())
    assert there.max_array() == 1001
    main, *others = there.partitions()
    assert (main.name, main.cpus, main.minutes, main.up) == ("main", 4, 60, True)
    assert main.gres == {"gpu": 2, "gpu:fake": 2, "shard": 8, "shard:fake": 8}
    assert {p.name for p in others} == {"low", "high"}
    assert beyond(stage.profile(gres="gpu:fake:1"), [main]) == []
    (reason,) = beyond(stage.profile(gres="gpu:a100:1"), [main])
    assert reason.startswith("gpu:a100 1: a node of partition main has 0 (in all: gpu 2, ")


def test_a_controller_that_is_away_is_no_verdict_about_cells(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: away' >&2; exit 1\n")
    (fake / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{__import__('os').environ['PATH']}")
    answer = stage.answer()
    assert "away" in answer.problem and answer.jobs == {}
    assert profile.load("local").query_seconds == 1
