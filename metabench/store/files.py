"""Files of a folder that others write to as well: any entry may be of any kind, closed to this
user, or gone the next moment. One such entry is told by its path; it stops nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from metabench.core.errors import StoreError

MOST_NAMED = 3
"""Bad files that an error names."""


@dataclass(frozen=True)
class BadFile:
    """An entry that is not what it should be, and where it went (None: only reported)."""

    path: Path
    what: str
    moved_to: Path | None = None
    closed: bool = False
    """This user, or this version, cannot read it: it may be all right, and is never moved."""
    newer: bool = False
    """A later version of metabench has written it."""

    def __str__(self) -> str:
        moved = f"; quarantined as {self.moved_to}" if self.moved_to else ""
        return f"{self.path}: {self.what}{moved}"

    @property
    def repair(self) -> str:
        """What to type where it is closed, or the outermost folder that it is in."""
        if self.newer:
            return "pip install --upgrade metabench"
        inside = (p for p in reversed(self.path.parents) if not os.access(p, os.X_OK))
        return f"chmod -R a+rX {shlex.quote(str(next(inside, self.path)))}  # as its owner"


def ending(bad: Iterable[BadFile | str]) -> str:
    """Files that cannot be trusted, as the end of an error; "" where there are none."""
    found = [*dict.fromkeys(map(str, bad))]
    more = f" (and {len(found) - MOST_NAMED} more)" if len(found) > MOST_NAMED else ""
    return "".join(f"; bad file: {one}" for one in found[:MOST_NAMED]) + more


class Unreadable(Exception):
    """There is something, and ``bad`` says why it cannot be read."""

    def __init__(self, path: Path, why: str | OSError) -> None:
        closed = isinstance(why, PermissionError)
        what = why if isinstance(why, str) else f"cannot be read: {why.strerror}"
        self.bad = BadFile(path, what, closed=closed)
        super().__init__(str(self.bad))


def read(path: Path) -> bytes | None:
    """The bytes of a regular file, None where there is no such entry; never waits, as for a pipe.

    Raises Unreadable.
    """
    try:
        # To open a pipe would else wait for somebody who writes.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
                raise Unreadable(path, _kind(mode))
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise Unreadable(path, "is a link to nowhere") from None
        return None
    except OSError as error:
        raise Unreadable(path, error) from None
    except MemoryError:
        raise Unreadable(path, "is larger than the memory") from None


def stamp(path: Path) -> tuple[int, int] | None:
    """What tells two files apart that stand at one path one after the other, equal in content."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return f"cannot be read: {os.strerror(errno.EISDIR)}"
    return "is a pipe or a device, not a file"


def odd(path: Path) -> BadFile | None:
    """What is wrong with an entry that should be a file, by its kind alone; None where nothing is,
    or where there is no entry."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return BadFile(path, "is a link to nowhere") if os.path.islink(path) else None
    except OSError as error:
        return Unreadable(path, error).bad
    return None if stat.S_ISREG(mode) else BadFile(path, _kind(mode))


def is_folder(path: Path) -> bool:
    """Whether an entry is a folder, or is in one that is closed: to look in it says so."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where it is no folder. Raises Unreadable."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unreadable(folder, error) from None


def make(folder: Path) -> None:
    """Make a folder with its parents, where it is not there. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from error


def ensure_writable(folder: Path) -> None:
    """Make a folder, if it is not there. Raises StoreError where this user cannot write in it."""
    make(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"this user cannot write in {folder}")


def remove(path: Path) -> None:
    """Remove a file; anything else stays. Raises StoreError where the disk refuses."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        pass
    except OSError as error:
        if not path.is_dir():
            raise StoreError(f"cannot remove {path}: {error.strerror}") from error


def draft(path: Path, data: bytes, *, private: bool = False) -> Path:
    """A file beside ``path`` that is to become it, synced; if ``private``, for this user alone.

    Raises StoreError where the disk refuses; no half-written file stays behind.
    """
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(made, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        discard(made)
        if isinstance(error, OSError):
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        raise
    return made


def discard(made: Path) -> None:
    """Remove a draft, if that can be done."""
    with contextlib.suppress(OSError):
        made.unlink(missing_ok=True)


def write_atomic(
    path: Path,
    data: bytes,
    *,
    private: bool = False,
    sure: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Put ``data`` at ``path`` so that a reader sees all of it or what was there before; if
    ``private``, only a reader who is this user. It is put there inside ``sure()``
    (:meth:`metabench.store.lease.Lease.sure`).

    Raises StoreError where the disk refuses; no half-written file stays behind.
    """
    made = draft(path, data, private=private)
    try:
        with sure():
            os.replace(made, path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        discard(made)


def sync(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synced."""
    if hasattr(os, "O_DIRECTORY"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
