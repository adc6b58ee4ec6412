"""Records on disk: one folder a cell, written atomically, verified whenever they are read.

``<root>/<key[:2]>/<key>/`` holds ``record.json`` (written last; names the sha256 of the other
files and of itself), ``curve.json.gz``, ``lam.npz``, ``pictures.npz``, and while a cell runs
``claim.json`` and ``checkpoint.pt``. What cannot be trusted is reported with its path and moved to
``<root>/set-aside/``, the quarantine; its cell then counts as missing. What this user may not read
is reported and left where it is.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.core.cell import canonical
from metabench.core.errors import Held, StoreError, WrongPath
from metabench.store import cell_folder, files, prices
from metabench.store import lease as leases
from metabench.store.cell_folder import CHECKPOINT, CURVE, LAM, LEASE, PICTURES, RECORD
from metabench.store.encoding import npz, render, unpacked
from metabench.store.files import BadFile, Unreadable
from metabench.store.record import Curve, Record

if TYPE_CHECKING:
    import numpy as np

    from metabench.store.encoding import Arrays

QUARANTINE = "set-aside"  # stores written by earlier versions have this name: it stays
CLUSTER = "cluster"
"""Where submissions to a cluster keep what they need (:mod:`metabench.cluster.submission`)."""
LARGEST_LAM = 2_000_000
"""Numbers of lam up to which all of it is kept; above, the record has summaries and the hash."""

_PREFIX = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{64}")


VARIABLE = "METABENCH_STORE"


class Store:
    """The records under ``root`` (default: METABENCH_STORE, or ``results/runs``).

    Reading changes nothing; :meth:`repair`, :meth:`lease` and :meth:`write` do.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        given = root or os.environ.get(VARIABLE) or Path("results", "runs")
        self.root = Path(given).absolute()

    @property
    def place(self) -> str:
        """Its folder, and the variable that names it where one does: for messages."""
        named = os.environ.get(VARIABLE)
        told = named is not None and Path(named).absolute() == self.root
        return f"{self.root} ({VARIABLE})" if told else f"{self.root}"

    def folder(self, key: str) -> Path:
        """The folder of a cell; it need not exist."""
        return self.root / key[:2] / key

    def get(self, key: str) -> Record | None:
        """The record of a cell; None where there is none that can be trusted."""
        return self.look(key)[0]

    def look(self, key: str) -> tuple[Record | None, list[BadFile]]:
        """:meth:`get`, and every file in the cell's folder that cannot be trusted."""
        return cell_folder.read(self.folder(key))

    def scan(self) -> tuple[list[Record], list[BadFile]]:
        """Every record that can be trusted, sorted by key, and every file that cannot, sorted by
        path. Each record is read once; nothing is moved."""
        folders, bad = self._folders()
        records = []
        for folder in folders:
            record, damaged = cell_folder.read(folder)
            bad += damaged
            if record is not None:
                records.append(record)
        return records, sorted(bad, key=lambda b: b.path)

    def records(self) -> list[Record]:
        """Every record that can be trusted, sorted by key."""
        return self.scan()[0]

    def keys(self) -> list[str]:
        """The keys of all cells that have a folder, sorted. Raises StoreError as :meth:`scan`."""
        return [folder.name for folder in self._folders()[0]]

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
            with contextlib.suppress(StoreError):  # another user's, perhaps
                prices.tidy(self.root)
            for stray in foreign:
                out.append(stray if stray.path.parent == self.root else self.quarantine(stray))
        else:
            folders = [self.folder(key) for key in keys]
        for folder in folders:
            bad = cell_folder.read(folder)[1]
            if bad or self._untidy(folder):
                out += self._repaired(folder, bad)
        return out

    def _repaired(self, folder: Path, bad: list[BadFile]) -> list[BadFile]:
        """What is ``bad`` in a cell's folder, after what this user can do about it."""
        if any(b.path == folder for b in bad):
            return bad
        # Nobody can hold the cell by what is no file; what is garbled is left until it is stale.
        out = [self.quarantine(b) if files.odd(b.path) else b for b in bad if b.path.name == LEASE]
        try:
            lease = self.lease(folder.name)
            if lease is not None:
                with lease:
                    out += self.repair_leased(lease)
        except (StoreError, Held):  # another user's folder, perhaps: the other cells are repaired
            return bad
        return out

    def repair_leased(self, lease: leases.Lease) -> list[BadFile]:
        """Quarantine what cannot be trusted in the folder of a lease that the caller holds, end
        what killed processes began, and remove what they left behind.

        Raises Held where the lease has been lost, StoreError where the disk refuses.
        """
        folder = lease.path.parent
        with lease.sure():
            record, bad = cell_folder.read(folder)
            out = [self.quarantine(b) for b in bad]
            if record is not None:
                cell_folder.settle(folder, record.files)
                if record.status == "done":
                    files.remove(folder / CHECKPOINT)
            for entry in _listed(folder):
                if cell_folder.is_temporary(entry.name):
                    files.remove(entry)
            return out

    def _untidy(self, folder: Path) -> bool:
        names = {entry.name for entry in _listed(folder)}
        if LEASE in names:
            return self.holder(folder.name) is None
        finished = RECORD in names and CHECKPOINT in names
        return finished or any(cell_folder.is_temporary(name) for name in names)

    def quarantine(self, bad: BadFile) -> BadFile:
        """Move one file or folder to the quarantine, under a name of its own. What is closed to
        this user, or cannot be moved, stays and says so."""
        if bad.closed:
            return bad
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
            return replace(bad, what=f"{bad.what}; cannot be quarantined: {error.strerror}")
        return replace(bad, moved_to=target)

    def lease(self, key: str) -> leases.Lease | None:
        """The right to run a cell, or None where somebody alive has it.

        Raises StoreError where this user cannot write there, or cannot read what is there.
        """
        path = self.folder(key) / LEASE
        files.make(path.parent)
        if (closed := self.closed(key)) is not None:
            raise StoreError(str(closed))
        if (bad := files.odd(path)) is not None:
            self.quarantine(bad)
        return leases.take(path)

    def closed(self, key: str) -> BadFile | None:
        """What this user may not read of a cell, as long as there is no record that they can."""
        record, bad = cell_folder.read(self.folder(key))
        return None if record else next((b for b in bad if b.closed), None)

    def holder(self, key: str) -> leases.Holder | None:
        """Who is running a cell now; None where nobody is."""
        return leases.holder(self.folder(key) / LEASE)

    def write(
        self,
        record: Record,
        curve: Curve | None = None,
        lam: Arrays | None = None,
        pictures: Arrays | None = None,
        *,
        lease: leases.Lease | None = None,
    ) -> Record:
        """Keep a record and its files; returns it with ``files`` filled in.

        ``lam`` is kept up to ``LARGEST_LAM`` numbers. A reader sees the old record with its files,
        or the new one with its own, at any moment. Under a ``lease`` a finished record is never
        replaced, whoever wrote it; without one the caller answers for the cell, and replaces any.

        Raises StoreError where the disk refuses (nothing half-written stays) and for a record that
        is not whole, Held where ``lease``
        has been lost to another process or the cell has a finished record.
        """
        folder = self.folder(record.whole().key)
        contents: dict[str, bytes] = {}
        if curve:
            contents[CURVE] = gzip.compress(canonical(curve).encode(), mtime=0)
        if lam and sum(v.size for v in lam.values()) <= LARGEST_LAM:
            contents[LAM] = npz(lam)
        if pictures:
            contents[PICTURES] = npz(pictures)
        record = replace(
            record, files={n: hashlib.sha256(data).hexdigest() for n, data in contents.items()}
        )
        contents[RECORD] = render(record)
        files.make(folder)
        drafts: dict[str, Path] = {}
        try:
            for name, data in contents.items():
                drafts[name] = files.draft(folder / name, data)
            with lease.sure() if lease is not None else leases.locked(folder):
                known = cell_folder.read(folder)[0] if lease is not None else None
                if known is not None and known.status == "done":
                    raise Held(f"{record.cell}: it has a finished record, which stays")
                cell_folder.replace_record(folder, record.files, drafts)
        except OSError as error:
            raise StoreError(f"cannot replace {folder}: {error.strerror or error}") from error
        finally:
            for made in drafts.values():
                files.discard(made)
        return record

    def curve(self, record: Record) -> Curve:
        """The learning curve of a record, empty where it has none.

        Raises StoreError where the file is gone or not the one that the record names.
        """
        if (data := self._file(record, CURVE)) is None:
            return {}
        curve: Curve = json.loads(gzip.decompress(data))
        return curve

    def lam(self, record: Record) -> dict[str, np.ndarray[Any, Any]] | None:
        """The lam that was tested, by name; None where it was not kept whole. Raises StoreError
        as :meth:`curve` does."""
        return None if (data := self._file(record, LAM)) is None else unpacked(data)

    def pictures(self, record: Record) -> dict[str, np.ndarray[Any, Any]]:
        """What the problem showed, uint8 [h, w] by name. Raises StoreError as :meth:`curve`."""
        return {} if (data := self._file(record, PICTURES)) is None else unpacked(data)

    def prices(self) -> dict[str, prices.Prices]:
        """Key of a problem to the measured prices of its counts. Raises StoreError."""
        return prices.read(self.root / prices.FILE)

    def _file(self, record: Record, name: str) -> bytes | None:
        if name not in record.files:
            return None
        path = self.folder(record.key) / name
        try:
            data = cell_folder.companion(path.parent, name, record.files[name])
        except Unreadable as error:
            raise StoreError(str(error)) from None
        if data is None:
            raise StoreError(f"{path}: {os.strerror(errno.ENOENT)}")
        if hashlib.sha256(data).hexdigest() != record.files[name]:
            raise StoreError(f"{path} is not the file that its record names")
        return data

    def _folders(self) -> tuple[list[Path], list[BadFile]]:
        """The folders of cells, sorted, and entries that are none. Raises StoreError where the
        root is a file, or closed to this user."""
        if os.path.lexists(self.root) and not files.is_folder(self.root):
            raise WrongPath(f"{self.root} is a file, not the folder of a store")
        folders: list[Path] = []
        bad: list[BadFile] = []
        try:
            top = files.entries(self.root)
        except Unreadable as error:
            raise StoreError(str(error)) from None
        for entry in top:
            if entry.name in (QUARANTINE, CLUSTER, prices.FILE) or prices.is_draft(entry):
                continue
            if not (_PREFIX.fullmatch(entry.name) and files.is_folder(entry)):
                bad.append(BadFile(entry, "does not belong in a store"))
                continue
            try:
                inside = files.entries(entry)
            except Unreadable as error:
                bad.append(error.bad)
                continue
            for inner in inside:
                if not _KEY.fullmatch(inner.name) or not files.is_folder(inner):
                    bad.append(BadFile(inner, "is not the folder of a cell"))
                elif inner.name[:2] != entry.name:
                    bad.append(BadFile(inner, f"is the folder of a cell under {entry.name!r}"))
                else:
                    folders.append(inner)
        return folders, bad


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, as far as this user can see."""
    try:
        return files.entries(folder)
    except Unreadable:
        return []
