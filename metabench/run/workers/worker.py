"""A process that runs cells one after another, as a pipe says.

It stops at the next step boundary when asked, when terminated, and when the process at the other
end is gone: nothing goes on unwatched, and nothing that a checkpoint can keep is lost.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metabench.core.cell import Cell
from metabench.core.environment import garbage
from metabench.core.environment.hardware import asked_threads, cores
from metabench.core.errors import Held, MetabenchError, NotApplicable, RankLost, Stopped
from metabench.core.registry import load_plugins
from metabench.run.events import Event, Listener
from metabench.run.workers.process import FROM_TERMINAL, limit_memory

if TYPE_CHECKING:
    from metabench.run.workers.rank_processes import RankProcesses

Ending = Literal["recorded", "held", "stopped", "refused", "unsaved", "cut off"]
"""cut off: another process of the cell is gone, and the cell is open again; unsaved: there is no
record, because the store cannot keep one or the cell cannot be built."""


@dataclass(frozen=True)
class WorkerOptions:
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
    (:func:`metabench.run.workers.rank_processes.attend`)."""
    output: str | None = None
    """A folder that is there: what a cell prints goes to KEY.log in it."""
    store_id: str = ""
    """What the store must be (:mod:`metabench.store.identity`); "" is not checked."""


@dataclass(frozen=True)
class Ready:
    """A worker has started: what fails from now on is the cell's."""


@dataclass(frozen=True)
class NotReady:
    """Why a worker cannot start: no cell's fault."""

    why: str


@dataclass(frozen=True)
class Ended:
    """A worker is done with a cell, in one way or the other; ``what`` says more."""

    cell: Cell
    how: Ending
    what: str = ""


def run_one(
    cell: Cell,
    options: WorkerOptions,
    listener: Listener,
    stop: Callable[[], bool],
    processes: RankProcesses | None = None,
) -> Ended:
    """Run a cell and say how it ended; raises KeyboardInterrupt, and what else is no Exception, but
    for the sys.exit of a task or method."""
    with garbage.uncollected():
        from metabench.run.runner import run_cell
    from metabench.store import identity
    from metabench.store.store import Store

    sharing = options.share * (options.ranks if options.meet is None else 1)
    try:
        identity.check(Path(options.store), options.store_id)
        run_cell(
            cell,
            Store(options.store),
            device=options.device,
            listener=listener,
            checkpoint_seconds=options.checkpoint_seconds,
            time_limit=options.time_limit,
            workers=max(1, (options.cores or cores()) // sharing),
            stop=stop,
            gather=processes.gathered if processes is not None else None,
        )
    except Held as error:
        return Ended(cell, "held", str(error))
    except Stopped:
        return Ended(cell, "stopped")
    except RankLost as error:
        return Ended(cell, "cut off", str(error))
    except SystemExit as error:
        if type(error) is not SystemExit:  # of ours: nobody takes what is printed
            raise
        return Ended(cell, "cut off", f"its code ends the process: sys.exit({error.code!r})")
    except NotApplicable as error:
        return Ended(cell, "refused", str(error))
    except MetabenchError as error:
        return Ended(cell, "unsaved", str(error))
    except Exception as error:
        return Ended(cell, "unsaved", f"{type(error).__name__}: {error}")
    return Ended(cell, "recorded")


def main(connection: Connection, options: WorkerOptions) -> None:
    """The life of a worker: cells come in, events and endings go out."""
    stop = threading.Event()
    for number in FROM_TERMINAL:  # the launcher decides
        signal.signal(number, signal.SIG_IGN)
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

    def send(message: Event | Ended | Ready | NotReady) -> None:
        try:
            connection.send(message)
        except OSError:  # nobody listens any more
            stop.set()

    with contextlib.ExitStack() as stack:
        try:
            load_plugins()
            asked_threads()
            limit_memory(options.memory_fraction)
            processes = stack.enter_context(_rank_processes(options))
        except Exception as error:
            known = isinstance(error, MetabenchError)
            send(NotReady(str(error) if known else f"{type(error).__name__}: {error}"))
            return
        send(Ready())
        with garbage.uncollected():
            import metabench.run.runner  # noqa: F401, to be kept
        garbage.keep()
        while not stop.is_set() and (cell := cells.get()) is not None:
            if options.output is not None:
                with contextlib.suppress(OSError):  # a full disk costs what is printed, no more
                    _print_to(Path(options.output, f"{cell.key}.log"))
            send(run_one(cell, options, send, stop.is_set, processes))


def _rank_processes(
    options: WorkerOptions,
) -> contextlib.AbstractContextManager[RankProcesses | None]:
    if options.ranks == 1:
        return contextlib.nullcontext()
    from metabench.run.workers.rank_processes import RankProcesses

    meet = Path(options.meet) if options.meet is not None else None
    return RankProcesses(options.ranks - 1, options.rank_gpus, meet)


def _print_to(path: Path) -> None:
    """Send what this process prints, its libraries too, to the end of a file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
