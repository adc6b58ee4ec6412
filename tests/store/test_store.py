"""The store: round trips, damage at any byte, full disks, leases that processes race for."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.core.cell import Cell, canonical
from metabench.core.errors import Held, StoreError
from metabench.store import lease as leases
from metabench.store.cell_folder import CHECKPOINT, CURVE, LAM, LEASE, PICTURES, RECORD
from metabench.store.encoding import hash_arrays
from metabench.store.files import write_atomic
from metabench.store.record import SCHEMA, Estimate, Record
from metabench.store.store import LARGEST_LAM, QUARANTINE, Store

numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abcdefgh/.[]0_ é", min_size=1, max_size=12)


def record_of(seed: int, **changes: object) -> Record:
    cell = Cell("ridge", "bilevel", "sgd", seed, budget={"outer_steps": 3})
    return replace(
        Record(key=cell.key, cell=cell, status="done", metrics={"test": {"mse": Estimate(0.5, 1)}}),
        **changes,
    )


CURVE_OF = {"step": [0, 1], "valid/mse": [0.1, None]}
LAM_OF = {"w": np.arange(3.0)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@st.composite
def kept(draw: st.DrawFn) -> tuple[Record, dict, dict]:
    cell = Cell(
        draw(names),
        draw(names),
        "sgd",
        draw(st.integers(0, 2**40)),
        task_settings=draw(st.dictionaries(names, numbers | st.booleans() | names, max_size=3)),
    )
    estimates = st.builds(Estimate, numbers, st.integers(1, 9), numbers | st.none(), st.none())
    record = Record(
        key=cell.key,
        cell=cell,
        status=draw(st.sampled_from(["done", "failed", "diverged", "timeout"])),
        reason=draw(st.text(max_size=20)),
        metrics=draw(st.dictionaries(names, st.dictionaries(names, estimates), max_size=2)),
        cost=draw(st.dictionaries(names, numbers, max_size=3)),
        steps=draw(st.integers(0, 10**9)),
        attempts=draw(st.integers(1, 9)),
    )
    rows = draw(st.integers(1, 4))
    column = st.lists(numbers | st.none(), min_size=rows, max_size=rows)
    curve = draw(st.dictionaries(names, column, min_size=1, max_size=3))
    shapes = st.lists(st.integers(0, 3), max_size=2).map(tuple)
    kinds = st.sampled_from([np.float32, np.float64, np.int64])
    arrays = st.builds(
        lambda shape, kind: np.arange(math.prod(shape)).reshape(shape).astype(kind), shapes, kinds
    )
    return record, curve, draw(st.dictionaries(names, arrays, min_size=1, max_size=3))


@settings(max_examples=40, deadline=None)
@given(kept())
def test_what_is_written_is_read(content: tuple[Record, dict, dict]) -> None:
    record, curve, lam = content
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        written = store.write(record, curve, lam)
        assert store.get(record.key) == written
        assert replace(written, files={}) == record
        assert store.curve(written) == curve
        found = store.lam(written)
        assert found is not None and found.keys() == lam.keys()
        for name, value in lam.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
        assert store.records() == [written]
        assert store.problems() == []


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        store.write(record_of(1), CURVE_OF, {"y": np.ones(2), "x": np.zeros(())})
        folders.append(store.folder(record_of(1).key))
        time.sleep(0.01)
    for file in (RECORD, CURVE, LAM):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damage_at_any_byte_is_found_and_set_aside(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        written = [store.write(record_of(i), CURVE_OF, LAM_OF) for i in range(3)]
        victim = written[0]
        path = store.folder(victim.key) / data.draw(st.sampled_from([RECORD, CURVE, LAM]))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans(), label="truncate"):
            content = content[:at]
        else:
            content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(content))

        found = store.get(victim.key)
        if found is not None:  # white space around JSON may change; nothing that is read may
            assert path.name == RECORD and found == victim
            return
        assert path in [bad.path for bad in store.problems()]
        assert sorted(store.records(), key=lambda r: r.cell.seed) == written[1:]

        moved = store.repair()
        assert path in [bad.path for bad in moved]
        assert all(bad.moved_to is not None and bad.moved_to.exists() for bad in moved)
        assert any(bad.moved_to.read_bytes() == bytes(content) for bad in moved)
        assert store.problems() == [] and store.get(victim.key) is None
        assert store.write(record_of(0), CURVE_OF, LAM_OF) == victim


def test_reading_moves_nothing(store: Store) -> None:
    path = store.folder(store.write(record_of(1)).key) / RECORD
    path.write_text("{")
    assert store.records() == [] and len(store.problems()) == 1
    assert path.read_text() == "{" and not (store.root / QUARANTINE).exists()


def test_a_missing_file_makes_the_record_bad(store: Store) -> None:
    record = store.write(record_of(1), CURVE_OF)
    (store.folder(record.key) / CURVE).unlink()
    (bad,) = store.problems()
    assert CURVE in bad.what and bad.path.name == RECORD
    with pytest.raises(StoreError, match="No such file"):
        store.curve(record)


def test_a_record_in_the_wrong_folder_is_set_aside(store: Store) -> None:
    one, two = (store.write(record_of(i)) for i in (1, 2))
    shutil.copy(store.folder(one.key) / RECORD, store.folder(two.key) / RECORD)
    (bad,) = store.repair()
    assert "another cell" in bad.what
    assert store.records() == [one] and store.get(two.key) is None


def test_foreign_entries_are_reported_and_set_aside(store: Store) -> None:
    record = store.write(record_of(1))
    folder = store.folder(record.key)
    inside, beside, above = folder / "notes.txt", folder.parent / "backup", store.root / "x.csv"
    for path in (inside, beside, above):
        path.write_text("mine")
    misplaced = store.root / ("00" if record.key[:2] != "00" else "01") / record.key
    shutil.copytree(folder, misplaced)
    expected = {inside, beside, above, misplaced}
    assert {bad.path for bad in store.problems()} == expected
    assert {bad.path for bad in store.repair()} == expected
    # What lies directly under the root is left alone.
    assert above.exists() and not inside.exists() and not beside.exists()
    assert {bad.path for bad in store.problems()} == {above}
    assert len(list((store.root / QUARANTINE).iterdir())) == 3
    assert store.records() == [record]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '"x"', "[" * 5000, '{"schema": 9}', "\x00", "ÿþ"]
)
def test_what_is_no_record_is_never_fatal(store: Store, text: str) -> None:
    good = store.write(record_of(1))
    bad = store.folder(record_of(2).key) / RECORD
    bad.parent.mkdir(parents=True)
    bad.write_bytes(text.encode("latin-1"))
    assert store.records() == [good]
    assert [b.path for b in store.repair()] == [bad]


def of_a_later_version(store: Store, seed: int) -> Path:
    """The record of a run, as a later schema would have it, fields that nobody here knows among
    them."""
    path = store.folder(store.write(record_of(seed), curve=CURVE_OF, lam=LAM_OF).key) / RECORD
    data = json.loads(path.read_text()) | {"schema": SCHEMA + 1, "unheard_of": [1]}
    del data["sha256"]
    seal = hashlib.sha256(canonical(data).encode()).hexdigest()
    path.write_text(json.dumps(data | {"sha256": seal}))
    return path


def test_a_record_of_a_later_version_stays_with_its_files(store: Store) -> None:
    path = of_a_later_version(store, 1)
    was = {p: p.read_bytes() for p in path.parent.iterdir()}
    closed = store.closed(path.parent.name)
    assert closed is not None and f"record schema {SCHEMA + 1}, this version" in str(closed)
    assert closed.repair == "pip install --upgrade metabench"
    assert store.records() == [] and [b.path for b in store.repair()] == [path]
    with pytest.raises(StoreError, match="is of a newer metabench"):
        store.lease(path.parent.name)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == was


def test_one_that_says_so_and_is_damaged_is_none_of_a_later_version(store: Store) -> None:
    path = of_a_later_version(store, 1)
    path.write_text(path.read_text().replace('"unheard_of": [1]', '"unheard_of": [2]'))
    assert store.closed(path.parent.name) is None
    assert [b.moved_to is None for b in store.repair()] == [False] and not path.exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_record_with_a_number_that_has_no_canonical_form_is_never_fatal(
    store: Store, number: str
) -> None:
    good = store.write(record_of(1))
    path = store.folder(store.write(record_of(2, cost={"seconds": 7.25})).key) / RECORD
    path.write_text(path.read_text().replace("7.25", number))
    assert store.records() == [good]
    assert [b.path for b in store.repair()] == [path]


def test_a_folder_in_the_place_of_a_record_is_never_fatal(store: Store) -> None:
    good = store.write(record_of(1))
    bad = store.folder(record_of(2).key) / RECORD
    bad.mkdir(parents=True)
    assert store.records() == [good]
    assert [b.path for b in store.repair()] == [bad] and not bad.exists()


def test_a_record_with_a_changed_number_is_refused(store: Store) -> None:
    path = store.folder(store.write(record_of(1)).key) / RECORD
    path.write_text(path.read_text().replace('"mean": 0.5', '"mean": 0.9'))
    (bad,) = store.problems()
    assert "sha256" in bad.what


def test_a_large_lam_is_not_kept(store: Store) -> None:
    record = store.write(record_of(1), None, {"w": np.zeros(LARGEST_LAM + 1, np.float16)})
    assert store.lam(record) is None and record.files == {}
    record = store.write(record_of(2), None, {"w": np.zeros(LARGEST_LAM, np.int8)})
    assert store.lam(record) is not None


def test_pictures_are_kept_beside_lam_and_go_with_their_record(store: Store) -> None:
    shown = {"noisy": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    record = store.write(record_of(1), None, None, shown)
    found = store.pictures(record)
    assert found.keys() == {"noisy"} and np.array_equal(found["noisy"], shown["noisy"])
    assert list(record.files) == [PICTURES] and store.problems() == []
    record = store.write(record_of(1), None, {"w": np.zeros(1)})
    assert store.pictures(record) == {}
    assert not (store.folder(record.key) / PICTURES).exists()


def test_hash_of_arrays_sees_name_type_shape_and_order() -> None:
    base = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(())}
    same = {"b": np.zeros(()), "a": np.asfortranarray(base["a"])}
    assert hash_arrays(base) == hash_arrays(same)
    for other in (
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].astype(np.float32)},
        {**base, "b": np.zeros(1)},
        {"a": base["a"], "c": np.zeros(())},
        {**base, "b": np.full((), -0.0)},
    ):
        assert hash_arrays(other) != hash_arrays(base)


def test_a_failed_record_is_replaced_with_its_files(store: Store) -> None:
    failed = store.write(record_of(1, status="failed", metrics={}), CURVE_OF, LAM_OF)
    done = store.write(record_of(1, attempts=2))
    assert store.get(failed.key) == done and store.problems() == []
    assert sorted(p.name for p in store.folder(done.key).iterdir()) == [RECORD]


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_full_disk_leaves_no_half_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    good = store.write(record_of(1), CURVE_OF, LAM_OF)
    real, calls = os.fsync, iter(range(99))

    def full(fd: int) -> None:
        # One sync a file, before any is put in its place.
        if next(calls) == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write(record_of(2), CURVE_OF, LAM_OF)
    monkeypatch.undo()
    assert store.records() == [good] and store.problems() == []
    left = {path.name for path in store.folder(record_of(2).key).iterdir()}
    assert left <= {CURVE, LAM}
    assert store.write(record_of(2), CURVE_OF, LAM_OF).status == "done"


def test_a_file_that_may_not_grow_is_not_half_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match="x: File too large"):
            write_atomic(path, b"y" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["x"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.write_text("not a folder")
    for look in (Store(root).records, Store(root).problems, Store(root).repair):
        with pytest.raises(StoreError, match="is a file, not the folder of a store"):
            look()


def test_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    assert Store().root == tmp_path / "results" / "runs"
    assert Store().records() == [] and Store().problems() == []
    monkeypatch.setenv("METABENCH_STORE", str(tmp_path / "elsewhere"))
    assert Store().root == tmp_path / "elsewhere"


def test_importing_the_store_does_not_import_torch() -> None:
    code = "import sys, metabench.store.store, metabench.cli.progress\n"
    code += "import metabench.run.workers.local_launcher\n"
    code += "assert not {'torch', 'pandas', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Leases


def dead_holder() -> leases.Holder:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = leases.Holder(
        "here", leases._place(), process.pid, leases._started(process.pid) or "", "n", time.time()
    )
    process.kill()
    process.wait()
    return holder


def plant(store: Store, key: str, holder: leases.Holder | None, text: str = "") -> Path:
    path = store.folder(key) / LEASE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(vars(holder)) if holder else text)
    return path


def test_one_lease_at_a_time(store: Store) -> None:
    key = record_of(1).key
    with store.lease(key) as first:
        assert first.held() and store.lease(key) is None
        assert store.holder(key) == first.holder and str(os.getpid()) in str(first.holder)
    assert store.holder(key) is None and not first.path.exists()
    with store.lease(key) as second:
        first.release()
        assert second.held()


def test_a_dead_process_loses_its_lease(store: Store) -> None:
    key = record_of(1).key
    plant(store, key, dead_holder())
    assert store.holder(key) is None
    with store.lease(key) as lease:
        assert lease.held()
    assert list(store.folder(key).iterdir()) == []


def test_a_zombie_counts_as_dead(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = leases._started(process.pid)
    assert started
    process.kill()
    deadline = time.monotonic() + 10
    while leases._started(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Path(f"/proc/{process.pid}").exists() and leases._started(process.pid) is None
    process.wait()


def test_a_reused_pid_is_not_the_holder(store: Store) -> None:
    key = record_of(1).key
    me = leases.Holder("here", leases._place(), os.getpid(), "1", "n", time.time())
    plant(store, key, me)
    assert store.holder(key) is None


def test_a_live_process_that_is_hidden_keeps_its_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc mounted with hidepid shows the processes of other users as if they were not there."""

    def another_users(pid: int, number: int) -> None:
        raise PermissionError

    key = record_of(1).key
    path = plant(store, key, dead_holder())
    monkeypatch.setattr(os, "kill", another_users)
    assert store.lease(key) is None and store.holder(key) is not None
    os.utime(path, (0, 0))
    assert store.holder(key) is None


