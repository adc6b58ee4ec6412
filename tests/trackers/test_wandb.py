"""Weights & Biases offline: what it keeps on disk, read back. ``pip install -e ".[wandb]"``."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metabench.core.errors import MetabenchError
from metabench.run.tracking import TrackedRun, opened

wandb = pytest.importorskip("wandb", reason='pip install -e ".[wandb]"')
CURVE = {"step": [0, 2], "valid/loss": [0.5, 0.25], "train/x": [None, 1.0]}


def run_of(step: int = 0, **changes: Any) -> TrackedRun:
    given: dict[str, Any] = {
        "id": "abc123",
        "key": "k" * 64,
        "name": "maml/5w1s seed 0",
        "group": "quickstart smoke",
        "settings": {"method": "maml", "method.inner_lr": 0.4},
        "step": step,
        "curve": CURVE if step else {},
    }
    return TrackedRun(**(given | changes))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb.teardown()  # what it read of the environment before
    return tmp_path / "wandb"


def kept(folder: Path) -> list[Any]:
    """The records of every offline run, in the order in which the runs were made."""
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its own process writes the last of it when it ends
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    return [
        [wandb_internal_pb2.Record.FromString(data) for data in logged(file.read_bytes())]
        for file in files
    ]


def logged(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format, after its header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # the rest of a block that no header fits into
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(records: Any) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json)
                     for i in record.history.item}  # fmt: skip
            rows.append({k: v for k, v in items.items() if k[0] != "_" or k == "_step"})
    return rows


def test_offline_runs_hold_curves_settings_and_final_numbers(folder: Path) -> None:
    (tracker,) = opened(["wandb=project"])
    one, two = run_of(), run_of(id="other", key="l" * 64)
    tracker.start(one)
    tracker.start(two)  # two cells at a time
    for step, value in ((0, 0.5), (2, 0.25)):
        tracker.log(one, step, {"valid/loss": value})
        tracker.log(two, step, {"valid/loss": 2 * value})
    tracker.finish(one, "done", {"final/test/loss": 0.125})
    tracker.close()
    found = {next(r.run.run_id for r in x if r.HasField("run")): x for x in kept(folder)}
    assert set(found) == {"abc123", "other"}
    assert history(found["abc123"]) == [
        {"_step": 0, "valid/loss": 0.5},
        {"_step": 2, "valid/loss": 0.25},
    ]
    assert [row["valid/loss"] for row in history(found["other"])] == [1.0, 0.5]
    made = next(r.run for r in found["abc123"] if r.HasField("run"))
    assert (made.project, made.run_group, made.display_name) == (
        "project",
        "quickstart smoke",
        "maml/5w1s seed 0",
    )
    config = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in made.config.update}
    assert config["method.inner_lr"] == 0.4
    summary = {
        i.key or "/".join(i.nested_key): json.loads(i.value_json)
        for r in found["abc123"]
        if r.HasField("summary")
        for i in r.summary.update
    }
    assert summary["final/test/loss"] == 0.125 and summary["status"] == "done"
    codes = {k: [r.exit.exit_code for r in x if r.HasField("exit")] for k, x in found.items()}
    assert codes == {"abc123": [0], "other": [1]}


def test_a_resumed_run_has_its_id_and_goes_on(folder: Path) -> None:
    (tracker,) = opened(["wandb"])
    tracker.start(run_of())
    tracker.log(run_of(), 0, {"valid/loss": 0.5})
    tracker.finish(run_of(), "interrupted", {})
    (tracker,) = opened(["wandb"])
    again = run_of(2)
    tracker.start(again)
    tracker.log(again, 4, {"valid/loss": 0.125})
    tracker.finish(again, "done", {})
    first, second = kept(folder)
    ids = {r.run.run_id for x in (first, second) for r in x if r.HasField("run")}
    assert ids == {"abc123"}
    assert [row["_step"] for row in history(first)] == [0]
    assert [row["_step"] for row in history(second)] == [4]  # it knows of the first


def test_what_was_not_logged_before_is_logged_on_going_on(folder: Path) -> None:
    (tracker,) = opened(["wandb"])
    tracker.start(run_of(2))
    tracker.close()
    (records,) = kept(folder)
    assert history(records) == [
        {"_step": 0, "valid/loss": 0.5},
        {"_step": 2, "valid/loss": 0.25, "train/x": 1.0},
    ]


def test_without_a_key_it_is_refused_and_nobody_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert opened(["wandb"])  # offline needs none
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    with pytest.raises(MetabenchError, match="wandb login, or set WANDB_MODE=offline"):
        opened(["wandb"])
