"""A worker that is suspended while it writes, taken for dead, and goes on: what the one that took
over has finished stays as it is."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from metabench.core.cell import Cell
from metabench.core.errors import Held
from metabench.store import files
from metabench.store import lease as leases
from metabench.store.cell_folder import CHECKPOINT, CURVE, LAM, LEASE, RECORD
from metabench.store.files import write_atomic
from metabench.store.lease import Lease
from metabench.store.record import Estimate, Record
from metabench.store.store import Store

CELL = Cell("ridge", "bilevel", "sgd", 1, budget={"outer_steps": 3})
CURVE_OF = {"step": [0, 1], "valid/mse": [0.1, None]}
LAM_OF = {"w": np.arange(3.0)}


def record_of(mean: float = 0.5, **changes: object) -> Record:
    record = Record(CELL.key, CELL, "done", metrics={"test": {"mse": Estimate(mean, 1)}})
    return replace(record, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def make_stale(path: Path) -> None:
    """As of another machine that has not been heard of for long."""
    text = path.read_text().replace(f'"{leases._place()}"', '"elsewhere"')
    path.write_text(text)
    os.utime(path, (0, 0))


def contents(store: Store) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.folder(CELL.key).iterdir()}


class Suspended:
    """While the worker that has the lease writes, ``meanwhile`` happens, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
        self.todo, self.sync = [meanwhile], os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, fd: int) -> None:
        self.sync(fd)
        if self.todo:
            self.todo.pop()()


def take_over(store: Store, then: Callable[[Lease], None]) -> None:
    make_stale(store.folder(CELL.key) / LEASE)
    lease = store.lease(CELL.key)
    assert lease is not None
    with lease:
        store.repair_leased(lease)
        then(lease)


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_worker_that_was_suspended_leaves_the_finished_record_of_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    lease = store.lease(CELL.key)
    assert lease is not None
    kept: dict[str, bytes] = {}

    def finish(theirs: Lease) -> None:
        store.write(record_of(0.25), CURVE_OF, LAM_OF, lease=theirs)

    def meanwhile() -> None:
        take_over(store, finish)
        kept.update(contents(store))

    Suspended(monkeypatch, meanwhile)
    with lease, pytest.raises(Held, match="taken"):
        other = {"step": [0, 9], "valid/mse": [0.7, None]}
        store.write(record_of(status=status), other, {"w": np.zeros(3)}, lease=lease)
    assert set(kept) >= {RECORD, CURVE, LAM}
    assert {n: d for n, d in kept.items() if not n.endswith(".tmp")} == contents(store)
    assert store.problems() == []


def test_the_checkpoint_of_a_lost_worker_is_not_written_over_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.folder(CELL.key) / CHECKPOINT
    lease = store.lease(CELL.key)
    assert lease is not None
    Suspended(
        monkeypatch, lambda: take_over(store, lambda theirs: void(path.write_bytes(b"theirs")))
    )
    with lease, pytest.raises(Held):
        write_atomic(path, b"mine", sure=lease.sure)
    assert contents(store) == {CHECKPOINT: b"theirs"}


def void(_: object) -> None:
    pass


def test_a_finished_record_is_not_replaced_even_by_the_holder_of_the_lease(store: Store) -> None:
    """As where the file system has no locks, or somebody wrote without a lease."""
    with store.lease(CELL.key) as lease:
        store.write(record_of(), CURVE_OF)
        before = contents(store)
        with pytest.raises(Held, match="finished record, which stays"):
            store.write(record_of(status="failed"), lease=lease)
        assert contents(store) == before
    assert store.write(record_of(0.75)) == store.get(CELL.key), "without one the caller answers"


def test_who_would_take_over_waits_while_a_record_is_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = store.lease(CELL.key)
    assert lease is not None
    taken: list[Lease | None] = []
    other = threading.Thread(target=lambda: taken.append(store.lease(CELL.key)))
    replaced = os.replace

    def replace_slowly(*args: object) -> None:
        if other.ident is None:
            make_stale(lease.path)
            other.start()
            other.join(0.1)
            assert taken == []
        replaced(*args)

    monkeypatch.setattr(os, "replace", replace_slowly)
    record = store.write(record_of(), CURVE_OF, lease=lease)
    other.join(10)
    (theirs,) = taken
    assert theirs is not None and store.get(CELL.key) == record
    theirs.release()
    lease.release()


WORKER = """
import json, os, signal, sys
from metabench.core.cell import Cell
from metabench.core.errors import Held
from metabench.store import lease
from metabench.store.record import Record
from metabench.store.store import Store
lease._place = lambda: "elsewhere"
cell = Cell(**json.loads(sys.argv[2]))
held = Store(sys.argv[1]).lease(cell.key)
real = os.fsync
def freeze(fd):
    os.fsync = real
    real(fd)
    os.kill(os.getpid(), signal.SIGSTOP)
os.fsync = freeze
try:
    Store(sys.argv[1]).write(Record(cell.key, cell, "failed"), {"step": [1]}, lease=held)
except Held:
    sys.exit(7)
"""


def test_a_process_that_was_stopped_leaves_the_finished_record_of_the_other(store: Store) -> None:
    import json

    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(store.root), json.dumps(asdict(CELL))]
    )
    try:
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
        os.utime(store.folder(CELL.key) / LEASE, (0, 0))
        with store.lease(CELL.key) as lease:
            store.repair_leased(lease)
            store.write(record_of(), CURVE_OF, LAM_OF, lease=lease)
        before = contents(store)
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(30) == 7
    finally:
        worker.kill()
        worker.wait()
    assert contents(store) == before and set(before) == {RECORD, CURVE, LAM}


def test_a_reader_never_finds_a_record_missing_while_it_is_replaced(store: Store) -> None:
    records = []
    for i in range(2):
        curve = {"step": [0, i], "valid/mse": [0.1 * i, None]}
        records.append((record_of(i / 2), curve, {"w": np.full(3, float(i))}))
    known = [store.write(*content) for content in records]
    ended = threading.Event()

    def write() -> None:
        for i in range(40):
            store.write(*records[i % 2])
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    read = []
    while not ended.is_set():
        read.append(store.get(CELL.key))
    writer.join()
    assert read and all(record in known for record in read)


@pytest.mark.parametrize("renames", range(6))
def test_a_kill_between_two_renames_leaves_one_record_or_the_other_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    old = store.write(record_of(status="failed"), CURVE_OF, LAM_OF)
    left, real = [renames], os.replace

    def killed(*args: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args)

    new = record_of(0.125), {"step": [0, 5], "valid/mse": [0.3, None]}, {"w": np.ones(3)}
    with monkeypatch.context() as m:
        m.setattr(os, "replace", killed)
        m.setattr(files, "discard", lambda made: None)
        if renames < 5:
            with pytest.raises(KeyboardInterrupt):
                store.write(*new)
        else:
            store.write(*new)
    found = store.get(CELL.key)
    assert found is not None and store.problems() == []
    assert (found == old) == (renames < 3)
    assert store.curve(found) == (CURVE_OF if renames < 3 else new[1])
    assert store.repair() == []
    assert store.get(CELL.key) == found and set(contents(store)) == {RECORD, CURVE, LAM}
