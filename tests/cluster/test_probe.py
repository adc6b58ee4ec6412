"""What a probe of a cluster says where Slurm itself is slow, without one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metabench.cluster import probe
from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import SlurmError
from metabench.store.store import Store

SLOW = "squeue said nothing for 60 s"


class Slow:
    """A cluster on which squeue never answers, and whose job does only with ``seen``."""

    asked: ClassVar[list[tuple[str, ...]]]
    seen: ClassVar[dict[str, Any] | None] = None
    env: ClassVar[dict[str, str]] = {}

    def __init__(self, profile: Profile) -> None:
        Slow.asked = []

    def run(self, *command: str, **_: Any) -> str:
        Slow.asked.append(command)
        if command[0] == "squeue":
            raise SlurmError(SLOW)
        return "slurm 23.11"

    def max_array(self) -> int:
        return 1001

    def partitions(self) -> list[Any]:
        return []

    def sbatch(self, script: Path, env: dict[str, str]) -> str:
        if self.seen is not None:
            token = (script.parent / probe.TOKEN).read_text()
            text = json.dumps({**self.seen, "token": token, "time": time.time()})
            (script.parent / probe.ANSWER).write_text(text)
        return "17"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    monkeypatch.setattr(probe, "Slurm", Slow)
    monkeypatch.setattr(probe, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(probe, "beyond", lambda profile, partitions: [])
    monkeypatch.setattr(probe, "place_refusals", lambda root, profile: [])
    monkeypatch.setattr(probe.snapshot, "take", lambda folder: None)
    monkeypatch.setattr(probe.snapshot, "job_environment", lambda folder: {})
    monkeypatch.setattr(Slow, "seen", None)
    return Slow


def test_a_squeue_that_does_not_answer_loses_no_finding(slow: type[Slow], tmp_path: Path) -> None:
    found = {f.name: f for f in probe.examine(Profile(), Store(tmp_path), wait=0.01)}
    assert {"slurm", "MaxArraySize", "accounting"} <= found.keys()
    assert found["squeue"].verdict == "note" and SLOW in found["squeue"].detail
    assert found["job"].bad and SLOW in found["job"].detail
    assert ("scancel", "17") in slow.asked


def test_a_job_that_has_answered_is_left_to_end(
    slow: type[Slow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"node": "n1", "host": "n1", "python": "3.11.2", "executable": "python", "torch": "2.9",
            "cores": 64, "visible_gpus": None, "data": "", "data_there": True}  # fmt: skip
    monkeypatch.setattr(Slow, "seen", seen)
    found = {f.name: f for f in probe.examine(Profile(), Store(tmp_path), wait=5)}
    assert found["job"].verdict == "ok" and found["folder"].verdict == "ok"
    assert "scancel" not in {command[0] for command in slow.asked}


def test_an_interrupted_probe_cancels_its_job(
    slow: type[Slow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.examine(Profile(), Store(tmp_path), wait=5)
    assert ("scancel", "17") in slow.asked
