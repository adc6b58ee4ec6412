"""What classes of tasks, methods and solvers told, kept as plain data for the next process.

Only the classes can tell, and their modules import torch, which takes seconds. So a file in the
folder ``resolved`` of the cache holds what they told. It depends on nothing but code and what was
asked, and both are in the name of the file: a sha256 over the question, every file of metabench,
and the versions of what the classes are made with. Nothing is answered from there in a process that
has imported torch, where asking takes no time. Such a process keeps what it found where the next
one will ask for it, too (``for_later``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from metabench.core.cell import canonical
from metabench.core.environment import provenance
from metabench.core.errors import MetabenchError, StoreError
from metabench.core.registry import solvers
from metabench.datasets import cache
from metabench.store import files

T = TypeVar("T")
MOST_FILES = 200
"""Kept in the cache: every change of code or settings makes new ones."""
MADE_WITH = ("torch", "numpy", "pydantic")
"""Packages that may change what the classes of settings are."""
COARSEST = 2.0
"""Seconds: file systems tell when a file has changed in steps of up to so much."""


def slow() -> bool:
    """Whether to ask a class would import torch."""
    return "torch" not in sys.modules


def told(
    question: Mapping[str, Any] | None,
    ask: Callable[[], T],
    plain: Callable[[T], Any],
    read: Callable[[Any], T],
    *,
    for_later: bool = False,
) -> T:
    """What ``ask`` finds, or what it found when another process asked the same.

    ``question``: plain data that says all that the answer depends on but for the code; None: never
    kept. ``plain``: the answer as plain data, None where it is not to be kept; ``read``: the answer
    of such data, which may raise KeyError or TypeError. ``for_later``: kept for the next process
    even where torch has been imported, as it has where this process has asked something before.
    """
    first = slow()
    path = kept_at(question) if question is not None and (first or for_later) else None
    if first and path is not None:
        with contextlib.suppress(
            files.Unreadable, OSError, ValueError, KeyError, TypeError, RecursionError
        ):
            if (data := files.read(path)) is not None:
                content = json.loads(data)
                if content["sha256"] == _seal(path, content["told"]):
                    return read(content["told"])
    found = ask()
    if path is not None and (first or not path.exists()) and (answer := plain(found)) is not None:
        _keep(path, question, answer)
    return found


def kept_at(question: Mapping[str, Any] | None) -> Path | None:
    """Where the answer is kept; None where there is no such place, or where the question is no
    plain data."""
    try:
        whole = canonical(
            {
                "question": question,
                "code": provenance.digest(provenance.files()),
                # A setting may name a solver that somebody's package has.
                "solvers": solvers.names(),
                "python": sys.version,
                "packages": {name: version(name) for name in MADE_WITH},
            }
        )
        folder = cache.folder() / "resolved"
    except (TypeError, ValueError, OSError, ImportError, MetabenchError):
        return None
    return folder / f"{hashlib.sha256(whole.encode()).hexdigest()}.json"


def _seal(path: Path, answer: Any) -> str:
    """A sha256 over the answer and its question, which the name of the file is."""
    return hashlib.sha256(canonical([path.stem, answer]).encode()).hexdigest()


def _keep(path: Path, question: Mapping[str, Any] | None, answer: Any) -> None:
    """Write what was found for the next process, unless the code that found it may not be the code
    that stands there. Nothing is kept where the cache cannot be written."""
    if kept_at(question) != path or not _code_is_older():
        return
    answer = json.loads(canonical(answer))
    data = json.dumps({"told": answer, "sha256": _seal(path, answer)}, sort_keys=True)
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
