"""Is a data set whole? Its files are checked against the sizes and checksums of the catalogue."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from metabench.datasets import catalogue
from metabench.datasets.catalogue import Archive, File
from metabench.datasets.download import digest
from metabench.datasets.locate import locate

MARK = ".metabench-sha256"
"""File beside an archive's unpacked files: :func:`digest_of_all` of them, from when they came."""


@dataclass(frozen=True)
class Verdict:
    """One file or folder that was checked, and what is wrong with it ("" if nothing is)."""

    path: Path
    wrong: str = ""
    note: str = ""
    """What could not be checked."""


def verify(name: str) -> list[Verdict]:
    """Check every file of a data set against its sha256, unpacked archives as a whole.

    An archive that another program unpacked has no checksum to compare with: its files are
    counted, and the verdict says so. Raises DataMissing.
    """
    found = locate(name)
    out = []
    for file in found.layout.files:
        path = found.path / file.path
        if file.needed or path.exists():
            out.append(Verdict(path, fault(path, file)))
    for archive in found.layout.archives:
        path, files = found.path / archive.folder, archive.unpacked(found.path)
        wrong, note = shortage(archive, files), ""
        if not os.path.isfile(path / MARK):
            note = "counted only: it was not unpacked by metabench"
        elif not wrong:
            wrong = _changed(path, files)
        out.append(Verdict(path, wrong, note))
    for group in found.layout.groups:
        n = sum(1 for _ in catalogue.matching(found.path, group.pattern))
        short = group.counts and n not in group.counts
        right = " or ".join(f"{count:,}" for count in group.counts)
        wrong = f"{n:,} files instead of {right}" if short else ""
        note = f"counted only ({n:,}): {group.note}"
        out.append(Verdict(found.path / group.pattern, wrong, note))
    return out


def fault(path: Path, file: File) -> str:
    """What is wrong with a single file; "" where nothing is."""
    try:
        if path.stat().st_size != file.bytes:
            return f"{path.stat().st_size} bytes instead of {file.bytes}"
        got = digest(path, "sha256")
    except OSError as error:
        return _unreadable(error)
    return "" if got == file.sha256 else f"sha256 {got[:16]}... instead of {file.sha256[:16]}..."


def _changed(path: Path, files: list[Path]) -> str:
    """What is wrong with an archive that metabench unpacked."""
    try:
        same = (path / MARK).read_bytes().strip() == digest_of_all(path, files).encode()
    except OSError as error:
        return f"{error.filename}: {_unreadable(error)}"
    return "" if same else "files have changed since they were unpacked"


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def shortage(archive: Archive, files: list[Path]) -> str:
    """How many files of an archive there are, where they are too few or too many; else ""."""
    if len(files) == archive.count:
        return ""
    return f"{len(files)} {archive.suffix} files instead of {archive.count}"


def digest_of_all(folder: Path, files: list[Path]) -> str:
    """One sha256 of the names and contents of all files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(folder).as_posix()} {digest(file, 'sha256')}\n".encode())
    return whole.hexdigest()
