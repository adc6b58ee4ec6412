"""Processes that run cells: how they end, what they ignore, how much memory they take."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

FROM_TERMINAL = [s for s in signal.Signals if s.name in ("SIGINT", "SIGHUP")]
"""What a key, or the loss of the terminal, sends to every process of a launch: the one that
launches decides. Windows has no SIGHUP."""


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
    """A process started inside ignores from the start what a terminal sends to all at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in FROM_TERMINAL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """A process started inside never gets a signal that would kill it; what comes meanwhile is
    delivered here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
