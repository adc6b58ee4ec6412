"""Whether two checkouts give the same records: the same cells, the same numbers to the last bit.

In each checkout, with the same machine, packages and data:

    metabench run all --budget smoke --store STORE

then, in either, ``python -m benchmarks.same_records STORE OTHER [SUITE ...]``: a line a suite, and
every difference by cell and place. Exits with 1 where there is one. Clocks, memory, the machine and
the version of the code may differ; nothing else may.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metabench.core.catalogue import suite_names
from metabench.suites import loading as suites

CLOCKS = {"seconds", "evaluation_seconds", "peak_memory_bytes", "peak_device_memory_bytes"}
MACHINE = {"environment", "started", "ended", "attempts", "files", "notes"}


def folder(store: Path, key: str) -> Path:
    return store / key[:2] / key


def outcome(place: Path) -> dict[str, Any]:
    """What the record, the curve and the final lam of a cell say, without clocks; raises OSError
    and ValueError where the files do not."""
    record = json.loads((place / "record.json").read_text(encoding="utf-8"))
    if isinstance(record.get("record"), dict):
        record = record["record"]
    record = {k: v for k, v in record.items() if k not in MACHINE and k != "sha256"}
    record["cost"] = {k: v for k, v in record["cost"].items() if k not in CLOCKS}
    curve = place / "curve.json.gz"
    columns = json.loads(gzip.decompress(curve.read_bytes())) if curve.is_file() else {}
    lam = place / "lam.npz"
    return {
        "record": record,
        "curve": {k: v for k, v in columns.items() if k != "cost/seconds"},
        "lam": hashlib.sha256(lam.read_bytes()).hexdigest() if lam.is_file() else None,
    }


def differences(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """Every place at which two pieces of JSON differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from differences(one.get(name), other.get(name), f"{at}/{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, at=f"{at}[{number}]")
    elif one != other:
        yield f"{at}: {one!r} and {other!r}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stores", nargs=2, type=Path, metavar="STORE")
    parser.add_argument("suites", nargs="*", help="all without any")
    parser.add_argument("--budget", default="smoke")
    given = parser.parse_args()
    first, second = given.stores
    wrong = False
    for name in given.suites or suite_names():
        keys = {c.cell.key: c for c in suites.load(name).cells(given.budget) if c.skip is None}
        here, there = (
            {k for k in keys if folder(store, k).joinpath("record.json").is_file()}
            for store in (first, second)
        )
        found = []
        for key in sorted(here & there):
            told = list(differences(outcome(folder(first, key)), outcome(folder(second, key))))
            found += [f"  {keys[key].cell}: {line}" for line in told]
        alone = [f"  {keys[k].cell}: in one store only" for k in sorted(here ^ there)]
        same = len(here & there) - len({line.split(":")[0] for line in found})
        print(f"{name}: {same} of {len(here | there)} records equal, {len(keys)} cells")
        print("\n".join([*found, *alone]), end="\n" * bool(found or alone))
        wrong |= bool(found or alone)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
