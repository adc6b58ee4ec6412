"""What a store lacks is copied from other stores, or from published files; what they disagree about
is told, and never overwritten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.core.errors import Held, StoreError, WrongPath
from metabench.store import prices
from metabench.store.record import Record, curve_outcome
from metabench.store.store import Store

if TYPE_CHECKING:
    from metabench.store.published import Published


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
    """Files of the sources that cannot be trusted, and cells of the target that are closed to this
    user; not copied."""

    def __str__(self) -> str:
        counts = {
            "copied": self.copied,
            "replaced": self.replaced,
            "the same in both": self.same,
            "kept": self.kept,
            "being run": len(self.running),
            "in conflict": len(self.conflicts),
            "bad file" if len(self.bad) == 1 else "bad files": len(self.bad),
        }
        return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to merge"


def merge(sources: Iterable[Store | Published], target: Store, *, dry_run: bool = False) -> Merged:
    """Copy into ``target`` every record that it lacks or has in a worse state; sources stay as they
    are. Merging again changes nothing. ``dry_run``: nothing is written, and what would be is
    counted.

    Raises StoreError where the target refuses, WrongPath where a source is not there or is the
    target.
    """
    sources = list(sources)
    merging = _Merging(target, dry_run)
    held: list[tuple[Record, Store | Published]] = []
    for source in sources:
        if not source.root.exists():
            raise WrongPath(f"{source.root}: there is no store")
        if source.root.resolve() == target.root.resolve():
            raise WrongPath(f"{source.root} cannot be merged into itself")
        merging.out.bad += [str(b) for b in source.problems()]
        held += [(record, source) for record in source.records() if not merging.add(record, source)]
    for record, source in held:  # another merge lets go of a cell in no time
        if not merging.add(record, source):
            merging.out.running.append(str(record.cell))
    if not dry_run:
        _merge_prices(sources, target)
    return merging.out


def _merge_prices(sources: Iterable[Store | Published], target: Store) -> None:
    """Measured prices that the target lacks; those that it has were measured where it is used."""
    known = target.prices()
    new = {k: p for source in sources for k, p in source.prices().items() if k not in known}
    if new:
        prices.keep(target.root / prices.FILE, new.values(), older=True)


class _Merging:
    def __init__(self, target: Store, dry_run: bool) -> None:
        self.target, self.dry_run = target, dry_run
        self.out = Merged()
        self.unwritten: dict[str, tuple[Record, Store | Published]] = {}
        """What a dry run would have written by now."""

    def add(self, record: Record, source: Store | Published) -> bool:
        """False where the record is to be copied and somebody is running the cell."""
        try:
            return self._add(record, source)
        except Held:
            return False
        except StoreError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            self.out.bad.append(str(error))  # a cell of another user
            return True

    def _add(self, record: Record, source: Store | Published) -> bool:
        known, place = self.unwritten.get(record.key) or (self.target.get(record.key), self.target)
        if known is not None and (known.status == "done" or record.status != "done"):
            if record.status != "done":
                self.out.kept += 1
            elif different := _difference(known, record, place, source):
                self.out.conflicts.append(Conflict(str(record.cell), source.root, different))
            else:
                self.out.same += 1
        elif known is None and (closed := self.target.closed(record.key)) is not None:
            self.out.bad.append(str(closed))
        elif not self._written(record, source):
            return False
        elif known is None:
            self.out.copied += 1
        else:
            self.out.replaced += 1
        return True

    def _written(self, record: Record, source: Store | Published) -> bool:
        """False where somebody is running the cell, or has finished it by now."""
        if self.dry_run:
            if self.target.holder(record.key) is not None:
                return False
            self.unwritten[record.key] = record, source
            return True
        lease = self.target.lease(record.key)
        if lease is None:
            return False
        with lease:
            if (now := self.target.get(record.key)) is not None and now.status == "done":
                return False
            self.target.repair_leased(lease)
            kept = source.curve(record), source.lam(record), source.pictures(record)
            self.target.write(record, *kept, lease=lease)
        return True


def _difference(
    mine: Record, theirs: Record, target: Store | Published, source: Store | Published
) -> str:
    """What two finished records of a cell disagree about, and where each was made; "" where they
    are equal in every bit that may not depend on the machine. A curve that one of them lacks is no
    disagreement: some published records have none."""
    one, two = mine.outcome(), theirs.outcome()
    names = [name for name in one if one[name] != two.get(name)]
    curves = [curve_outcome(c) for c in (target.curve(mine), source.curve(theirs)) if c]
    if len(curves) == 2 and curves[0] != curves[1]:
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
