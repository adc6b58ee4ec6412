"""What others leave in a store, of any kind or closed to this user: it is told by its path, and the
rest goes on."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.store import lease as leases
from metabench.store.cell_folder import CHECKPOINT, CURVE, LAM, LEASE, RECORD
from metabench.store.merge import merge
from metabench.store.record import Estimate, Record
from metabench.store.store import Store

CURVE_OF = {"step": [0, 1], "valid/mse": [0.1, None]}


def record_of(seed: int, **changes: object) -> Record:
    cell = Cell("ridge", "bilevel", "sgd", seed, budget={"outer_steps": 3})
    return replace(
        Record(cell.key, cell, "done", metrics={"test": {"mse": Estimate(0.5, 1)}}), **changes
    )


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere at all")


def itself(path: Path) -> None:
    path.symlink_to(path)


def text(path: Path) -> None:
    path.write_text("mine")


def brackets(path: Path) -> None:
    path.write_text("[" * 100_000)


KINDS: list[Callable[[Path], None]] = [pipe, folder, nowhere, itself, text, brackets]
PLACES = {
    "lease": LEASE,
    "checkpoint": CHECKPOINT,
    "lam": LAM,
    "draft": ".x.tmp",
    "stranger": "notes.txt",
    "record": RECORD,
    "curve": CURVE,
    "cell": "",
    "prefix": "..",
}
# A checkpoint and a file that no record names may hold anything, and what is no more than a draft.
FINE = {
    (place, kind) for place in ("checkpoint", "curve", "lam", "draft") for kind in (text, brackets)
}
ODD = [(p, k) for p in PLACES for k in KINDS if (p, k) not in FINE and (p, k) != ("prefix", folder)]


def plant(store: Store, key: str, place: str, kind: Callable[[Path], None]) -> Path:
    """An odd entry in or in place of a cell's folder; where it lies."""
    path = store.folder(key)
    if place == "prefix":
        path = path.parent
    elif place != "cell":
        path = path / PLACES[place]
    elif kind is folder:
        path = path / "inside"
        path.parent.mkdir(parents=True)
        text(path)
        return path
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(path)
    return path


GOOD = [record_of(seed) for seed in range(4)]
# Their folders and those of the good ones have different beginnings.
USED = {record.key[:2] for record in GOOD}
FREE: list[Record] = []
for _seed in range(100, 200):
    if (_record := record_of(_seed)).key[:2] not in USED:
        USED.add(_record.key[:2])
        FREE.append(_record)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(ODD), min_size=1, max_size=6))
def test_odd_entries_are_told_and_every_good_record_is_read(
    odd: list[tuple[str, Callable[[Path], None]]],
) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = Store(root)
        good = sorted((store.write(r, CURVE_OF) for r in GOOD), key=lambda r: r.key)
        planted = {plant(store, FREE[i].key, *it): it[0] for i, it in enumerate(odd)}
        records, bad = store.scan()
        assert records == good
        assert {b.path for b in bad} == set(planted)
        for i in range(len(odd)):
            assert store.get(FREE[i].key) is None
            assert store.closed(FREE[i].key) is None
            store.holder(FREE[i].key)
        told = store.repair()
        assert {b.path for b in told} == set(planted)
        assert store.records() == good
        assert [store.curve(record) for record in good] == [CURVE_OF] * len(good)
        # What lies under the root itself stays, and what may yet be a lease.
        left = {b.path for b in store.problems()}
        assert left == {b.path for b in told if b.moved_to is None}
        assert all(planted[p] in ("prefix", "lease") for p in left)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ["lease", "checkpoint", "draft"])
def test_a_finished_cell_keeps_its_record_beside_an_odd_entry(
    tmp_path: Path, place: str, kind: Callable[[Path], None]
) -> None:
    store = Store(tmp_path)
    record = store.write(record_of(1), CURVE_OF)
    path = plant(store, record.key, place, kind)
    if place == "lease" and kind in (text, brackets):
        os.utime(path, (0, 0))
    records, bad = store.scan()
    assert records == [record]
    assert [b.path for b in bad] == ([] if (place, kind) in FINE else [path])
    assert [b.path for b in store.repair()] == [b.path for b in bad]
    assert not os.path.lexists(path)
    assert store.records() == [record] and store.problems() == []


