"""What the batch script of a job does, run by a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metabench.cluster.profile import Profile
from metabench.cluster.slurm import batch
from metabench.cluster.submitting import submit


@pytest.mark.parametrize("room", [True, False])
def test_a_job_that_dies_is_started_again_a_few_times_or_not_where_that_cannot_be_counted(
    room: bool, tmp_path: Path
) -> None:
    (tmp_path / "elements").mkdir()
    if not room:
        (tmp_path / "elements" / "7_2.crashes").symlink_to("/dev/full")
    asked = tmp_path / "asked"
    slurm = tmp_path / "scontrol"
    slurm.write_text(f'#!/bin/sh\n[ $1 = show ] && echo JobState=RUNNING || echo "$@" >> {asked}\n')
    slurm.chmod(0o755)
    script = tmp_path / "job"
    script.write_text("\n".join(["(exit 9)", *batch.teardown_lines(tmp_path)]))
    told = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "9"}
    env = {**told, "SLURMD_NODENAME": "n1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for _ in range(5):
        done = subprocess.run(
            ["bash", str(script)], env=env, capture_output=True, check=False, timeout=30
        )
        assert done.returncode == 9
    again = asked.read_text().splitlines() if asked.exists() else []
    assert again == (["requeue 9"] * batch.CRASHES if room else [])


def test_every_data_folder_travels_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may start in another folder, and its shell knows nothing of ~ in a variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    slurm = SimpleNamespace(env={"METABENCH_DATA": "sets:~/more:/scratch/all"})

    def told(named: str) -> str:
        made = SimpleNamespace(profile=Profile(data=named), folder=tmp_path)
        return submit.variables(cast(Any, made), cast(Any, slurm))["METABENCH_DATA"]

    assert told("") == f"{tmp_path}/sets:/home/me/more:/scratch/all"
    assert told("$HOME/a:~/b") == "/home/me/a:/home/me/b"
