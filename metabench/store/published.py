"""Published records: one file a suite, gzip, a line of JSON a cell, sorted by key.

A line holds the fields of ``record.json``, ``curve`` (the learning curve, empty where there is
none), and ``sha256`` of the canonical JSON of all the rest. ``files`` is empty: the curve is in the
line, and of lam the record's own ``lam`` is all that is published (summaries, sha256 of the
values, and the values themselves up to 64 of them). Equal records give equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from metabench.core.catalogue import arena_names
from metabench.core.cell import CONTRACT, canonical
from metabench.core.errors import WrongPath
from metabench.store import lines, prices
from metabench.store.files import BadFile
from metabench.store.record import Curve, Record, from_dict
from metabench.store.store import Store

if TYPE_CHECKING:
    from metabench.store.encoding import Arrays

RECORDS = "records.jsonl.gz"
SCORES = "arena scores"
"""The form of a file that has no whole records: :mod:`metabench.suites.arena.scores`."""
HOSTS = frozenset({"host", "node", "rank_hosts"})
"""Entries of an environment that name a machine, and often its owner."""

_curve = TypeAdapter(Curve)
_END = r"\s\"'<>|,;()\[\]{}"
_PATH = re.compile(
    # In quotes a path may hold spaces.
    r"""(?P<quote>["'])(?P<quoted>(?:/(?!/)|~|\\\\|[A-Za-z]:[\\/])[^"'\n]*[\\/][^"'\n]*)(?P=quote)"""
    rf"|(?<![\w/.])(?:~[\w.-]*[\\/]|\\\\|[A-Za-z]:[\\/]|/(?![/\s])[^/{_END}]+/)[^{_END}]*"
)
_ROOMS = ("metabench", "tasks", "methods")


class Published:
    """The records of one published file, which reads as a store does.

    Lines that cannot be trusted are left out and told by :meth:`problems`. Raises StoreError where
    the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path)
        self._records: dict[str, Record] = {}
        self._curves: dict[str, Curve] = {}
        self._bad = lines.read(self.root, self._take)

    def get(self, key: str) -> Record | None:
        """The record of a cell, or None."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """Every record that can be trusted, in the order of the file."""
        return list(self._records.values())

    def scan(self) -> tuple[list[Record], list[BadFile]]:
        """:meth:`records` and :meth:`problems`."""
        return self.records(), self.problems()

    def folder(self, key: str) -> Path:
        """Where a store would have the files of a cell; there are none."""
        return self.root / key

    def holder(self, key: str) -> None:
        """Nobody runs a published cell."""

    def closed(self, key: str) -> None:
        """A published file is read whole or not at all."""

    def curve(self, record: Record) -> Curve:
        """The learning curve of a record; empty where it has none."""
        return self._curves.get(record.key, {})

    def lam(self, record: Record) -> Arrays | None:
        """None: the whole of lam is not published."""
        return None

    def pictures(self, record: Record) -> Arrays:
        """None are published."""
        return {}

    def prices(self) -> dict[str, prices.Prices]:
        """Key of a problem to the measured prices of its counts, of the file beside this one."""
        return prices.read(self.root.with_name(prices.FILE))

    def problems(self) -> list[BadFile]:
        """What cannot be trusted, each reason once with its lines."""
        return self._bad

    def _take(self, line: bytes) -> None:
        """Raises ValueError for what is no published record of this version."""
        data = lines.opened(line)
        if data.get("form") == SCORES:
            name, budget = (str(data.get(word)) for word in ("arena", "budget"))
            typed = name if name in arena_names() else f"{name}.toml"
            raise WrongPath(
                f"{self.root} has the scores of arena {name!r} and no whole records: rank, table, "
                "arena, status and leaderboard read it, and nothing else can use it. Whole records "
                f"are made by running the cells: metabench arena {typed} --budget {budget} --anew"
            )
        record, curve = _parsed(data)
        if record.key in self._records:
            raise ValueError("another line has a record of the same cell")
        self._records[record.key], self._curves[record.key] = record, curve


def publish(
    records: Iterable[Record],
    store: Store,
    path: str | Path,
    curve: Callable[[Record], Curve] | None = None,
) -> Path:
    """Write these records of a store to ``path``, without what names a person or a machine.
    ``curve``: the learning curve that is written of a record, in the place of the store's.

    Raises StoreError where a curve cannot be read or the disk refuses.
    """
    path, curve = Path(path), curve or store.curve
    lines.write(path, [render(r, curve(r)) for r in sorted(records, key=lambda r: r.key)])
    return path


def render(record: Record, curve: Curve) -> bytes:
    """The line of a record, without what names a person or a machine."""
    data = json.loads(canonical(replace(private(record.whole()), files={}).as_dict()))
    return lines.sealed({**data, "curve": curve})


def private(record: Record) -> Record:
    """A record without what names a person or a machine: absolute paths and hosts."""
    names = ("reason", "traceback", "notes", "environment")
    told = {name: _private(json.loads(canonical(getattr(record, name)))) for name in names}
    return replace(record, **{**told, "environment": _without_hosts(told["environment"])})


def without_paths(text: str) -> str:
    """``text`` with absolute paths cut down to what lies in a package, else to the file's name."""
    return _PATH.sub(_shorter, text)


def _shorter(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    parts = [part for part in re.split(r"[\\/]+", found["quoted"] or found[0]) if part]
    for number in reversed(range(len(parts) - 1)):
        name = parts[number]
        if name in _ROOMS:
            parts = parts[number:]
            break
        if name.endswith("-packages") or re.fullmatch(r"python\d[\d.]*", name):
            parts = parts[number + 1 :]
            break
    else:
        parts = parts[-1:]
    return quote + "/".join(parts) + quote


def _private(data: Any) -> Any:
    if isinstance(data, str):
        return without_paths(data)
    if isinstance(data, dict):
        return {name: _private(value) for name, value in data.items()}
    return [_private(value) for value in data] if isinstance(data, list) else data


def _without_hosts(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {k: _without_hosts(v) for k, v in data.items() if k not in HOSTS}


def _parsed(data: dict[str, Any]) -> tuple[Record, Curve]:
    curve = data.pop("curve", {})
    record = from_dict(data)
    if record.cell.contract != CONTRACT:
        raise ValueError(
            f"is of contract {record.cell.contract}, and this version of metabench reads contract "
            f"{CONTRACT}: import it with the version that the file was published with"
        )
    try:
        columns = _curve.validate_python(curve, strict=True).values()
    except ValidationError:
        raise ValueError("has a curve that is not columns of numbers") from None
    if len({len(column) for column in columns}) > 1:
        raise ValueError("has a curve whose columns differ in length")
    return record, curve