@pytest.mark.parametrize("kind", [pipe, folder, nowhere, itself], ids=lambda kind: kind.__name__)
def test_what_can_be_no_lease_is_nobodys_and_gives_way(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    store, key = Store(tmp_path), record_of(1).key
    path = plant(store, key, "lease", kind)
    assert store.holder(key) is None and leases.pulse(path) is None
    with pytest.raises(StoreError, match=str(path)):
        leases.take(path)
    with store.lease(key) as lease:
        assert lease.held()


def test_a_merge_passes_over_odd_entries_on_both_sides(tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    for seed in range(3):
        source.write(record_of(seed))
    hidden = [plant(source, FREE[0].key, "lease", folder), plant(source, FREE[1].key, "cell", text)]
    plant(target, record_of(0).key, "lease", pipe)
    plant(target, record_of(1).key, "record", folder)
    merged = merge([source], target)
    assert merged.copied == 3 and len(merged.bad) == 2
    assert all(any(said.startswith(str(path)) for said in merged.bad) for path in hidden)
    assert target.records() == source.records()


# What is closed to this user


@pytest.fixture
def shared() -> Iterator[Store]:
    """A store in a folder that any user of this machine can come to."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o777)
        store = Store(Path(root) / "runs")
        store.root.mkdir()
        os.chmod(store.root, 0o777)
        yield store
        for path in store.root.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


def as_colleague(run: Callable[[], object]) -> None:
    """``run`` in a process of a user whom permissions bind."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            run()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("what", ["prefix", "cell", "record", "curve", "lease"])
def test_what_is_closed_is_told_and_stays_and_the_rest_goes_on(shared: Store, what: str) -> None:
    store, mine, theirs = shared, GOOD[0], GOOD[1]
    before = os.umask(0)
    try:
        mine = store.write(mine, CURVE_OF)
        theirs = store.write(theirs, CURVE_OF)
        if what == "lease":
            (store.folder(theirs.key) / RECORD).unlink()
            plant(store, theirs.key, "lease", text)
    finally:
        os.umask(before)
    place = store.folder(theirs.key)
    place = {"prefix": place.parent, "cell": place}.get(what) or place / PLACES[what]
    place.chmod(0)

    def check() -> None:
        records, bad = store.scan()
        assert records == [mine] and [b.path for b in bad] == [place]
        assert bad[0].closed and bad[0].what == "cannot be read: Permission denied"
        assert store.get(theirs.key) is None
        closed = store.closed(theirs.key)
        assert closed is not None and closed.closed
        told = store.repair()
        assert [(b.path, b.moved_to) for b in told] == [(place, None)]
        store.holder(theirs.key)
        leases.pulse(store.folder(theirs.key) / LEASE)
        with pytest.raises(StoreError, match=r"runs.*Permission denied"):
            store.lease(theirs.key)
        with store.lease(record_of(77).key) as lease:
            store.write(record_of(77), lease=lease)
        assert len(store.records()) == 2

    as_colleague(check)


def test_a_merge_passes_over_what_is_closed(shared: Store) -> None:
    before = os.umask(0)
    try:
        source = Store(shared.root / "source")
        target = Store(shared.root / "target")
        for record in GOOD:
            source.write(record)
        target.write(replace(GOOD[0], status="failed"))
        target.write(replace(GOOD[1], status="failed"))
    finally:
        os.umask(before)
    target.folder(GOOD[0].key).chmod(0)
    target.folder(GOOD[1].key).chmod(0o555)  # to be read, not written
    source.folder(GOOD[2].key).chmod(0)

    def check() -> None:
        merged = merge([source], target)
        assert (merged.copied, merged.replaced, len(merged.bad)) == (1, 0, 3), str(merged)
        assert all("Permission denied" in said for said in merged.bad)
        assert target.get(GOOD[3].key) is not None

    as_colleague(check)


def test_a_damaged_record_of_another_user_is_told_and_stops_no_repair(shared: Store) -> None:
    record = shared.write(GOOD[0])
    folder = shared.folder(GOOD[1].key)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text("{")

    def check() -> None:
        assert [b.path for b in shared.repair()] == [folder / RECORD]
        assert shared.records() == [record]

    as_colleague(check)


@pytest.mark.parametrize("pid", ["a\0b", "uptime", "x" * 5000, [1], 10**4000, -1, 1.5])
def test_a_lease_with_a_value_of_the_wrong_type_stops_nothing(tmp_path: Path, pid: object) -> None:
    store, record = Store(tmp_path), record_of(1)
    path = store.folder(record.key) / LEASE
    path.parent.mkdir(parents=True)
    claim = {"host": "h", "place": leases._place(), "pid": pid, "started": "1", "nonce": "n"}
    path.write_text(json.dumps(claim | {"since": 1.0}))
    assert store.holder(record.key) is None or store.lease(record.key) is None
    store.scan()


def test_a_file_larger_than_the_memory_is_told_and_stops_nothing(
    tmp_path: Path,
) -> None:
    store, good = Store(tmp_path), record_of(0)
    store.write(good)
    path = store.folder(record_of(1).key) / RECORD
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, 2**42)
    records, bad = store.scan()
    assert [r.key for r in records] == [good.key]
    assert [str(b) for b in bad] == [f"{path}: is larger than the memory"]


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"test": {"mse": Estimate(0.5, 2, 0.1, -1.0)}}},
        {"steps": 10**60},
        {"environment": {"ranks": "four"}},
        {"environment": {"ranks": 10**60}},
        {"environment": {"machine": "mine"}},
        {"environment": {"versions": ["torch"]}},
    ],
    ids=str,
)
def test_a_record_with_a_value_that_no_run_writes_is_told(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    store = Store(tmp_path)
    path = store.folder(store.write(record_of(1, **changes)).key) / RECORD
    records, bad = store.scan()
    assert records == [] and [b.path for b in bad] == [path]


def test_the_hint_for_a_closed_cell_opens_the_folder_that_closes_it(shared: Store) -> None:
    place = shared.folder(shared.write(GOOD[1]).key).parent
    place.chmod(0o700)

    def check() -> None:
        closed = shared.closed(GOOD[1].key)
        assert closed is not None and closed.repair.startswith(f"chmod -R a+rX {place}  ")

    as_colleague(check)


@pytest.mark.skipif(os.getuid() != 0, reason="makes a file of another user")
def test_a_stale_lease_that_is_another_users_is_told_and_stops_no_merge(shared: Store) -> None:
    source = Store(shared.root.parent / "source")
    source.write(GOOD[1], CURVE_OF)
    path = plant(shared, GOOD[1].key, "lease", text)
    os.utime(path, (0, 0))
    path.parent.parent.chmod(0o777)
    path.parent.chmod(0o1777)

    def check() -> None:
        merged = merge([source], shared)
        assert len(merged.bad) == 1 and str(path) in merged.bad[0]
        assert [b.path for b in shared.repair()] == [path]

    as_colleague(check)
