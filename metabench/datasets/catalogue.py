"""Data sets by name, as catalogue.toml has them, and what a folder of each layout holds."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from metabench.core.errors import UnknownName
from metabench.core.text import size_text


@dataclass(frozen=True)
class File:
    """A file of a layout: its path in the data set's folder, its size, its sha256."""

    path: str
    bytes: int
    sha256: str
    needed: bool = True
    """False: nothing that the tasks compute takes it; checked where it is."""
    urls: tuple[str, ...] = ()
    """Where it can be had, packed with gzip: mirrors in order."""
    checksum: str = ""
    """Of what is downloaded, as "md5:..." or "sha256:..."."""


@dataclass(frozen=True)
class Archive:
    """A zip or tar file to download: mirrors in order, its checksum as "md5:..." or "sha256:...",
    the folder that it unpacks to ("." where that is the data set's own), and how many files of
    which suffix (a pattern) that holds."""

    urls: tuple[str, ...]
    checksum: str
    folder: str
    count: int
    suffix: str = ".png"

    def unpacked(self, folder: Path) -> list[Path]:
        """The files of this archive below ``folder``, sorted."""
        return sorted(self._files(folder))

    def begun(self, folder: Path) -> bool:
        """Whether a file of it is below ``folder``; whether all are takes long to count, and is
        what :func:`verify` tells."""
        return next(self._files(folder), None) is not None

    def _files(self, folder: Path) -> Iterator[Path]:
        for file in matching(folder / self.folder, f"**/*{self.suffix}"):
            if not file.name.startswith("."):
                yield file


@dataclass(frozen=True)
class Group:
    """Files that metabench knows no checksum of: a pattern below the data set's folder, and how
    many there are (None: at least one; several numbers: one of them, by the version)."""

    pattern: str
    count: int | tuple[int, ...] | None = None
    note: str = "nobody publishes a checksum"
    """Why they are counted only."""

    def __str__(self) -> str:
        if self.counts == (1,):
            return self.pattern
        return f"{' or '.join(f'{n:,}' for n in self.counts)} {self.pattern}".strip()

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers that it can have; none: any."""
        if self.count is None:
            return ()
        return (self.count,) if isinstance(self.count, int) else self.count


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on a disk, in a folder called ``folder``.

    ``groups`` can only be counted; the task that reads them checks what is inside. ``homes`` are
    folders to look in besides the usual ones: where another library keeps it. ``hub`` is a name to
    fetch through the package ``datasets``, whose own form is then kept.
    """

    name: str
    folder: str
    files: tuple[File, ...] = ()
    archives: tuple[Archive, ...] = ()
    groups: tuple[Group, ...] = ()
    homes: tuple[str, ...] = ()
    hub: str = ""

    @property
    def has_address(self) -> bool:
        """Whether it can be downloaded."""
        return bool(self.archives or self.hub) or any(file.urls for file in self.files)

    def contents(self) -> list[str]:
        """What lies in the folder, a part each: what it is, its size, what it is checked by."""
        files = [
            f"{file.path} ({size_text(file.bytes)}, sha256 {file.sha256})" for file in self.files
        ]
        archives = [
            f"{Path(archive.urls[0]).name} ({archive.checksum.replace(':', ' ')}), unpacked"
            f"{'' if archive.folder == '.' else f' to {archive.folder}'}: {archive.count:,} files"
            for archive in self.archives
        ]
        groups = []
        for note in dict.fromkeys(group.note for group in self.groups):
            some = [str(group) for group in self.groups if group.note == note]
            groups.append(f"{', '.join(some)} ({note})")
        return files + archives + groups

    def lacks(self, folder: Path) -> list[str]:
        """What is needed and not in ``folder``, by name."""
        files = [file.path for file in self.files if file.needed]
        # os.path: a folder of somebody else's is no error, there may be another to look in.
        return (
            [path for path in files if not os.path.isfile(folder / path)]
            + [
                f"*{archive.suffix} files in {archive.folder}"
                if os.path.isdir(folder / archive.folder)
                else archive.folder
                for archive in self.archives
                if not archive.begun(folder)
            ]
            + [x.pattern for x in self.groups if next(matching(folder, x.pattern), None) is None]
        )


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
    by_hand: str = ""
    """How to get what metabench does not fetch: a command or an address."""


def matching(folder: Path, pattern: str) -> Iterator[Path]:
    """What matches a pattern below a folder. "**/" before it: in every folder below too, also
    those that are links, each of them once."""
    if not os.path.isdir(folder):
        return
    if not pattern.startswith("**/"):
        yield from folder.glob(pattern)
        return
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        entry = os.stat(place)
        if (entry.st_dev, entry.st_ino) in seen:
            folders.clear()
            continue
        seen.add((entry.st_dev, entry.st_ino))
        yield from (Path(place, found) for found in names if fnmatchcase(found, pattern[3:]))


def _known() -> dict[str, DataSet]:
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    named: dict[str, dict[str, Any]] = tomllib.loads(text)
    made = TypeAdapter(dict[str, DataSet])
    return made.validate_python({name: {"name": name, **d} for name, d in named.items()})


DATASETS = _known()


def dataset(name: str) -> DataSet:
    """The data set called ``name``; raises UnknownName."""
    if name not in DATASETS:
        raise UnknownName("data set", name, DATASETS)
    return DATASETS[name]
