"""Records on disk: one folder a cell, written atomically, verified whenever they are read.

``<root>/<key[:2]>/<key>/`` holds ``record.json`` (written last; names the sha256 of the other
files and of itself), ``curve.json.gz``, ``lam.npz``, and while a cell runs ``claim.json`` and
``checkpoint.pt``. What cannot be trusted is reported with its path and moved to
``<root>/set-aside/``, the quarantine; its cell then counts as missing.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.core.cell import canonical
from metabench.core.errors import Held, StoreError
from metabench.store import lease as leases
from metabench.store.record import Curve, Record, from_dict

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

RECORD, CURVE, LAM, CHECKPOINT = "record.json", "curve.json.gz", "lam.npz", "checkpoint.pt"
# Stores written by earlier versions have this name and that of the quarantine: both stay.
LEASE = "claim.json"
KNOWN = frozenset({RECORD, CURVE, LAM, CHECKPOINT, LEASE})
QUARANTINE = "set-aside"
CLUSTER = "cluster"
"""Where submissions to a cluster keep what they need (:mod:`metabench.cluster.submission`)."""
LARGEST_LAM = 2_000_000
"""Numbers of lam up to which all of it is kept; above, the record has summaries and the hash."""

_PREFIX = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\..+\.tmp")


@dataclass(frozen=True)
class BadFile:
    """A file that is not what it should be, and where it went (None: only reported)."""

    path: Path
    what: str
    moved_to: Path | None = None

    def __str__(self) -> str:
        moved = f"; quarantined as {self.moved_to}" if self.moved_to else ""
        return f"{self.path}: {self.what}{moved}"


class Store:
    """The records under ``root`` (default: METABENCH_STORE, or ``results/runs``).

    Reading changes nothing; :meth:`repair`, :meth:`lease` and :meth:`write` do.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        given = root or os.environ.get("METABENCH_STORE") or Path("results", "runs")
        self.root = Path(given).absolute()

    def folder(self, key: str) -> Path:
        """The folder of a cell; it need not exist."""
        return self.root / key[:2] / key

    def get(self, key: str) -> Record | None:
        """The record of a cell; None where there is none that can be trusted."""
        return _read(self.folder(key))[0]

    def scan(self) -> tuple[list[Record], list[BadFile]]:
        """Every record that can be trusted, sorted by key, and every file that cannot, sorted by
        path. Each record is read once; nothing is moved."""
        folders, bad = self._folders()
        records = []
        for folder in folders:
            record, damaged = _read(folder)
            bad += damaged
            if record is not None:
                records.append(record)
        return records, sorted(bad, key=lambda b: b.path)

    def records(self) -> list[Record]:
        """Every record that can be trusted, sorted by key."""
        return self.scan()[0]

    def problems(self) -> list[BadFile]:
        """Every file that cannot be trusted, sorted by path; nothing is moved."""
        return self.scan()[1]

    def repair(self, keys: Iterable[str] | None = None) -> list[BadFile]:
        """Quarantine what cannot be trusted, in the folders of ``keys`` or everywhere, and tidy up
        after killed processes.

        A cell that somebody is running is left to them. Entries directly under the root are
        reported and left alone, in case the root is not the folder it was meant to be.
        """
        out: list[BadFile] = []
        if keys is None:
            folders, foreign = self._folders()
            for bad in foreign:
                out.append(bad if bad.path.parent == self.root else self.quarantine(bad))
        else:
            folders = [self.folder(key) for key in keys]
        for folder in folders:
            if not (_read(folder)[1] or self._untidy(folder)):
                continue
            lease = self.lease(folder.name)
            if lease is not None:
                with lease:
                    out += self.repair_leased(lease)
        return out

    def repair_leased(self, lease: leases.Lease) -> list[BadFile]:
        """Quarantine what cannot be trusted in the folder of a lease that the caller holds, and
        remove what killed processes left behind."""
        folder = lease.path.parent
        for entry in _entries(folder):
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        record, bad = _read(folder)
        if record is not None and record.status == "done":
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return [self.quarantine(b) for b in bad]

    def _untidy(self, folder: Path) -> bool:
        names = {entry.name for entry in _entries(folder)}
        if LEASE in names:
            return self.holder(folder.name) is None
        finished = RECORD in names and CHECKPOINT in names
        return finished or any(_TEMPORARY.fullmatch(name) for name in names)

    def quarantine(self, bad: BadFile) -> BadFile:
        """Move one file or folder to the quarantine, under a name of its own."""
        name = bad.path.name
        if _KEY.fullmatch(bad.path.parent.name):
            name = f"{bad.path.parent.name[:16]}.{name}"
        target = self.root / QUARANTINE / f"{name}.{uuid.uuid4().hex[:8]}"
        try:
            target.parent.mkdir(exist_ok=True)
            os.rename(bad.path, target)
        except FileNotFoundError:
            return bad
        except OSError as error:
            raise StoreError(f"cannot quarantine {bad.path}: {error.strerror}") from error
        return replace(bad, moved_to=target)

    def lease(self, key: str) -> leases.Lease | None:
        """The right to run a cell, or None where somebody alive has it."""
        folder = self.folder(key)
        _make(folder)
        return leases.take(folder / LEASE)

    def holder(self, key: str) -> leases.Holder | None:
        """Who is running a cell now; None where nobody is."""
        return leases.holder(self.folder(key) / LEASE)

    def write(
        self,
        record: Record,
        curve: Curve | None = None,
        lam: Arrays | None = None,
        *,
        lease: leases.Lease | None = None,
    ) -> Record:
        """Keep a record and its files; returns it with ``files`` filled in.

        ``lam`` is kept up to ``LARGEST_LAM`` numbers. Raises StoreError where the disk refuses
        (nothing half-written stays), Held where ``lease`` has been lost to another process.
        """
        folder = self.folder(record.key)
        files: dict[str, bytes] = {}
        if curve:
            files[CURVE] = gzip.compress(canonical(curve).encode(), mtime=0)
        if lam and sum(v.size for v in lam.values()) <= LARGEST_LAM:
            files[LAM] = _npz(lam)
        record = replace(
            record, files={n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
        )
        text = _render(record)
        if lease is not None and not lease.held():
            raise Held(f"{record.cell}: another process has taken the cell over")
        _make(folder)
        try:
            # An older record (never a finished one) must not be seen beside newer files.
            for name in (RECORD, CURVE, LAM):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot replace {folder}: {error.strerror}") from error
        for name, data in files.items():
            write_atomic(folder / name, data)
        write_atomic(folder / RECORD, text)
        return record

    def curve(self, record: Record) -> Curve:
        """The learning curve of a record, empty where it has none.

        Raises StoreError where the file is gone or not the one that the record names.
        """
        data = self._file(record, CURVE)
        if data is None:
            return {}
        curve: Curve = json.loads(gzip.decompress(data))
        return curve

    def lam(self, record: Record) -> dict[str, np.ndarray[Any, Any]] | None:
        """The lam that was tested, by name; None where it was not kept whole. Raises StoreError
        as :meth:`curve` does."""
        data = self._file(record, LAM)
        if data is None:
            return None
        import numpy as np

        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def _file(self, record: Record, name: str) -> bytes | None:
        if name not in record.files:
            return None
        path = self.folder(record.key) / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != record.files[name]:
            raise StoreError(f"{path} is not the file that its record names")
        return data

    def _folders(self) -> tuple[list[Path], list[BadFile]]:
        """The folders of cells, sorted, and entries that are none. Raises StoreError where the
        root is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root} is a file, not the folder of a store")
        folders: list[Path] = []
        bad: list[BadFile] = []
        for entry in _entries(self.root):
            if entry.name in (QUARANTINE, CLUSTER):
                continue
            if not (_PREFIX.fullmatch(entry.name) and entry.is_dir()):
                bad.append(BadFile(entry, "does not belong in a store"))
                continue
            for inner in _entries(entry):
                if not _KEY.fullmatch(inner.name) or not inner.is_dir():
                    bad.append(BadFile(inner, "is not the folder of a cell"))
                elif inner.name[:2] != entry.name:
                    bad.append(BadFile(inner, f"is the folder of a cell under {entry.name!r}"))
                else:
                    folders.append(inner)
        return folders, bad


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Put ``data`` at ``path`` so that a reader sees all of it or what was there before; if
    ``private``, only a reader who is this user.

    Raises StoreError where the disk refuses; no half-written file stays behind.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(draft, flags, 0o600 if private else 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def hash_arrays(arrays: Arrays) -> str:
    """sha256 over names in sorted order, each with its type, shape and bytes (C order)."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        # ascontiguousarray makes a scalar an array of one: the shape is the original's.
        header = canonical([name, array.dtype.str, list(arrays[name].shape)])
        digest.update(header.encode() + b"\n" + array.tobytes())
    return digest.hexdigest()


def _read(folder: Path) -> tuple[Record | None, list[BadFile]]:
    """The record in a cell's folder, where it and its files can be trusted, and what cannot be."""
    path = folder / RECORD
    while True:
        try:
            data = _bytes(path)
            record, bad = (None, []) if data is None else _verified(path, data)
            if not bad or _bytes(path) == data:
                break
        except OSError as error:
            record, bad = None, [BadFile(path, f"cannot be read: {error.strerror}")]
            break
        # The record was replaced while its files were read: look again.
    for entry in _entries(folder):
        if entry.name not in KNOWN and not _TEMPORARY.fullmatch(entry.name):
            bad.append(BadFile(entry, "does not belong in the folder of a cell"))
    return record, bad


def _verified(path: Path, data: bytes) -> tuple[Record | None, list[BadFile]]:
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("not a record")
        seal = content.pop("sha256", None)
        record = from_dict(content)
        found = hashlib.sha256(canonical(content).encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        return None, [BadFile(path, f"cannot be read as a record: {first}")]
    if seal != found:
        return None, [BadFile(path, "is not what was written: its sha256 differs")]
    if record.key != path.parent.name:
        return None, [BadFile(path, f"belongs to another cell, {record.key[:16]}")]
    bad = []
    for name, digest in record.files.items():
        held = _bytes(path.parent / name)
        if held is None:
            bad.append(BadFile(path, f"names {name}, which is missing"))
        elif hashlib.sha256(held).hexdigest() != digest:
            bad.append(BadFile(path.parent / name, "is not what was written: its sha256 differs"))
            bad.append(BadFile(path, f"names {name}, which is damaged"))
    unique = {b.path: b for b in bad}
    return (None if bad else record), list(unique.values())


def _render(record: Record) -> bytes:
    """JSON for people and programs, with the sha256 of its canonical content."""
    data = json.loads(canonical(record.as_dict()))
    seal = hashlib.sha256(canonical(data).encode()).hexdigest()
    return (json.dumps({**data, "sha256": seal}, indent=1, sort_keys=True) + "\n").encode()


def _npz(arrays: Arrays) -> bytes:
    """The bytes of an .npz file that numpy.load reads; the same arrays give the same bytes."""
    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return buffer.getvalue()


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synced."""
    if hasattr(os, "O_DIRECTORY"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
