"""Two stores into one: nothing lost, nothing overwritten, disagreements told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.store.cell_folder import RECORD
from metabench.store.lease import Lease
from metabench.store.merge import merge
from metabench.store.record import Estimate, Record
from metabench.store.store import Store


def record(seed: int, status: str = "done", accuracy: float = 0.5, host: str = "a") -> Record:
    cell = Cell("ridge", "bilevel", "sgd", seed)
    return Record(
        key=cell.key,
        cell=cell,
        status=status,  # type: ignore[arg-type]
        metrics={"test": {"accuracy": Estimate(accuracy, 3)}} if status == "done" else {},
        environment={"machine": {"host": host}, "device": "cpu"},
    )


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    return Store(tmp_path / "one"), Store(tmp_path / "two")


def test_each_cell_ends_with_its_best_record(stores: tuple[Store, Store]) -> None:
    one, two = stores
    curve = {"step": [0.0, 1.0], "cost/seconds": [0.1, 0.2]}
    one.write(record(0), curve)
    one.write(record(1))
    one.write(record(2))
    one.write(record(3, "failed"))
    two.write(record(1, host="b"), None)
    two.write(record(2, "failed"))
    two.write(record(3))
    merged = merge([one], two)
    assert (merged.copied, merged.same, merged.replaced, merged.kept) == (1, 1, 1, 1)
    assert not merged.conflicts and not merged.bad
    assert {r.cell.seed: r.status for r in two.records()} == dict.fromkeys(range(4), "done")
    copied = two.get(record(0).key)
    assert copied is not None and two.curve(copied) == curve
    assert copied == one.get(record(0).key), "to the last bit"
    assert two.problems() == []
    again = merge([one], two)
    assert (again.copied, again.replaced, again.same) == (0, 0, 3)
    assert str(merged) == "1 copied, 1 replaced, 1 the same in both, 1 kept"


def test_results_that_differ_are_told_and_not_copied(stores: tuple[Store, Store]) -> None:
    one, two = stores
    one.write(record(0, accuracy=0.7, host="a"))
    two.write(record(0, accuracy=0.6, host="b"))
    one.write(record(1), {"step": [1.0]})
    two.write(record(1), {"step": [2.0]})
    merged = merge([one], two)
    said = sorted(c.what for c in merged.conflicts)
    assert said == [
        "different curve (made on a (cpu, torch ?) and a (cpu, torch ?))",
        "different metrics (made on b (cpu, torch ?) and a (cpu, torch ?))",
    ]
    kept = two.get(record(0).key)
    assert kept is not None and kept.metrics["test"]["accuracy"].mean == 0.6


def test_what_cannot_be_trusted_or_is_being_run_is_left_alone(
    stores: tuple[Store, Store],
) -> None:
    one, two = stores
    one.write(record(0))
    one.write(record(1))
    path = one.folder(record(0).key) / RECORD
    path.write_bytes(path.read_bytes()[:50])
    lease = two.lease(record(1).key)
    assert lease is not None
    with lease:
        merged = merge([one], two)
    assert merged.copied == 0 and merged.running == [str(record(1).cell)]
    assert len(merged.bad) == 1 and "cannot be read" in merged.bad[0]
    with pytest.raises(StoreError, match="into itself"):
        merge([one], one)
    with pytest.raises(StoreError, match="there is no store"):
        merge([Store(one.root / "no")], two)
    assert replace(record(0), status="failed").status == "failed"


@pytest.mark.parametrize("lets_go", [True, False])
def test_what_another_merge_writes_meanwhile_stays(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, lets_go: bool
) -> None:
    """It writes the first cell between this one's look at the cell and its lease, or holds it."""
    one, two = stores
    for seed in range(3):
        one.write(record(seed))
    theirs: list[Record] = []
    free = two.lease

    def lease(key: str) -> Lease | None:
        if theirs:
            return free(key)
        theirs.append(
            two.write(next(r for s in range(3) if (r := record(s, accuracy=0.7)).key == key))
        )
        return free(key) if lets_go else None

    monkeypatch.setattr(two, "lease", lease)
    merged = merge([one], two)
    assert (merged.copied, len(merged.conflicts), merged.running) == (2, 1, [])
    assert two.get(theirs[0].key) == theirs[0]
