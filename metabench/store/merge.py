"""Two stores become one: what one lacks is copied, and what they disagree about is reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metabench.core.errors import StoreError
from metabench.store.record import Record, curve_outcome
from metabench.store.store import Store


@dataclass(frozen=True)
class Conflict:
    """A cell that both stores have finished, with different results; the target's was kept."""

    cell: str
    source: Path
    what: str

    def __str__(self) -> str:
        return f"{self.cell}: {self.what}; kept the target's, not that of {self.source}"


@dataclass
class Merged:
    """What came of a merge, in cells."""

    copied: int = 0
    replaced: int = 0
    """Cells that were not done in the target and are in the source."""
    same: int = 0
    kept: int = 0
    """Cells of which the target has as good a record or a better one."""
    running: list[str] = field(default_factory=list)
    """Left alone: somebody is running them in the target."""
    conflicts: list[Conflict] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    """Files of the sources that cannot be trusted; not copied."""

    def __str__(self) -> str:
        counts = {
            "copied": self.copied,
            "replaced": self.replaced,
            "the same in both": self.same,
            "kept": self.kept,
            "being run": len(self.running),
            "in conflict": len(self.conflicts),
            "bad files": len(self.bad),
        }
        return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to merge"


def merge(sources: Iterable[Store], target: Store) -> Merged:
    """Copy into ``target`` every record that it lacks or has in a worse state; sources stay as they
    are. Merging again changes nothing. Raises StoreError where the target refuses, or where a
    source is not there or is the target.
    """
    out = Merged()
    for source in sources:
        if not source.root.is_dir():
            raise StoreError(f"{source.root}: there is no store")
        if source.root.resolve() == target.root.resolve():
            raise StoreError(f"{source.root} cannot be merged into itself")
        out.bad += [str(b) for b in source.problems()]
        for record in source.records():
            _merge_one(record, source, target, out)
    return out


def _merge_one(record: Record, source: Store, target: Store, out: Merged) -> None:
    known = target.get(record.key)
    if known is not None and (known.status == "done" or record.status != "done"):
        if record.status != "done":
            out.kept += 1
        elif different := _difference(known, record, target, source):
            out.conflicts.append(Conflict(str(record.cell), source.root, different))
        else:
            out.same += 1
        return
    lease = target.lease(record.key)
    if lease is None:
        out.running.append(str(record.cell))
        return
    with lease:
        target.repair_leased(lease)
        target.write(record, source.curve(record), source.lam(record), lease=lease)
    if known is None:
        out.copied += 1
    else:
        out.replaced += 1


def _difference(mine: Record, theirs: Record, target: Store, source: Store) -> str:
    """What two finished records of a cell disagree about, and where each was made; "" where they
    are equal in every bit that may not depend on the machine."""
    one, two = mine.outcome(), theirs.outcome()
    names = [name for name in one if one[name] != two.get(name)]
    if curve_outcome(target.curve(mine)) != curve_outcome(source.curve(theirs)):
        names.append("curve")
    if not names:
        return ""
    made = " and ".join(_where(r) for r in (mine, theirs))
    return f"different {', '.join(names)} (made on {made})"


def _where(record: Record) -> str:
    machine: dict[str, Any] = record.environment.get("machine", {})
    versions: dict[str, Any] = record.environment.get("versions", {})
    device = record.environment.get("device", "?")
    return f"{machine.get('host', '?')} ({device}, torch {versions.get('torch', '?')})"
