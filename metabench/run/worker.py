"""A process that runs cells one after another, told what to do over a pipe; both ends of it.

It stops at the next step boundary when asked, when terminated, and when the process at the other
end is gone: nothing goes on unwatched, and nothing that a checkpoint can keep is lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metabench.core.cell import Cell
from metabench.core.errors import Held, MetabenchError, NotApplicable, RankLost, Stopped
from metabench.run.events import Event, Listener
from metabench.run.process import death, interrupts_ignored, limit_memory

if TYPE_CHECKING:
    from metabench.run.rank_processes import Crew

Ending = Literal["recorded", "held", "stopped", "refused", "unsaved", "cut off"]
"""cut off: another process of the cell is gone, and the cell is open again; unsaved: there is no
record, because the store cannot keep one or the cell cannot be built."""


@dataclass(frozen=True)
class Options:
    """How every cell of a launch is run; see :func:`metabench.run.runner.run_cell`."""

    store: str
    share: int = 1
    """Cells that run beside each other: each has that part of the usable cores."""
    device: str | None = None
    gpu: str | None = None
    """What CUDA_VISIBLE_DEVICES is set to; None: left as it is."""
    checkpoint_seconds: float = 60.0
    time_limit: float | None = None
    cores: int | None = None
    """All that the cells together may use; None: the usable ones."""
    memory_fraction: float | None = None
    """Part of the GPU's memory that a worker may take."""
    ranks: int = 1
    """Processes for one cell: this one, and others that it starts, or that come to ``meet``."""
    rank_gpus: tuple[str, ...] = ()
    """As ``gpu``, of each rank after the first."""
    meet: str | None = None
    """A file that tells ranks on other nodes where to come
    (:func:`metabench.run.rank_processes.attend`)."""
    output: str | None = None
    """A folder: what a cell prints goes to KEY.log there."""


@dataclass(frozen=True)
class Ended:
    """A worker is done with a cell, in one way or the other; ``what`` says more."""

    cell: Cell
    how: Ending
    what: str = ""


def run_one(
    cell: Cell,
    options: Options,
    listener: Listener,
    stop: Callable[[], bool],
    crew: Crew | None = None,
) -> Ended:
    """Run a cell and say how it ended; raises nothing but KeyboardInterrupt and SystemExit."""
    from metabench.core.hardware import cores
    from metabench.run.runner import run_cell
    from metabench.store.store import Store

    sharing = options.share * (options.ranks if options.meet is None else 1)
    try:
        run_cell(
            cell,
            Store(options.store),
            device=options.device,
            listener=listener,
            checkpoint_seconds=options.checkpoint_seconds,
            time_limit=options.time_limit,
            workers=max(1, (options.cores or cores()) // sharing),
            stop=stop,
            gather=crew.gathered if crew is not None else None,
        )
    except Held as error:
        return Ended(cell, "held", str(error))
    except Stopped:
        return Ended(cell, "stopped")
    except RankLost as error:
        return Ended(cell, "cut off", str(error))
    except NotApplicable as error:
        return Ended(cell, "refused", str(error))
    except MetabenchError as error:
        return Ended(cell, "unsaved", str(error))
    except Exception as error:
        return Ended(cell, "unsaved", f"{type(error).__name__}: {error}")
    return Ended(cell, "recorded")


def main(connection: Connection, options: Options) -> None:
    """The life of a worker: cells come in, events and endings go out."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if options.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = options.gpu
    cells: queue.SimpleQueue[Cell | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while (message := connection.recv()) is not None:
                cells.put(message)
        except (EOFError, OSError):
            pass
        stop.set()
        cells.put(None)

    threading.Thread(target=listen, daemon=True).start()

    def send(message: Event | Ended) -> None:
        try:
            connection.send(message)
        except OSError:  # nobody listens any more
            stop.set()

    from metabench.core.registry import load_plugins

    load_plugins()
    limit_memory(options.memory_fraction)
    with _crew(options) as crew:
        while not stop.is_set() and (cell := cells.get()) is not None:
            if options.output is not None:
                with contextlib.suppress(OSError):  # a full disk costs what is printed, no more
                    _print_to(Path(options.output, f"{cell.key}.log"))
            send(run_one(cell, options, send, stop.is_set, crew))


def _crew(options: Options) -> contextlib.AbstractContextManager[Crew | None]:
    if options.ranks == 1:
        return contextlib.nullcontext()
    from metabench.run.rank_processes import Crew

    meet = Path(options.meet) if options.meet is not None else None
    return Crew(options.ranks - 1, options.rank_gpus, meet)


def _print_to(path: Path) -> None:
    """Send what this process prints, its libraries too, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


class Worker:
    """A worker as the launcher sees it: its process, the pipe to it, and the cell it has."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Not a daemon: a task may want processes of its own, to load data.
        self.process = context.Process(target=main, args=(theirs, options))
        with interrupts_ignored():  # from its first moment: the launcher decides
            self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.since: float | None = None
        """When the cell started; None while its process or its problem is still being made."""

    def send(self, cell: Cell | None) -> None:
        """A cell to run, or None: stop at the next step boundary and end."""
        if cell is not None:
            self.cell, self.since = cell, None
        with contextlib.suppress(OSError):  # a dead worker is noticed when it is listened to
            self.connection.send(cell)

    def messages(self) -> Iterator[Event | Ended]:
        """What it has said since; raises EOFError once it is dead and all has been read."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except OSError:
            raise EOFError from None
        if not self.process.is_alive() and not self.connection.poll():
            raise EOFError

    def death(self) -> str:
        """How the process ended, in words."""
        return death(self.process)
