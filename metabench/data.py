"""Data sets: what is known of them, where they are on this machine, how to get and check them.

A data set is looked for under the folders that ``METABENCH_DATA`` names, then in the cache
(``METABENCH_CACHE``, by default ``metabench`` in the user's cache folder). It can lie there in one
of several layouts. Nothing is ever downloaded unasked.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from metabench.download import Progress, digest, download
from metabench.errors import DataMissing, MetabenchError, UnknownName


@dataclass(frozen=True)
class File:
    """A file of a layout: its path in the data set's folder, its size, its sha256."""

    path: str
    bytes: int
    sha256: str
    needed: bool = True
    """False: nothing that the tasks compute takes it; checked where it is."""


@dataclass(frozen=True)
class Archive:
    """A zip file to download: mirrors in order, its checksum as "md5:..." or "sha256:...", the
    folder that it unpacks to, and how many files of which suffix that holds."""

    urls: tuple[str, ...]
    checksum: str
    folder: str
    count: int
    suffix: str = ".png"

    def unpacked(self, folder: Path) -> list[Path]:
        """The files of this archive below ``folder``, sorted."""
        found = (folder / self.folder).rglob(f"*{self.suffix}")
        return sorted(f for f in found if not f.name.startswith("."))


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on a disk, in a folder called ``folder``.

    ``homes`` are folders to look in besides the usual ones: where another library keeps it.
    """

    name: str
    folder: str
    files: tuple[File, ...] = ()
    archives: tuple[Archive, ...] = ()
    homes: tuple[str, ...] = ()

    def places(self) -> list[Path]:
        """Folders to look in, in order."""
        return [*roots(), *(Path(home).expanduser() for home in self.homes)]

    def lacks(self, folder: Path) -> list[str]:
        """What is needed and not in ``folder``, by name."""
        files = [file.path for file in self.files if file.needed]
        return [path for path in files if not (folder / path).is_file()] + [
            archive.folder for archive in self.archives if not (folder / archive.folder).is_dir()
        ]


@dataclass(frozen=True)
class DataSet:
    """A data set: what it is, whose it is, and the layouts it is read from, the best first."""

    name: str
    title: str
    origin: str
    licence: str
    cite: str
    layouts: tuple[Layout, ...]
    offline: str = ""
    """What to copy to a machine without network."""


@dataclass(frozen=True)
class Found:
    """A data set on this machine: the layout and its folder."""

    layout: Layout
    path: Path


_LAKE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_OMNIGLOT_ZIPS = (
    Archive(
        (f"{_LAKE}/images_background.zip",),
        "md5:68d2efa1b9178cc56df9314c21c6e718",
        "images_background",
        964 * 20,
    ),
    Archive(
        (f"{_LAKE}/images_evaluation.zip",),
        "md5:6b91aef0f799c5bb55b94e3f2daec811",
        "images_evaluation",
        659 * 20,
    ),
)
"""Addresses and checksums as torchvision has them."""

DATASETS = {
    d.name: d
    for d in (
        DataSet(
            name="omniglot",
            title="Omniglot: 50 alphabets, 1,623 characters, 20 drawings of each",
            origin="https://github.com/brendenlake/omniglot",
            licence="MIT",
            cite="B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Science 350, 2015",
            layouts=(
                Layout(
                    "metabench",
                    "omniglot",
                    files=(
                        File(
                            "omniglot28.npz",
                            6611070,
                            "1ca310bda2bc21bb2855d04984f8f5cc578cab42e43a2f06e45e3ebe7199800e",
                        ),
                        File(
                            "omniglot105.npz",
                            5310798,
                            "4063cd6d0c9c05876cee06543b2c1539ddb3feb4fbfff2204932b90a1d601bb3",
                            needed=False,
                        ),
                        File(
                            "one_shot_runs.npz",
                            140143,
                            "521bc4b69b3ba8634746623a3f8965d73e990168839da9fbb0b4fd6320584359",
                            needed=False,
                        ),
                    ),
                ),
                Layout("torchvision", "omniglot-py", archives=_OMNIGLOT_ZIPS),
                # learn2learn reads torchvision's folder, from ~/data unless told otherwise.
                Layout("learn2learn", "omniglot-py", archives=_OMNIGLOT_ZIPS, homes=("~/data",)),
            ),
            offline="fetch it on another machine, copy the folder omniglot-py (or omniglot, the "
            "arrays) from there, and set METABENCH_DATA to the folder that holds the copy",
        ),
    )
}


def dataset(name: str) -> DataSet:
    """The data set called ``name``; raises UnknownName."""
    if name not in DATASETS:
        raise UnknownName("data set", name, DATASETS)
    return DATASETS[name]


def cache() -> Path:
    """Where downloads go."""
    own = os.environ.get("METABENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "metabench"


def roots() -> list[Path]:
    """Folders to look in, in order."""
    named = [Path(p) for p in os.environ.get("METABENCH_DATA", "").split(os.pathsep) if p]
    return [*named, cache()]


def locate(name: str, layout: str | None = None) -> Found:
    """Where a data set is, in the first layout found (or in the one called ``layout``).

    Raises DataMissing with the command that mends it, UnknownName.
    """
    known = dataset(name).layouts
    chosen = [x for x in known if layout in (None, x.name)]
    if not chosen:
        raise UnknownName(f"layout of {name}", str(layout), [x.name for x in known])
    looked: list[str] = []
    for form in chosen:
        for place in form.places():
            folder = place / form.folder
            lacks = form.lacks(folder)
            if not lacks:
                return Found(form, folder)
            told = f"{folder} (lacks {', '.join(lacks)})" if folder.is_dir() else str(folder)
            if told not in looked:
                looked.append(told)
    fetched = any(x.archives for x in chosen)
    mend = f"metabench data fetch {name}, or set" if fetched else "set"
    names = " or ".join(dict.fromkeys(x.folder for x in chosen))
    raise DataMissing(name, looked, f"{mend} METABENCH_DATA to the folder that holds {names}")


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
    """Every known data set: where it is, or the command that mends its absence."""
    out = []
    for known in DATASETS.values():
        try:
            found = locate(known.name)
        except DataMissing as error:
            out.append(Status(known, None, error.mend))
            continue
        sizes = (f.stat().st_size for f in found.path.rglob("*") if f.is_file())
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
        if (path / _MARK).is_file():
            if not wrong and (path / _MARK).read_text().strip() != _digest_of_all(path, files):
                wrong = "files have changed since they were unpacked"
        else:
            note = "counted only: it was not unpacked by metabench"
        out.append(Verdict(path, wrong, note))
    return out


def _wrong(path: Path, file: File) -> str:
    if path.stat().st_size != file.bytes:
        return f"{path.stat().st_size} bytes instead of {file.bytes}"
    got = digest(path, "sha256")
    return "" if got == file.sha256 else f"sha256 {got[:16]}... instead of {file.sha256[:16]}..."


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
    layout = next((x for x in known.layouts if x.archives), None)
    if layout is None:
        raise MetabenchError(f"{name} has no public address to fetch from; {known.offline}")
    folder = (to or cache()) / layout.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for archive in layout.archives:
            if _short(archive, archive.unpacked(folder)):
                path = folder / f"{archive.folder}.zip"
                try:
                    download(archive.urls, path, archive.checksum, progress)
                except MetabenchError as error:
                    raise MetabenchError(f"{error}; by hand: {known.offline}") from None
                _unpack(path, folder, archive)
                path.unlink()
    except OSError as error:
        where = error.filename or folder
        raise MetabenchError(f"cannot write {where}: {error.strerror}") from None
    return folder


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(path) as packed:
            packed.extractall(scratch)
        files = archive.unpacked(Path(scratch))
        if short := _short(archive, files):
            raise MetabenchError(f"{path.name} holds {short} in {archive.folder!r}")
        inside, target = Path(scratch) / archive.folder, folder / archive.folder
        (inside / _MARK).write_text(_digest_of_all(inside, files) + "\n")
        if target.exists():
            os.replace(target, Path(scratch) / "old")
        os.replace(inside, target)


_MARK = ".metabench-sha256"  # of all files together, written when they were unpacked
