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
        return (
            f"its process ended with exit code {code} (what it printed says why; a script that "
            'runs several jobs needs if __name__ == "__main__":)'
        )
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
