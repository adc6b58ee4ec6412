"""The faults by name, and what they need."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .stage import Stage

Act = Callable[[Stage], None]


@dataclass(frozen=True)
class Fault:
    """A fault: how it is injected, and what it needs."""

    name: str
    how: str
    act: Act
    accounting_only: bool = False
    root: bool = False


FAULTS: dict[str, Fault] = {}


def fault(*, accounting_only: bool = False, root: bool = False) -> Callable[[Act], Act]:
    """Enter a function under its name; its docstring says what it does."""

    def enter(act: Act) -> Act:
        how = (act.__doc__ or "").strip().rstrip(".")
        FAULTS[act.__name__] = Fault(act.__name__, how, act, accounting_only, root)
        return act

    return enter


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """SIGKILL, where it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
