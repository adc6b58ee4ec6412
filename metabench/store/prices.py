"""What each count costs on a problem, in inner gradients: measured once, kept beside the records.

``prices.json`` of a store, or of a published suite, maps the key of a problem (task and settings)
to what :mod:`metabench.run.costs.prices` has measured.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metabench.core.cell import Cell, canonical
from metabench.core.costs import equivalents
from metabench.core.errors import StoreError
from metabench.store import files
from metabench.store.files import write_atomic
from metabench.store.lease import locked

FILE = "prices.json"
_DRAFT = re.compile(rf"\.{re.escape(FILE)}\.[0-9a-f]+\.tmp")


@dataclass(frozen=True)
class Prices:
    """The price of one of each count, in inner gradients of the same problem; what the problem
    does not have, or no derivative gives, has none."""

    task: str
    settings: dict[str, Any]
    of: dict[str, float]
    inner_gradient_seconds: float
    processor: str
    threads: int
    torch: str

    @property
    def key(self) -> str:
        """Of the problem."""
        return problem_key(self.task, self.settings)

    def equivalents(self, counts: Mapping[str, float]) -> float | None:
        """What counts come to in inner gradients; None where one of them has no price."""
        return equivalents(counts, self.of)


@functools.cache
def _file() -> TypeAdapter[dict[str, Prices]]:
    """Made where a file of prices is read."""
    return TypeAdapter(dict[str, Prices])


def problem_key(task: str, settings: Mapping[str, Any]) -> str:
    """The key of a problem: sha256 of its task and settings, 16 digits."""
    return hashlib.sha256(canonical([task, dict(settings)]).encode()).hexdigest()[:16]


def of_cell(known: Mapping[str, Prices], cell: Cell) -> Prices | None:
    """The prices of a cell's problem, where they are known."""
    return known.get(problem_key(cell.task, cell.task_settings))


def read(path: Path) -> dict[str, Prices]:
    """Key of a problem to its prices; empty where there is no file. Raises StoreError for one that
    is something else."""
    try:
        data = files.read(path)
        return {} if data is None else _file().validate_json(data)
    except (files.Unreadable, ValidationError) as error:
        why = str(error).partition("\n")[0]
        raise StoreError(f"{path} holds no prices: {why}; delete it and calibrate again") from None


def write(path: Path, prices: Iterable[Prices]) -> None:
    """The file of these prices, in the order of their keys."""
    found = {p.key: asdict(p) for p in sorted(prices, key=lambda p: (p.task, p.key))}
    write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())


def keep(path: Path, prices: Iterable[Prices], *, older: bool = False) -> None:
    """Put these into the file, in the place of others of the same problems; those are kept where
    these are ``older``. One process at a time: none loses what another has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {p.key: p for p in prices}
    with locked(path.parent):
        known = read(path)
        write(path, ({**new, **known} if older else {**known, **new}).values())


def is_draft(entry: Path) -> bool:
    """Whether an entry is what :func:`write` is killed over, or is writing now."""
    return _DRAFT.fullmatch(entry.name) is not None and files.odd(entry) is None


def tidy(root: Path) -> None:
    """Remove what a killed process has left of the file under ``root``. Raises StoreError."""
    if any(map(is_draft, files.entries(root))):
        with locked(root):
            for entry in files.entries(root):
                if is_draft(entry):
                    files.remove(entry)
