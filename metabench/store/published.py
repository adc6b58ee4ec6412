"""Published records: one file a suite, gzip, a line of JSON a cell, sorted by key.

A line holds the fields of ``record.json``, ``curve`` (the learning curve, empty where there is
none), and ``sha256`` of the canonical JSON of all the rest. ``files`` is empty: the curve is in the
line, and of lam the record's own ``lam`` is all that is published (summaries, sha256 of the
values, and the values themselves up to 64 of them). Equal records give equal bytes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from metabench.core.cell import CONTRACT, canonical
from metabench.core.errors import StoreError
from metabench.core.text import listed
from metabench.store import files, prices
from metabench.store.files import BadFile, write_atomic
from metabench.store.record import Curve, Record, from_dict
from metabench.store.store import Store

if TYPE_CHECKING:
    from metabench.store.encoding import Arrays

RECORDS = "records.jsonl.gz"
LONGEST_LINE = 2**26
"""Bytes; a longer line is reported and not read."""
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
        self._bad: dict[str, list[int]] = {}
        self._read()

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
        return [BadFile(self.root, f"{_lines(n)}: {what}") for what, n in self._bad.items()]

    def _read(self) -> None:
        number = 0
        try:
            if (data := files.read(self.root)) is None:
                raise StoreError(f"{self.root}: {os.strerror(errno.ENOENT)}")
            with gzip.open(io.BytesIO(data)) as file:
                for number, line in enumerate(_split(file), 1):
                    try:
                        record, curve = _parsed(line)
                        if record.key in self._records:
                            raise ValueError("another line has a record of the same cell")
                    except (ValueError, RecursionError) as error:
                        what = str(error).partition("\n")[0]
                        self._bad.setdefault(what, []).append(number)
                    else:
                        self._records[record.key], self._curves[record.key] = record, curve
            if not number:
                raise EOFError("there is nothing in it")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            self._bad[f"the file is damaged from here on: {error}"] = [number + 1]
        except files.Unreadable as error:
            raise StoreError(str(error)) from None


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
    lines = [render(r, curve(r)) for r in sorted(records, key=lambda r: r.key)]
    buffer = io.BytesIO()
    # Neither a time nor a file name in the header.
    with gzip.GzipFile("", "wb", fileobj=buffer, mtime=0) as file:
        file.writelines(lines)
    write_atomic(path, buffer.getvalue())
    return path


def render(record: Record, curve: Curve) -> bytes:
    """The line of a record, without what names a person or a machine."""
    data = json.loads(canonical(replace(private(record), files={}).as_dict()))
    # A curve is the most of a line: it is written once, and sealed as it is written.
    parts = {name: canonical(value) for name, value in {**data, "curve": curve}.items()}
    parts["sha256"] = canonical(hashlib.sha256(_joined(parts).encode()).hexdigest())
    return f"{_joined(parts)}\n".encode()


def _joined(parts: dict[str, str]) -> str:
    """Canonical JSON of a dictionary, from that of its values."""
    return "{" + ",".join(f"{canonical(name)}:{parts[name]}" for name in sorted(parts)) + "}"


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


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def _split(file: gzip.GzipFile) -> Iterator[bytes]:
    """Lines, cut off after ``LONGEST_LINE`` bytes; the rest of a longer one is passed over."""
    while line := file.readline(LONGEST_LINE + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
            pass


def _parsed(line: bytes) -> tuple[Record, Curve]:
    """Raises ValueError for what is no published record of this version."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE:,} bytes")
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("is not a record")
    seal = data.pop("sha256", None)
    if seal != _seal(data):
        raise ValueError("is not what was published: its sha256 differs")
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


def _lines(numbers: list[int]) -> str:
    shown = [f"{n}" for n in numbers[:5]]
    if len(numbers) > 6:
        shown.append(f"{len(numbers) - 5} more")
    else:
        shown += [f"{n}" for n in numbers[5:]]
    return ("line " if len(numbers) == 1 else "lines ") + listed(shown)
