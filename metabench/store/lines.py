"""Files of sealed lines: gzip, on each line JSON with the sha256 of all the rest of it.

Equal content gives equal bytes. A line that cannot be trusted is told by its number and left out.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from metabench.core.cell import canonical
from metabench.core.errors import StoreError, WrongPath
from metabench.core.text import listed
from metabench.store import files
from metabench.store.files import BadFile, write_atomic

LONGEST_LINE = 2**26
"""Bytes; a longer line is reported and not read."""


def write(path: Path, lines: Iterable[bytes]) -> None:
    """Put a file of these lines at ``path``. Raises StoreError where the disk refuses."""
    buffer = io.BytesIO()
    # Neither a time nor a file name in the header.
    with gzip.GzipFile("", "wb", fileobj=buffer, mtime=0) as file:
        file.writelines(lines)
    write_atomic(path, buffer.getvalue())


def sealed(data: dict[str, Any]) -> bytes:
    """The line of these data."""
    # What is long is written once, and sealed as it is written.
    parts = {name: canonical(value) for name, value in data.items()}
    parts["sha256"] = canonical(_seal(_joined(parts)))
    return f"{_joined(parts)}\n".encode()


def opened(line: bytes) -> dict[str, Any]:
    """What :func:`sealed` was given. Raises ValueError, with the reason, for anything else."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE:,} bytes")
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("is not a record")
    if data.pop("sha256", None) != _seal(canonical(data)):
        raise ValueError("is not what was published: its sha256 differs")
    return data


def read(path: Path, take: Callable[[bytes], None]) -> list[BadFile]:
    """Give each line to ``take``; what it raises ValueError for, and where the file is damaged:
    each reason once with its lines.

    Raises StoreError where the file cannot be opened, WrongPath where it is none.
    """
    number, bad = 0, dict[str, list[int]]()
    try:
        for number, line in enumerate(_lines(path), 1):
            try:
                take(line)
            except (ValueError, RecursionError) as error:
                bad.setdefault(str(error).partition("\n")[0], []).append(number)
        if not number:
            raise EOFError("there is nothing in it")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        bad[f"the file is damaged from here on: {error}"] = [number + 1]
    except files.Unreadable as error:
        raise (StoreError if error.bad.closed else WrongPath)(str(error)) from None
    return [BadFile(path, f"{_numbered(numbers)}: {what}") for what, numbers in bad.items()]


def first(path: Path) -> dict[str, Any]:
    """What stands on the first line; nothing where it cannot be read."""
    try:
        return opened(next(_lines(path)))
    except (
        *(ValueError, RecursionError, StopIteration, StoreError),
        *(gzip.BadGzipFile, EOFError, zlib.error, files.Unreadable),
    ):
        return {}


def _lines(path: Path) -> Iterator[bytes]:
    """Lines, cut off after ``LONGEST_LINE`` bytes; the rest of a longer one is passed over."""
    if (data := files.read(path)) is None:
        raise WrongPath(f"{path}: {os.strerror(errno.ENOENT)}")
    with gzip.open(io.BytesIO(data)) as file:
        while line := file.readline(LONGEST_LINE + 1):
            yield line
            while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
                pass


def _joined(parts: dict[str, str]) -> str:
    """Canonical JSON of a dictionary, from that of its values."""
    return "{" + ",".join(f"{canonical(name)}:{parts[name]}" for name in sorted(parts)) + "}"


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _numbered(numbers: list[int]) -> str:
    shown = [f"{n}" for n in numbers[:5]]
    if len(numbers) > 6:
        shown.append(f"{len(numbers) - 5} more")
    else:
        shown += [f"{n}" for n in numbers[5:]]
    return ("line " if len(numbers) == 1 else "lines ") + listed(shown)
