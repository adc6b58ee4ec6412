"""Who is working on a cell: a lease file made exclusively, renewed, taken over only when stale.

A lease is stale where its process is gone (same machine), or where nobody has touched it for
``LEASE_SECONDS`` (another machine). The heartbeat is the file's own modification time, set through
the holder's open file, so that it can never renew the lease of somebody else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from metabench.core.errors import Held, StoreError
from metabench.store import files
from metabench.store.files import BadFile, Unreadable

LEASE_SECONDS = 120.0
"""Seconds without a heartbeat after which a lease from another machine is stale."""
BEAT_SECONDS = 10.0
"""Seconds between two heartbeats."""


@dataclass(frozen=True)
class Holder:
    """The process behind a lease; ``place`` is host, boot and process namespace together."""

    host: str
    place: str
    pid: int
    started: str
    """Start time of the process in the kernel's ticks: tells a reused pid from the holder."""
    nonce: str
    since: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@functools.cache
def _adapter() -> TypeAdapter[Holder]:
    """Made where a lease is read."""
    return TypeAdapter(Holder)


class Lease:
    """The right to run one cell, held by this process until released; a context manager."""

    def __init__(self, path: Path, holder: Holder, fd: int, beat: float) -> None:
        self.path, self.holder, self._fd = path, holder, fd
        self.lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, args=(beat,), name=f"lease-{path.parent.name[:10]}", daemon=True
        )
        self._thread.start()

    def _beat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                os.utime(self._fd)
            except OSError:
                self.lost = True
            if not self.held():
                return

    def held(self) -> bool:
        """Whether the lease on disk is still this one; once lost it stays lost."""
        if not self.lost:
            try:
                seen = _read(self.path)
            except Unreadable:
                seen = None
            if seen is None or seen.holder is None or seen.holder.nonce != self.holder.nonce:
                self.lost = True
        return not self.lost

    @contextlib.contextmanager
    def sure(self) -> Iterator[None]:
        """Inside, this process has the lease, however long it is suspended there: who would take it
        over waits. What others must not find replaced by a holder who has lost it is replaced here.

        Where the file system cannot lock folders, the lease may be lost between the check and the
        end of the block: keep to renames inside. Raises Held where it has been lost.
        """
        with locked(self.path.parent):
            if not self.held():
                raise Held(f"{self.path.parent}: another process has taken the cell over")
            yield

    def release(self) -> None:
        """Give the cell back; does nothing where the lease was lost or released before."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError), locked(self.path.parent):
            if self.held():
                self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(path: Path, *, seconds: float = LEASE_SECONDS, beat: float = BEAT_SECONDS) -> Lease | None:
    """The lease at ``path``, or None where somebody alive holds it.

    Raises StoreError where the lease cannot be written, or what is there cannot be one.
    """
    with locked(path.parent):
        while True:
            lease = _create(path, beat)
            if lease is not None:
                return lease
            try:
                seen = _read(path)
            except Unreadable as error:
                raise StoreError(str(error)) from None
            if seen is None:
                continue
            if _alive(seen, seconds):
                return None
            _bury(path, seen)


def holder(path: Path, *, seconds: float = LEASE_SECONDS) -> Holder | None:
    """Who, alive, holds the lease at ``path``; None where nobody does, as far as this user can
    see. Changes nothing."""
    seen = _seen_alive(path, seconds)
    if seen is None:
        return None
    return seen.holder or Holder("an unknown host", "", 0, "", "", seen.touched)


@dataclass(frozen=True)
class Pulse:
    """A lease at one moment: two that differ are of a holder that lives."""

    nonce: str
    touched: float
    sure: bool
    """The holder is a live process of this machine."""


def pulse(path: Path, *, seconds: float = LEASE_SECONDS) -> Pulse | None:
    """The lease at ``path`` now; None where nobody alive holds it. Changes nothing."""
    seen = _seen_alive(path, seconds)
    if seen is None:
        return None
    who = seen.holder
    return Pulse(who.nonce if who else "", seen.touched, who is not None and who.place == _place())


@dataclass(frozen=True)
class _Seen:
    data: bytes
    holder: Holder | None
    touched: float
    folder: Path


def damage(path: Path) -> BadFile | None:
    """Why what is at ``path`` is no lease, where it is none: leases are complete once seen."""
    try:
        data = files.read(path)
    except Unreadable as error:
        return error.bad
    if data is None or _holder(data) is not None:
        return None
    return BadFile(path, "cannot be read as a lease")


def _seen_alive(path: Path, seconds: float) -> _Seen | None:
    try:
        seen = _read(path)
    except Unreadable:
        return None
    return seen if seen is not None and _alive(seen, seconds) else None


def _read(path: Path) -> _Seen | None:
    """What is at ``path``, None where nothing is. Raises Unreadable for what can be no lease; of
    one that is closed to this user only the heartbeat is seen."""
    data = b""
    try:
        found = files.read(path)
        if found is None:
            return None
        data = found
    except Unreadable as error:
        if not error.bad.closed:
            raise
    try:
        # After the content: of a lease that is replaced in between, the heartbeat is the newer.
        touched = os.stat(path).st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(path, error) from None
    return _Seen(data, _holder(data), touched, path.parent)


def _holder(data: bytes) -> Holder | None:
    try:
        return _adapter().validate_json(data, strict=True)
    except ValueError:
        return None


def _alive(seen: _Seen, seconds: float) -> bool:
    who = seen.holder
    if who is not None and who.place == _place():
        started = _started(who.pid)
        if started != "" or who.started == "":  # else its process is hidden from this user
            return started == who.started
    return _now(seen.folder) - seen.touched <= seconds


def _create(path: Path, beat: float) -> Lease | None:
    """A new lease, complete from the moment it can be seen; None where there is one already."""
    me = os.getpid()
    who = Holder(platform.node(), _place(), me, _started(me) or "", uuid.uuid4().hex, time.time())
    draft = path.with_name(f".lease.{who.nonce}.tmp")
    try:
        fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            text = json.dumps(asdict(who)).encode()
            while text:  # a full disk takes a part first, then refuses
                text = text[os.write(fd, text) :]
            os.fsync(fd)
            try:
                os.link(draft, path)
            except FileNotFoundError:
                # The holder of the lease has just tidied the folder up, this draft with the rest.
                os.close(fd)
                return None
            except OSError:
                # A file server may answer a repeated question: the second name says what is so.
                if os.fstat(fd).st_nlink != 2:
                    raise
        except BaseException:
            os.close(fd)
            raise
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return None
    except OSError as error:
        raise StoreError(f"cannot write the lease {path}: {error.strerror}") from error
    return Lease(path, who, fd, beat)


def _bury(path: Path, stale: _Seen) -> None:
    """Remove a stale lease, and no other: of several who try, one wins. Raises StoreError."""
    grave = path.with_name(f".lease.{uuid.uuid4().hex}.tmp")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    except OSError as error:  # in a folder with the sticky bit a lease is its owner's
        raise StoreError(f"cannot remove the stale lease {path}: {error.strerror}") from error
    try:
        found = files.read(grave)
    except Unreadable:
        found = b""
    if found != stale.data:
        # Only where folders cannot be locked: somebody took over first. Give theirs back.
        with contextlib.suppress(FileExistsError):
            os.link(grave, path)
    grave.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system can lock a folder; the kernel frees the lock
    of a process that dies. Without locks the exclusive link alone decides. Not to be nested.

    Raises StoreError where the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"cannot open the folder {folder}: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _now(folder: Path) -> float:
    """The file system's own clock: comparable with modification times set by other machines."""
    probe = folder / f".clock.{uuid.uuid4().hex}.tmp"
    try:
        # Through the open file: whoever holds the lease may tidy up meanwhile.
        with probe.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _place() -> str:
    """Where a pid means something: host, boot, and process namespace (containers)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = "unknown"
    return f"{platform.node()}/{boot}/{space}"


def _started(pid: int) -> str | None:
    """Start time of a live process, "" where the system does not tell; None for a dead one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # a dead one, no /proc, or (hidepid) not for this user
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:
            pass
        return ""
    # The command in brackets may hold spaces; state is the first field after it.
    rest = stat.rpartition(")")[2].split()
    return None if rest[0] in "ZXx" else rest[19]
