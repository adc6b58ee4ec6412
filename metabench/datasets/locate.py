"""Where data sets are on this machine.

A data set is looked for under the folders that ``METABENCH_DATA`` names, then in the cache
(:mod:`metabench.datasets.cache`). It can lie there in one of several layouts.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from metabench.core.errors import DataMissing, UnknownName
from metabench.datasets import cache
from metabench.datasets.catalogue import DATASETS, DataSet, Layout, dataset, matching


@dataclass(frozen=True)
class Found:
    """A data set on this machine: the layout and its folder."""

    layout: Layout
    path: Path


def folders(text: str) -> list[Path]:
    """The folders that a text names as METABENCH_DATA does: a list like PATH's, ~ for home.

    A shell leaves ~ alone in quotes, and a batch script or a container may have no shell.
    """
    return [Path(os.path.expanduser(p)) for p in text.split(os.pathsep) if p]


def roots() -> list[Path]:
    """Folders to look in, in order."""
    return [*folders(os.environ.get("METABENCH_DATA", "")), cache.named()]


def _places(layout: Layout) -> list[Path]:
    """Folders to look in, in order."""
    return [*roots(), *(Path(os.path.expanduser(h)) for h in layout.homes)]


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
    repair = f"metabench data fetch {name}, or set" if fetched else "set"
    repair = f"{by_hand}; then {repair}" if by_hand else repair
    names = " or ".join(dict.fromkeys(x.folder for x in chosen))
    raise DataMissing(name, looked, f"{repair} METABENCH_DATA to the folder that holds {names}")


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
    repair: str = ""
    bytes: int = 0


def status() -> list[Status]:
    """Every known data set: where it is, or the command that repairs its absence."""
    out = []
    for known in DATASETS.values():
        try:
            found = locate(known.name)
        except DataMissing as error:
            out.append(Status(known, None, error.repair))
            continue
        sizes = (os.path.getsize(f) for f in matching(found.path, "**/*") if os.path.isfile(f))
        out.append(Status(known, found, bytes=sum(sizes)))
    return out
