"""Records of cells whose processes cannot write them; needs no torch."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime

from metabench.contract.seeds import STREAMS, seed_for
from metabench.core.cell import Cell
from metabench.store.record import Record, Status
from metabench.store.store import Store


def failed_record(cell: Cell, status: Status, reason: str, attempts: int = 1) -> Record:
    """What is known of a cell without having run it."""
    return Record(
        key=cell.key,
        cell=cell,
        status=status,
        reason=reason,
        attempts=attempts,
        seeds={stream: seed_for(cell.seed, stream) for stream in STREAMS},
        environment={"machine": {"host": platform.node()}},
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def write_failure(
    store: Store, cell: Cell, status: Status, reason: str, final: Callable[[Record], bool]
) -> Record | None:
    """Write a record for a cell whose process could not, unless it has one that is ``final``; its
    checkpoint stays. The record that it has now, None where somebody alive holds the lease.

    Raises StoreError.
    """
    lease = store.lease(cell.key)
    if lease is None:
        return None
    with lease:
        known = store.get(cell.key)
        if known is not None and final(known):
            return known
        attempts = known.attempts + 1 if known is not None else 1
        return store.write(failed_record(cell, status, reason, attempts), lease=lease)
