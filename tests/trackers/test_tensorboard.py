"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason='pip install -e ".[tensorboard]"')

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metabench.core.cell import make_cell
from metabench.core.errors import Stopped
from metabench.run.events import Event, Measured
from metabench.run.runner import run_cell
from metabench.run.tracking import Tracking, opened
from metabench.store.record import Record
from metabench.store.store import Store

CELL = make_cell(
    "quadratic",
    "bilevel",
    set={
        "task": {"dim": 3},
        "budget": {"outer_steps": 6, "eval_every": 2, "valid_episodes": 1, "test_episodes": 1},
    },
)


def single(value: float) -> float:
    """As an event file has it."""
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found


def run(store: Store, place: Path | None, stop: int | None = None) -> Record | None:
    rows = [0]

    def count(event: Event) -> None:
        rows[0] += isinstance(event, Measured)

    log = opened([f"tensorboard={place}"]) if place else []
    names = {CELL.key: "fast/one seed 0 [abc]"}
    with Tracking(log, count, names=names, group="suite smoke", store=store.root) as told:
        try:
            return run_cell(
                CELL,
                store,
                listener=told,
                checkpoint_seconds=0,
                stop=lambda: stop is not None and rows[0] >= stop,
            )
        except Stopped:
            return None


def check(store: Store, record: Record, place: Path) -> EventAccumulator:
    """What TensorBoard shows is the curve of the record, each point once, to a float's bits."""
    folder = place / "suite-smoke" / "fast-one-seed-0-abc"
    found = EventAccumulator(str(folder)).Reload()
    curve = store.curve(record)
    for name, column in curve.items():
        if name == "step":
            continue
        points = [
            (s, single(v)) for s, v in zip(curve["step"], column, strict=True) if v is not None
        ]
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        assert shown == points, name
    assert "lam/x[2]" in curve or any(n.startswith("lam/") for n in curve)
    return found


def test_the_curve_the_settings_and_the_final_numbers(tmp_path: Path) -> None:
    store, place = Store(tmp_path / "store"), tmp_path / "board"
    record = run(store, place)
    assert record is not None
    found = check(store, record, place)
    final = found.Scalars("final/test/loss")
    assert [event.value for event in final] == [single(record.metrics["test"]["loss"].mean)]
    tags = found.Tags()["tensors"]
    assert "settings/text_summary" in tags
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| budget.outer_steps | 6 |" in text and "| method | bilevel |" in text
    from tensorboard.plugins.hparams import plugin_data_pb2

    pages = [
        plugin_data_pb2.HParamsPluginData.FromString(content)
        for content in found.PluginTagToContent("hparams").values()
    ]
    (start,) = [page.session_start_info for page in pages if page.HasField("session_start_info")]
    assert start.hparams["task.dim"].number_value == 3
    assert start.hparams["status"].string_value == "done"


def test_a_resumed_run_continues_its_curve(tmp_path: Path) -> None:
    store, place = Store(tmp_path / "store"), tmp_path / "board"
    assert run(store, place, stop=2) is None
    record = run(store, place)
    assert record is not None and record.environment["resumed"]
    check(store, record, place)


def test_a_curve_is_whole_where_the_first_launch_did_not_log(tmp_path: Path) -> None:
    store, place = Store(tmp_path / "store"), tmp_path / "board"
    assert run(store, None, stop=2) is None
    record = run(store, place)
    assert record is not None
    check(store, record, place)


def test_a_run_that_begins_anew_takes_the_place_of_the_older(tmp_path: Path) -> None:
    place = tmp_path / "board"
    assert run(Store(tmp_path / "one"), place, stop=3) is None
    record = run(Store(tmp_path / "two"), place)
    assert record is not None
    check(Store(tmp_path / "two"), record, place)
