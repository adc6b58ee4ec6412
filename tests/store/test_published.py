"""Published records: there and back, hostile files, nothing overwritten, nobody named."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metabench.core.cell import Cell, canonical
from metabench.core.errors import StoreError
from metabench.store import lines
from metabench.store.merge import merge
from metabench.store.published import RECORDS, Published, publish, render, without_paths
from metabench.store.record import Estimate, Record
from metabench.store.store import Store

CURVE = {"step": [0, 1], "valid/mse": [0.5, None], "cost/seconds": [0.1, 0.2]}
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abc/.[]0_ é", min_size=1, max_size=8)
sentences = st.text("ab é\"'\n:.,", max_size=20)


def record_of(seed: int = 0, accuracy: float = 0.5, **changes: Any) -> Record:
    cell = Cell("ridge", "bilevel", "sgd", seed)
    metrics = {"test": {"accuracy": Estimate(accuracy, 3)}}
    return replace(Record(key=cell.key, cell=cell, status="done", metrics=metrics), **changes)


def sealed(data: dict[str, Any]) -> bytes:
    """A line with a right checksum, whatever is in it."""
    data = {k: v for k, v in data.items() if k != "sha256"}
    seal = hashlib.sha256(canonical(data).encode()).hexdigest()
    return f"{canonical({**data, 'sha256': seal})}\n".encode()


def line_of(seed: int = 0, **changes: Any) -> bytes:
    return sealed({**json.loads(render(record_of(seed), CURVE)), **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / RECORDS


@st.composite
def contents(draw: st.DrawFn) -> tuple[Record, dict[str, list[float | None]]]:
    cell = Cell(draw(names), draw(names), "sgd", draw(st.integers(0, 2**40)))
    estimates = st.builds(Estimate, numbers, st.integers(1, 9), numbers | st.none(), st.none())
    record = Record(
        key=cell.key,
        cell=cell,
        status=draw(st.sampled_from(["done", "failed", "diverged", "timeout"])),
        reason=draw(sentences),
        traceback=draw(sentences),
        metrics=draw(st.dictionaries(names, st.dictionaries(names, estimates), max_size=2)),
        cost=draw(st.dictionaries(names, numbers, max_size=3)),
        lam={"numbers": 1, "values": draw(st.lists(numbers, max_size=2))},
        notes=draw(st.dictionaries(sentences, numbers | sentences, max_size=2)),
        environment={"threads": 1, "machine": {"cores": 2}},
    )
    rows = draw(st.integers(1, 4))
    column = st.lists(st.integers(0, 9) | numbers | st.none(), min_size=rows, max_size=rows)
    return record, draw(st.dictionaries(names, column, max_size=3))


@settings(max_examples=40, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=4, unique_by=lambda c: c[0].key))
def test_there_and_back(kept: list[tuple[Record, dict[str, list[float | None]]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = Store(folder / "one"), Store(folder / "two")
        for record, curve in kept:
            one.write(record, curve)
        path = publish(one.records(), one, folder / RECORDS)
        assert Published(path).problems() == []
        assert merge([Published(path)], two).copied == len(kept)
        assert two.records() == one.records() and two.problems() == []
        for record in one.records():
            assert canonical(two.curve(record)) == canonical(one.curve(record))
        assert publish(two.records(), two, folder / "again").read_bytes() == path.read_bytes()
        again = merge([Published(path)], two)
        assert again.copied == again.replaced == 0 and not again.conflicts


def test_the_file_is_sorted_and_has_no_time_in_it(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    records = [store.write(record_of(seed), CURVE) for seed in range(5)]
    first = publish(records, store, file).read_bytes()
    assert publish(records[::-1], store, file).read_bytes() == first
    assert first[4:8] == bytes(4)
    keys = [json.loads(line)["key"] for line in gzip.decompress(first).splitlines()]
    assert keys == sorted(r.key for r in records)


def test_lines_that_cannot_be_trusted_are_told_and_the_rest_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 5_000)
    good = [line_of(seed) for seed in range(3)]
    other = record_of(9)
    bad = {
        b"{\n": "is not JSON",
        b"\xff\xfe\n": "is not JSON",
        b"\n": "is not JSON",
        b"[1]\n": "is not a record",
        b'{"key": NaN}\n': "Out of range float",
        b"[" * 4_000 + b"\n": "recursion",
        good[0].replace(b'"mean":0.5', b'"mean":0.7'): "its sha256 differs",
        line_of(4, key=other.key): f"key {other.key[:10]} is not the hash of its cell",
        line_of(4, schema=2): "record schema 2, this version reads 1",
        line_of(4, status="fine"): "status: input should be",
        line_of(4, curve={"step": [0, 1], "loss": [1]}): "columns differ in length",
        line_of(4, curve={"step": ["0"]}): "not columns of numbers",
        line_of(4, curve=3): "not columns of numbers",
        line_of(1, reason="another"): "another line has a record of the same cell",
        line_of(4, reason="x" * 20_000): "is longer than 5,000 bytes",
    }
    file.write_bytes(gzip.compress(b"".join([good[0], good[1], *bad, good[2]])))
    found = Published(file)
    assert [r.cell.seed for r in found.records()] == [0, 1, 2]
    told = "\n".join(map(str, found.problems()))
    for number, says in enumerate(bad.values(), 3):
        line = next(t for t in told.splitlines() if says in t)
        assert line.startswith(f"{file}: line") and f"{number}" in line, line
    merged = merge([found], Store(tmp_path / "runs"))
    assert merged.copied == 3 and len(merged.bad) == len(found.problems())


def test_another_contract_is_refused_in_one_line(file: Path) -> None:
    cell = replace(record_of().cell, contract=7)
    lines = [
        line_of(cell={**vars(c)}, key=c.key)
        for c in (replace(cell, seed=seed) for seed in range(9))
    ]
    file.write_bytes(gzip.compress(b"".join(lines)))
    (bad,) = Published(file).problems()
    assert str(bad).startswith(f"{file}: lines 1, 2, 3, 4, 5 and 4 more: is of contract 7, ")
    assert "reads contract 1" in str(bad) and "import it with the version" in str(bad)


@pytest.mark.parametrize("cut", [0, 5, 30, -9, -4])
def test_a_damaged_file_gives_what_stands_before_the_damage(file: Path, cut: int) -> None:
    whole = gzip.compress(b"".join(line_of(seed) for seed in range(40)))
    file.write_bytes(whole[:cut])
    found = Published(file)
    assert len(found.records()) <= 40
    assert "the file is damaged from here on" in str(found.problems()[-1])
    assert cut > 0 or len(found.records()) in (0, 40)


def test_what_is_no_gzip_or_not_there(file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Published(file)
    with pytest.raises(StoreError, match="Is a directory"):
        Published(tmp_path)
    file.write_bytes(line_of())
    found = Published(file)
    assert found.records() == [] and "line 1: the file is damaged" in str(found.problems()[0])


def test_nothing_is_overwritten_and_a_dry_run_writes_nothing(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    mine = store.write(record_of(0, accuracy=0.9), CURVE)
    without_curve = store.write(record_of(1))
    store.write(record_of(2, status="failed", metrics={}))
    file.write_bytes(gzip.compress(b"".join(line_of(seed) for seed in range(4))))
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    told = []
    for dry_run in (True, False):
        merged = merge([Published(file), Published(file)], store, dry_run=dry_run)
        told.append(str(merged))
        assert [c.what.partition(" (")[0] for c in merged.conflicts] == ["different metrics"] * 2
        if dry_run:
            assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before
    assert told[0] == told[1] == "1 copied, 1 replaced, 4 the same in both, 2 in conflict"
    assert store.get(mine.key) == mine and store.get(without_curve.key) == without_curve
    assert [r.status for r in store.records()] == ["done"] * 4


TRACEBACK = """Traceback (most recent call last):
  File "/home/anna b/code/metabench/metabench/run/loop.py", line 3, in run
  File "/home/anna/metabench/tasks/models/networks.py", line 7, in forward
  File "/home/anna/.venv/lib/python3.11/site-packages/torch/nn/module.py", line 1, in call
  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode
  File "C:\\\\Users\\\\anna\\\\my task.py", line 2, in f