def test_another_machine_keeps_its_lease_for_a_lease(store: Store) -> None:
    key = record_of(1).key
    path = plant(store, key, leases.Holder("there", "there/boot/ns", 1, "1", "n", time.time()))
    assert store.lease(key) is None
    holder = store.holder(key)
    assert holder is not None and holder.host == "there"
    old = time.time() - leases.LEASE_SECONDS - 5
    os.utime(path, (old, old))
    assert store.holder(key) is None
    with store.lease(key) as lease:
        assert lease.held()


def test_a_garbled_lease_is_given_a_lease(store: Store) -> None:
    key = record_of(1).key
    path = plant(store, key, None, "garbage")
    assert store.lease(key) is None and store.holder(key) is not None
    old = time.time() - leases.LEASE_SECONDS - 5
    os.utime(path, (old, old))
    with store.lease(key) as lease:
        assert lease.held()


def test_the_heartbeat_warms_the_own_lease_only(tmp_path: Path) -> None:
    path = tmp_path / LEASE
    with leases.take(path, beat=0.02) as lease:
        old = time.time() - 1000
        os.utime(path, (old, old))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < old + 500 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > old + 500
        other = plant(
            Store(tmp_path), record_of(1).key, leases.Holder("there", "t", 1, "1", "m", 0.0)
        )
        os.utime(other, (old, old))
        os.replace(other, path)
        time.sleep(0.2)
        assert path.stat().st_mtime < old + 500
        assert lease.lost
    assert json.loads(path.read_text())["nonce"] == "m"


