"""The records that are committed with a suite's results."""

from __future__ import annotations

from pathlib import Path

from metabench.store.published import RECORDS, Published
from metabench.store.record import Record


def committed(folder: Path) -> dict[str, Record]:
    """Key to record of a folder of results; empty where it has none.

    Raises ValueError, naming file and line, for what is no published record.
    """
    path = folder / RECORDS
    if not path.is_file():
        return {}
    published = Published(path)
    for bad in published.problems():
        raise ValueError(str(bad))
    return {record.key: record for record in published.records()}
