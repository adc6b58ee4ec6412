"""Data sets: what is known of them, where they are on this machine, how to get and check them.

A data set is looked for under the folders that ``METABENCH_DATA`` names, then in the cache
(``METABENCH_CACHE``, by default ``metabench`` in the user's cache folder). It can lie there in one
of several layouts. Nothing is ever downloaded unasked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from metabench.core.errors import DataMissing, MetabenchError, UnknownName
from metabench.datasets.catalogue import DATASETS, Archive, DataSet, File, Layout, dataset
from metabench.datasets.download import Progress, digest, download


@dataclass(frozen=True)
class Found:
    """A data set on this machine: the layout and its folder."""

    layout: Layout
    path: Path


def cache() -> Path:
    """Where downloads go."""
    own = os.environ.get("METABENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.path.expanduser(own)) if own else Path(base) / "metabench"


def folders(text: str) -> list[Path]:
    """The folders that a text names as METABENCH_DATA does: a list like PATH's, ~ for home.

    A shell leaves ~ alone in quotes, and a batch script or a container may have no shell.
    """
    return [Path(os.path.expanduser(p)) for p in text.split(os.pathsep) if p]


def roots() -> list[Path]:
    """Folders to look in, in order."""
    return [*folders(os.environ.get("METABENCH_DATA", "")), cache()]


def _places(layout: Layout) -> list[Path]:
    """Folders to look in, in order."""
    return [*roots(), *(Path(home).expanduser() for home in layout.homes)]


def locate(name: str, layout: str | None = None) -> Found:
    """Where a data set is, in the first layout found (or in the one called ``layout``).

    Raises DataMissing with the command that repairs it, UnknownName.
    """
    known = dataset(name).layouts
    chosen = [x for x in known if layout in (None, x.name)]
    by_hand = dataset(name).by_hand
    if not chosen:
        raise UnknownName(f"layout of {name}", str(layout), [x.name for x in known])
    looked: list[str] = []
    for form in chosen:
        for place in _places(form):
            folder = place / form.folder
            lacks = form.lacks(folder)
            if not lacks:
                return Found(form, folder)
            told = f"{folder}{_why_not(folder, lacks)}"
            if told not in looked:
                looked.append(told)
    fetched = any(x.has_address for x in chosen)
    mend = f"metabench data fetch {name}, or set" if fetched else "set"
    mend = f"{by_hand}; then {mend}" if by_hand else mend
    names = " or ".join(dict.fromkeys(x.folder for x in chosen))
    raise DataMissing(name, looked, f"{mend} METABENCH_DATA to the folder that holds {names}")


def _why_not(folder: Path, lacks: list[str]) -> str:
    """What is wrong with a folder that a data set is not in, in brackets; "" where none is."""
    try:
        there = stat.S_ISDIR(folder.stat().st_mode)
    except PermissionError:
        return " (permission denied)"
    except OSError:
        return ""
    if there and not os.access(folder, os.R_OK | os.X_OK):
        return " (permission denied)"
    return f" (lacks {', '.join(lacks)})" if there else ""


def find(name: str) -> Path:
    """The folder of a data set in whatever layout it is there; raises DataMissing."""
    return locate(name).path


@dataclass(frozen=True)
class Status:
    """One data set as ``metabench data list`` shows it."""

    dataset: DataSet
    found: Found | None
    mend: str = ""
    bytes: int = 0


def status() -> list[Status]:
    """Every known data set: where it is, or the command that repairs its absence."""
    out = []
    for known in DATASETS.values():
        try:
            found = locate(known.name)
        except DataMissing as error:
            out.append(Status(known, None, error.mend))
            continue
        sizes = (os.path.getsize(f) for f in found.path.rglob("*") if os.path.isfile(f))
        out.append(Status(known, found, bytes=sum(sizes)))
    return out


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
            out.append(Verdict(path, _wrong(path, file)))
    for archive in found.layout.archives:
        path, files = found.path / archive.folder, archive.unpacked(found.path)
        wrong, note = _short(archive, files), ""
        if not os.path.isfile(path / _MARK):
            note = "counted only: it was not unpacked by metabench"
        elif not wrong:
            wrong = _changed(path, files)
        out.append(Verdict(path, wrong, note))
    for group in found.layout.groups:
        n = sum(1 for _ in found.path.glob(group.pattern))
        short = group.counts and n not in group.counts
        right = " or ".join(f"{count:,}" for count in group.counts)
        wrong = f"{n:,} files instead of {right}" if short else ""
        note = f"counted only ({n:,}): {group.note}"
        out.append(Verdict(found.path / group.pattern, wrong, note))
    return out


def _wrong(path: Path, file: File) -> str:
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
        same = (path / _MARK).read_bytes().strip() == _digest_of_all(path, files).encode()
    except OSError as error:
        return f"{error.filename}: {_unreadable(error)}"
    return "" if same else "files have changed since they were unpacked"


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def _short(archive: Archive, files: list[Path]) -> str:
    if len(files) == archive.count:
        return ""
    return f"{len(files)} {archive.suffix} files instead of {archive.count}"


def _digest_of_all(folder: Path, files: list[Path]) -> str:
    """One sha256 of the names and contents of all files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(folder).as_posix()} {digest(file, 'sha256')}\n".encode())
    return whole.hexdigest()


