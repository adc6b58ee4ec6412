"""What the places of a suite resolve to: settings over defaults, and what the parts declare.

Only the classes of tasks and methods can tell, and their modules import torch, which takes seconds.
So a file in the folder ``resolved`` of the cache holds what they told, and plans and tables are
made of that. It is plain data that depends on nothing but code and settings, and both are in the
name of the file: a sha256 over what is asked, every file of metabench, and the versions of what the
classes are made with. Plug-ins are not in it: places that name one are resolved by its class, and
so is everything in a process that has imported torch, where that takes no time. Such a process
keeps what it found where the next one will ask for it, too (``for_later``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from metabench.core import cell
from metabench.core.cell import Resolved, canonical
from metabench.core.declaration import Declaration
from metabench.core.environment import provenance
from metabench.core.errors import MetabenchError, SettingError, StoreError, UnknownName
from metabench.core.registry import methods, solvers, tasks
from metabench.datasets import locate
from metabench.store import files

MOST_FILES = 200
"""Kept in the cache: every change of code or settings makes new ones."""
MADE_WITH = ("torch", "numpy", "pydantic")
"""Packages that may change what the classes of settings are."""
COARSEST = 2.0
"""Seconds: file systems tell when a file has changed in steps of up to so much."""


class Place(NamedTuple):
    """What a suite says of a row and a column: names, settings in groups, and where that is, for
    errors. ``solver`` None: the method's own."""

    task: str
    method: str
    solver: str | None
    set: Mapping[str, Mapping[str, Any]]
    where: str


def resolve(places: Sequence[Place], *, for_later: bool = False) -> list[Resolved]:
    """Each place resolved, in order. Raises UnknownName and SettingError as
    :func:`metabench.core.cell.make_cell`, with a note of the place.

    ``for_later``: kept for the next process even where torch has been imported, as it has where
    this process has resolved something else before.
    """
    slow = "torch" not in sys.modules
    path = _file(places) if slow or for_later else None
    if slow and path is not None and (known := _recalled(path)) is not None:
        return known
    found = []
    for place in places:
        try:
            found.append(cell.resolve(place.task, place.method, place.solver, place.set))
        except (UnknownName, SettingError) as error:
            error.add_note(place.where)
            raise
    if path is not None and (slow or not path.exists()):
        _keep(path, places, found)
    return found


def _file(places: Sequence[Place]) -> Path | None:
    """Where the answer is kept; None where there is no such place, where a name is not metabench's,
    or where settings are no plain data."""
    if not all(map(_is_of_metabench, places)):
        return None
    try:
        told = canonical(
            {
                "places": [[place.task, place.method, place.solver, place.set] for place in places],
                "code": provenance.digest(provenance.files()),
                # A setting may name a solver that somebody's package has.
                "solvers": solvers.names(),
                "python": sys.version,
                "packages": {name: version(name) for name in MADE_WITH},
            }
        )
        folder = locate.cache() / "resolved"
    except (TypeError, ValueError, OSError, ImportError, MetabenchError):
        return None
    return folder / f"{hashlib.sha256(told.encode()).hexdigest()}.json"


def _is_of_metabench(place: Place) -> bool:
    """Whether metabench itself has all that a place names."""
    named = [(tasks, place.task), (methods, place.method)]
    named += [(solvers, place.solver)] if place.solver is not None else []
    return all(registry.is_built_in(name) for registry, name in named)


def _recalled(path: Path) -> list[Resolved] | None:
    """What was kept there; None where there is nothing, or not what was written."""
    with contextlib.suppress(files.Unreadable, OSError, ValueError, KeyError, TypeError):
        if (data := files.read(path)) is not None:
            content = json.loads(data)
            if content["sha256"] == _seal(path, content["resolved"]):
                return [_parsed(**each) for each in content["resolved"]]
    return None


def _parsed(said: Mapping[str, Any], **names_and_settings: Any) -> Resolved:
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    return Resolved(**names_and_settings, said=Declaration(**plain))


def _seal(path: Path, resolved: Any) -> str:
    """A sha256 over the answer and its question, which the name of the file is."""
    return hashlib.sha256(canonical([path.stem, resolved]).encode()).hexdigest()


def _keep(path: Path, places: Sequence[Place], found: Sequence[Resolved]) -> None:
    """Write what was found for the next process, unless the code that found it may not be the code
    that stands there. Nothing is kept where the cache cannot be written."""
    if _file(places) != path or not _code_is_older():
        return
    resolved = [
        {
            "task": one.task,
            "method": one.method,
            "solver": one.solver,
            "task_settings": one.task_settings,
            "method_settings": one.method_settings,
            "solver_settings": one.solver_settings,
            "budget": one.budget,
            "said": asdict(one.declaration),
        }
        for one in found
    ]
    resolved = json.loads(canonical(resolved))
    data = json.dumps({"resolved": resolved, "sha256": _seal(path, resolved)}, sort_keys=True)
    with contextlib.suppress(StoreError):
        files.ensure_writable(path.parent)
        files.write_atomic(path, data.encode())
        _forget_oldest(path.parent)


def _code_is_older() -> bool:
    """Whether no file of metabench has changed since this process began to import it."""
    began: float = vars(sys.modules["metabench"])["_imported_at"] - COARSEST
    try:
        return all(path.stat().st_mtime < began for _, path in provenance.paths())
    except OSError:
        return False


def _forget_oldest(folder: Path) -> None:
    """Leave the newest ``MOST_FILES``; another process may be at it, too."""
    with contextlib.suppress(OSError):
        kept = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in kept[MOST_FILES:]:
            file.unlink(missing_ok=True)