def test_who_lost_the_lease_must_not_write(store: Store) -> None:
    record = record_of(1)
    with store.lease(record.key) as lease:
        plant(store, record.key, leases.Holder("there", "t", 1, "1", "m", time.time()))
        with pytest.raises(Held, match="taken"):
            store.write(record, CURVE_OF, lease=lease)
    assert os.listdir(store.folder(record.key)) == [LEASE]


def test_what_killed_processes_leave_is_tidied_up(store: Store) -> None:
    record = store.write(record_of(1))
    folder = store.folder(record.key)
    plant(store, record.key, dead_holder())
    (folder / CHECKPOINT).write_bytes(b"old")
    (folder / ".record.json.abc.tmp").write_bytes(b"half")
    assert store.problems() == []
    assert store.repair() == []
    assert os.listdir(folder) == [RECORD] and store.get(record.key) == record


def test_a_running_cell_is_not_mended(store: Store) -> None:
    path = store.folder(record_of(1).key) / RECORD
    with store.lease(record_of(1).key) as lease:
        path.write_text("half")
        (path.parent / ".x.tmp").touch()
        plant_there = os.listdir(path.parent)
        other = (
            "import sys; from metabench.store.store import Store; "
            "print(Store(sys.argv[1]).repair())"
        )
        done = subprocess.run(
            [sys.executable, "-c", other, str(store.root)], check=True, capture_output=True
        )
        assert done.stdout.strip() == b"[]"
        assert sorted(os.listdir(path.parent)) == sorted(plant_there)
        assert len(store.repair_leased(lease)) == 1