def fetch(name: str, *, to: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a data set that has a public address, check it and unpack it; gives its folder.

    What is whole already is not fetched again; a partial download is gone on with. Nothing
    half-unpacked is ever left under the final name. Raises MetabenchError where there is no public
    address, no network, a wrong checksum, or a folder that cannot be written.
    """
    known = dataset(name)
    layout = next((x for x in known.layouts if x.has_address), None)
    if layout is None:
        if known.by_hand:
            raise MetabenchError(
                f"metabench does not fetch {name}; by hand: {known.by_hand}; {known.offline}"
            )
        raise MetabenchError(f"{name} has no public address to fetch from; {known.offline}")
    folder = (to or cache()) / layout.folder
    try:
        for file in layout.files:
            if file.urls and not (
                (folder / file.path).is_file() and not _wrong(folder / file.path, file)
            ):
                _fetch_file(folder, file, progress)
        for archive in layout.archives:
            if _short(archive, archive.unpacked(folder)):
                target = _target(folder, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                path = target.with_name(archive.urls[0].rpartition("/")[2])
                download(archive.urls, path, archive.checksum, progress)
                _unpack(path, folder, archive)
                path.unlink()
        if layout.hub and layout.lacks(folder):
            _fetch_hub(layout.hub, folder)
    except MetabenchError as error:
        raise MetabenchError(f"{error}; by hand: {known.offline}") from None
    except OSError as error:
        where = error.filename or folder
        raise MetabenchError(f"cannot write {where}: {error.strerror}") from None
    return folder


def _fetch_hub(name: str, folder: Path) -> None:
    """Download a data set of the hub and keep it as the package ``datasets`` saves it.

    Raises MetabenchError, OSError where the folder cannot be written.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = load_dataset(name)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise MetabenchError(f"datasets cannot load {name}: {error}") from error
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        held.save_to_disk(str(Path(temporary) / "new"))
        if folder.exists():
            os.replace(folder, Path(temporary) / "old")
        os.replace(Path(temporary) / "new", folder)


def _fetch_file(folder: Path, file: File, progress: Progress | None) -> None:
    """Download and unpack a single file. Raises MetabenchError."""
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    packed, part = (path.with_name(path.name + end) for end in (".gz", ".unpacked"))
    download(file.urls, packed, file.checksum, progress)
    with gzip.open(packed) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    if wrong := _wrong(part, file):
        part.unlink()
        raise MetabenchError(f"{packed.name} unpacks to {wrong}")
    os.replace(part, path)
    packed.unlink()


def _target(folder: Path, archive: Archive) -> Path:
    """Where an archive unpacks to."""
    return folder if archive.folder == "." else folder / archive.folder


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    target = _target(folder, archive)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        scratch = Path(temporary)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                packed.extractall(scratch)
        else:
            with tarfile.open(path) as packed_tar:
                packed_tar.extractall(scratch, filter="data")
        inside = scratch / target.name
        files = archive.unpacked(inside if archive.folder == "." else scratch)
        if short := _short(archive, files):
            raise MetabenchError(f"{path.name} holds {short} in {target.name!r}")
        (inside / _MARK).write_text(_digest_of_all(inside, files) + "\n")
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(inside, target)


_MARK = ".metabench-sha256"  # of all files together, written when they were unpacked
