"""Processes that run cells: how they end, what they ignore, how much memory they take."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess


def limit_memory(fraction: float | None) -> None:
    """Take no more than a part of the GPU's memory from now on."""
    if fraction is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(fraction)


def death(process: BaseProcess) -> str:
    """How a process ended, in words; waits until it has."""
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"its process ended with exit code {code} (what it printed says why)"
    name = f"signal {-code}"
    with contextlib.suppress(ValueError):
        name += f", {signal.Signals(-code).name}"
    return f"its process died ({name}{'; out of memory?' if code == -signal.SIGKILL else ''})"


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """A process started inside ignores SIGINT from the start."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """A process started inside never gets a signal that would kill it; what comes meanwhile is
    delivered here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
