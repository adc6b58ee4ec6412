"""What Slurm says of jobs, from a Slurm that is made of shell scripts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metabench.cluster import submission as folder
from metabench.cluster.cell_states import logs, standings
from metabench.cluster.profile import Profile
from metabench.cluster.slurm import job_states
from metabench.cluster.slurm.commands import Slurm, needed
from metabench.cluster.submission import (
    Array,
    Attempt,
    Group,
    Member,
    NodeStatus,
    Running,
    Submission,
)
from metabench.core.cell import Cell
from metabench.store.store import Store
from metabench.suites.planning import Planned


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that print a file of their name, and note each call."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("squeue", "sacct"):
        (place / name).write_text(
            f'#!/bin/sh\necho "$@" >> {place}/{name}.calls\n'
            f"if [ -f {place}/{name}.out ]; then cat {place}/{name}.out; else\n"
            f'echo "{name}: error: no answer" >&2; exit 1; fi\n'
        )
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


def calls(bin: Path, name: str) -> int:
    file = bin / f"{name}.calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


CELLS = [Cell("ridge", "bilevel", "sgd", i) for i in range(3)]


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    place = tmp_path / "runs" / "cluster" / "one"
    place.mkdir(parents=True)
    arrays = [Array("mb-a-0", 0, 2, "7", time.time() - 60), Array("mb-a-1", 0, 1, "", 0.0)]
    made = Submission(
        place, "suite", "smoke", {"name": "site"}, str(tmp_path / "runs"), "", time.time() - 60, 3,
        arrays=arrays,
    )  # fmt: skip
    made.write()
    members = [Member("r", "c", cell) for cell in CELLS]
    Group(members, 60, 8.0, made.store, "").write(place / "group-0.json")
    return made


def look(submission: Submission, seconds: float = 0) -> job_states.Answer:
    slurm = Slurm(Profile(name="site"))
    return job_states.ask(
        slurm, [submission], submission.folder.parent / "queue.json", seconds=seconds
    )


def test_squeue_is_asked_once_for_everything_and_not_again_soon(
    bin: Path, submission: Submission
) -> None:
    (bin / "squeue.out").write_text(
        "7_0|mb-a-0|RUNNING|n1|10:00|None\n7_1|mb-a-0|PENDING||20:00|Priority\n"
        "9|mb-a-1|PENDING||20:00|launch failed requeued held\n11|other|RUNNING|n1|1:00|None\n"
    )
    answer = look(submission)
    first, second, third = (j for a in submission.arrays for j in answer.jobs_of(a))
    assert (first.state, first.node, first.left) == ("RUNNING", "n1", "10:00")
    assert (second.state, second.reason, second.live, second.held) == (
        "PENDING", "Priority", True, False,
    )  # fmt: skip
    assert third.id == "9" and third.held, "found by its name: the launcher never knew its id"
    assert answer.accounting is None and calls(bin, "sacct") == 0
    for _ in range(3):
        assert look(submission, seconds=60) == answer
    assert calls(bin, "squeue") == 1


def test_forgotten_jobs_are_asked_of_sacct_and_an_older_job_of_the_same_id_is_not_believed(
    bin: Path, submission: Submission
) -> None:
    (bin / "squeue.out").write_text("")
    (bin / "sacct.out").write_text(
        "7_0|mb-a-0|CANCELLED by 1000|n1\n7_1|someone-elses|COMPLETED|n2\n"
    )
    answer = look(submission)
    first, second = answer.jobs_of(submission.arrays[0])
    assert (first.state, first.source, first.live) == ("CANCELLED", "sacct", False)
    assert second.state == job_states.UNKNOWN and answer.accounting is True
    # What has ended is not asked for again.
    (bin / "sacct.out").write_text("")
    assert look(submission).jobs_of(submission.arrays[0])[0].state == "CANCELLED"


def test_without_accounting_or_controller_it_says_what_it_cannot_know(
    bin: Path, submission: Submission
) -> None:
    (bin / "squeue.out").write_text("7_0|mb-a-0|RUNNING|n1|10:00|None\n")
    answer = look(submission)
    assert answer.accounting is False and "no answer" in answer.problem
    assert answer.jobs_of(submission.arrays[0])[1].state == job_states.UNKNOWN
    (bin / "squeue.out").unlink()
    later = look(submission)
    assert later.jobs == answer.jobs and later.at == answer.at, "the last answer, with its age"
    assert "squeue" in later.problem


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "SUSPENDED", "COMPLETING"])
def test_what_squeue_still_knows_may_still_work_unless_it_has_ended(state: str) -> None:
    assert job_states.Job("1", state).live == (state in ("SUSPENDED", "COMPLETING"))


def planned(state: str = "open") -> list[Planned]:
    return [Planned("r", "c", cell, state) for cell in CELLS]  # type: ignore[arg-type]


def stand(
    submission: Submission, *jobs: job_states.Job, accounting: bool | None = None
) -> list[str]:
    known = {f"mb-a-0/{j.id}": j for j in jobs}
    answer = job_states.Answer(
        time.time(), known, {}, accounting, "no answer" * (accounting is False)
    )
    found = standings(planned(), [submission], answer)
    return [f"{p.state}: {p.reason} {p.repair}".strip() for p in found]


def test_open_cells_are_told_why_they_wait(submission: Submission) -> None:
    run, wait = job_states.Job("7_0", "RUNNING"), job_states.Job("7_1", "PENDING", "Resources")
    (first, *_) = stand(submission, run, wait)
    assert first == "pending: next in line of 1 running jobs, 1 waiting: Resources"
    held = job_states.Job("7_0", "PENDING", "launch failed requeued held")
    (first, *_) = stand(submission, held, job_states.Job("7_1", "COMPLETED"))
    assert first.startswith("held: every job") and first.endswith("scontrol release 7")


def test_open_cells_without_a_job_are_told_how_the_last_one_ended(submission: Submission) -> None:
    for state, word in (
        ("OUT_OF_MEMORY", "out of memory"), ("TIMEOUT", "out of time"),
        ("NODE_FAIL", "node failure"), ("PREEMPTED", "pre-empted"), ("FAILED", "crashed"),
        ("CANCELLED", "cancelled"),
    ):  # fmt: skip
        folder.note_attempt(
            submission.folder, CELLS[0].key, attempt=state, job="7_0", host="n1", at=1.0
        )
        said, other, _ = stand(
            submission, job_states.Job("7_0", state), job_states.Job("7_1", "COMPLETED")
        )
        assert said.startswith(f"{word}: ") and "7_0 on n1" in said and "retry" in said
        assert other.split(":")[0] in (word, "lost")
    unknown = stand(submission, accounting=False)[1]
    assert unknown.startswith("lost: ") and "Slurm no longer knows 2 of 2 (no accounting" in unknown
    replace(submission, cancelled=1.0).write()
    (again,) = folder.submissions(Store(submission.store))
    assert stand(again)[0].startswith("cancelled: with one")


def test_running_cells_are_told_how_far_they_are(submission: Submission) -> None:
    now = time.time()
    running = {CELLS[0].key: Running(now - 50, 20, 80, 0.25, "training")}
    folder.write_status(
        submission.folder,
        NodeStatus("7_0", 0, "host", "n1", 1, now - 60, now + 600, now, running=running),
    )
    answer = job_states.Answer(now, {"mb-a-0/7_0": job_states.Job("7_0", "RUNNING")})
    (first, *_) = standings(planned("running"), [submission], answer)
    assert first.reason == "job 7_0 on n1, step 20/80, training, 25%, about 2 min 30 s left"
    # Another submission of the same cell is newer, and a job that was killed said it had it.
    newer = replace(submission, folder=submission.folder.with_name("two"), submitted=now)
    newer.folder.mkdir()
    newer.write()
    Group([Member("r", "c", CELLS[0])], 60, 8.0, "", "").write(newer.folder / "group-0.json")
    folder.write_status(
        newer.folder, NodeStatus("8_0", 0, "host", "n2", 1, 0.0, 9.0, now - 30, running=running)
    )
    (first, *_) = standings(planned("running"), [submission, newer], answer)
    assert first.reason.startswith("job 7_0 on n1")


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"running": 3, "jobs": 3, "arrays": [3]}'])
def test_damaged_files_are_told_or_done_without(submission: Submission, text: str) -> None:
    for name in ("keys.json", "ended.json", "elements/7_0.json", "../queue.json"):
        path = submission.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if text != "[]":
        assert folder.keys(submission) == {cell.key for cell in CELLS}
    assert len(stand(submission)) == 3 and folder.statuses(submission.folder) == {}
    assert job_states._read(submission.folder.parent / "queue.json") is None
    kept = Store(submission.store)
    assert [s.name for s in folder.submissions(kept)] == ["one"] and not folder.unreadable(kept)
    (submission.folder / folder.SUBMISSION).write_text(text)
    assert folder.submissions(kept) == []
    (said,) = folder.unreadable(kept)
    assert "submission.json cannot be read" in said


def test_attempts_are_remembered_and_fruitless_ones_counted(tmp_path: Path) -> None:
    def lines(*steps: int | None, end: str = "") -> list[Attempt]:
        return [Attempt("1", "n1", 0.0, step=s, end=end) for s in steps]

    assert folder.fruitless([]) == 0
    assert folder.fruitless(lines(0, 0, 0)) == 3
    assert folder.fruitless(lines(0, 10, 20)) == 1, "each got further"
    assert folder.fruitless(lines(0, 10, 10, 10)) == 3
    assert folder.fruitless(lines(None, None)) == 2, "not even begun"
    assert folder.fruitless([*lines(5, 5), *lines(5, end="held")]) == 2
    folder.note_attempt(tmp_path, "k", attempt="a", job="1", host="h", at=1.0, pid=5)
    folder.note_attempt(tmp_path, "k", attempt="b", job="2", host="h", at=2.0)
    folder.note_attempt(tmp_path, "k", attempt="a", step=3)
    folder.note_attempt(tmp_path, "k", attempt="a", end="recorded")
    with (tmp_path / "cells" / "k.jsonl").open("a") as file:
        file.write('{"attempt": "c", "jo')
    first, second = folder.attempts(tmp_path, "k")
    assert (first.job, first.step, first.end, second.job) == ("1", 3, "recorded", "2")
    submission = Submission(tmp_path, "s", "b", {}, "", "", 0.0, 1)
    (tmp_path / "cells" / "k.log").write_text("printed")
    assert [path.name for _, path in logs([submission], "k")] == ["k.log"]


def test_the_launchers_own_job_threads_and_secrets_do_not_travel() -> None:
    given = {
        "SLURM_CONF": "/etc/x", "SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "q", "SBATCH_TIMELIMIT": "1",
        "SUBMITIT_EXECUTOR": "slurm", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "7", "RANK": "0", "MASTER_ADDR": "x", "PYTHONPATH": "/src",
        "HF_TOKEN": "s", "MY_API_KEY": "s", "PATH": "/bin", "HOME": "/h",
        "METABENCH_DATA": "/d", "RANKING": "mine",
    }  # fmt: skip
    kept = needed(given, ["HF_TOKEN", "RANKING"])
    assert set(kept) == {
        "SLURM_CONF", "PATH", "HOME", "METABENCH_DATA", "RANKING", "HF_TOKEN",
    }  # fmt: skip
    assert json.dumps(kept)