FileNotFoundError: [Errno 2] No such file or directory: '/scratch/anna/data/mnist/train.gz'
"""


def test_paths_are_cut_down_to_what_says_something() -> None:
    text = without_paths(TRACEBACK)
    assert "anna" not in text and "/home" not in text and "Users" not in text
    for kept in (
        'File "metabench/run/loop.py", line 3',
        'File "tasks/models/networks.py"',
        'File "torch/nn/module.py"',
        'File "json/decoder.py"',
        'File "my task.py"',
        "directory: 'train.gz'",
    ):
        assert kept in text
    for same in ("https://a.org/b/c", "and/or 3 / 4, n/a", "12 MB/s", "tasks/x.py", "a ~ b"):
        assert without_paths(same) == same
    assert without_paths("looked in ~/data/mnist, ~anna/x, /data/a/b;") == (
        "looked in mnist, x, b;"
    )
    assert without_paths(r"at \\server\anna\x.pt or D:\anna\y.pt") == "at x.pt or y.pt"


@given(st.lists(st.sampled_from(" \n\"':,(=[") | st.just("/home/anna/"), max_size=12))
@example(['"', "/home/anna/", " ", '"'])
@example(["'", "/home/anna/", '"'])
def test_no_folder_of_a_person_is_left(parts: list[str]) -> None:
    assert "/home/anna/" not in without_paths("".join(parts))


def test_what_is_published_names_nobody() -> None:
    record = record_of(
        status="failed",
        reason="no file /home/anna/x.npy",
        traceback=TRACEBACK,
        notes={"read": ["/home/anna/data/y.npy"]},
        environment={
            "machine": {"host": "annas-laptop", "cores": 2},
            "rank_hosts": ["annas-laptop"],
            "slurm": {"node": "anna1", "job": "3"},
            "resumed": [{"from": "/home/anna/runs/z"}],
        },
    )
    line = render(record, {})
    assert b"anna" not in line
    data = json.loads(line)
    assert data["environment"]["machine"] == {"cores": 2} and data["reason"] == "no file x.npy"
    assert data["notes"] == {"read": ["y.npy"]}


def test_a_pipe_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe: is a pipe or a device, not a file"):
        Published(tmp_path / "pipe")