RACE = """
import os, sys, time
from metabench.store.store import Store
store, log, keys = Store(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
print("ready", flush=True)
sys.stdin.readline()
fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for key in keys:
    lease = store.lease(key)
    if lease is not None:
        os.write(fd, f"+{key}\\n".encode())
        time.sleep(0.002)
        assert lease.held()
        os.write(fd, f"-{key}\\n".encode())
        lease.release()
"""


def test_a_draft_that_another_holder_tidies_away_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two launchers on one store: who gets the lease removes every draft in the folder."""
    key, link, tidied = record_of(1).key, os.link, []

    def tidied_away(draft: Path, path: Path) -> None:
        if not tidied:
            tidied.append(draft)
            draft.unlink()
        link(draft, path)

    monkeypatch.setattr(os, "link", tidied_away)
    with store.lease(key) as first:
        assert tidied and first.held()
        tidied.clear()
        assert store.lease(key) is None and tidied
    assert list(store.folder(key).iterdir()) == []


def test_several_processes_never_hold_one_lease_together(store: Store, tmp_path: Path) -> None:
    keys = [record_of(i).key for i in range(60)]
    dead = dead_holder()
    for key in keys[::2]:
        plant(store, key, replace(dead, nonce=key[:8]))  # half of them to be taken over
    log = tmp_path / "log"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(store.root), str(log), ",".join(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    held: set[str] = set()
    for line in log.read_text().splitlines():
        key = line[1:]
        if line[0] == "+":
            assert key not in held
            held.add(key)
        else:
            held.remove(key)
    assert set(keys) == {line[1:] for line in log.read_text().splitlines()}
    assert all(list(store.folder(key).iterdir()) == [] for key in keys)
