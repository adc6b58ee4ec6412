"""The other processes of one cell: started here, or come from other nodes; asked for each cell.

Each cell has a torch.distributed group of its own, so that nothing of one that failed is left for
the next. Between cells the processes wait on a pipe (this machine) or a socket (other nodes). They
end when the process that they serve does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.core.cell import Cell
from metabench.core.errors import RankLost, Stopped, StoreError
from metabench.run.workers.process import FROM_TERMINAL, death, interrupts_ignored
from metabench.store.files import write_atomic

if TYPE_CHECKING:
    import torch

    from metabench.contract.parallel.process_group import ProcessGroup

PATIENCE = 1800.0
"""Seconds that ranks wait for each other within a step: shares differ, and an episode may be long.
A process that dies is noticed at once, a node that falls silent only then."""
ARRIVAL_SECONDS = 600.0
"""For every process to start Python and import torch."""
MEET_SECONDS = 300.0
"""For ranks that are ready to form a group."""
FATE_SECONDS = 3.0
"""From a broken connection to the news that a process has died."""
POLL_SECONDS = 0.05
READY = "ready"
LEFT = "left"
OVER = "over"


@dataclass(frozen=True)
class Call:
    """To a rank: join the others for a cell."""

    cell: Cell
    rank: int
    world: int
    host: str
    port: int
    device: str
    engine: Any
    patience: float


class RankProcesses:
    """The ranks 1 to ``others`` of the cells that this process runs; a context manager.

    They are processes of this machine, with CUDA_VISIBLE_DEVICES as in ``gpus`` (cyclic), or where
    ``meet`` is given those that :func:`attend` it from other nodes.
    """

    def __init__(
        self,
        others: int,
        gpus: Sequence[str] = (),
        meet: Path | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.others, self.gpus, self.patience = others, gpus, patience
        self.peers: dict[int, _Peer] = {}
        self.reception = _Reception(meet) if meet is not None else None
        # Before multiprocessing waits for its children, who wait for the pipe to close.
        atexit.register(self.close)

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let all go; those of this machine end."""
        atexit.unregister(self.close)
        self.dismiss()
        if self.reception is not None:
            self.reception.close()

    @contextlib.contextmanager
    def gathered(
        self, cell: Cell, device: torch.device, engine: str, stop: Callable[[], bool]
    ) -> Iterator[ProcessGroup]:
        """Inside, every rank works on the cell; raises RankLost where one is gone or does not
        come, Stopped where ``stop`` says so before they are all there."""
        import torch.distributed as dist

        from metabench.contract.parallel.process_group import ProcessGroup, joined

        world = self.others + 1
        try:
            self._wait_for_peers(cell, stop)
            host = self.reception.host if self.reception is not None else "127.0.0.1"
            try:
                store = dist.TCPStore(  # type: ignore[attr-defined]
                    host, 0, is_master=True, wait_for_workers=False
                )
            except RuntimeError as error:
                raise RankLost(f"no port to meet at on {host}: {error}") from None
            for rank, peer in self.peers.items():
                peer.send(
                    Call(cell, rank, world, host, store.port, str(device), engine, self.patience)
                )
            self._wait(lambda: all(store.check([_name(r)]) for r in self.peers), MEET_SECONDS)
            with joined(store, 0, world, self.patience, self._release):
                yield ProcessGroup(0, world, device, self.fate)
        except (RankLost, KeyboardInterrupt, SystemExit):
            self.dismiss()  # whatever they are in the middle of
            raise

    def _release(self) -> None:
        for peer in self.peers.values():
            peer.send(LEFT)

    def fate(self) -> str:
        """What has become of those who are gone, in words; "" where none is known to be."""
        deadline = time.monotonic() + FATE_SECONDS
        while True:
            gone = [f"rank {rank}: {how}" for rank, peer in self.peers.items() if (how := peer.end)]
            if gone or time.monotonic() > deadline:
                return "; ".join(gone)
            time.sleep(POLL_SECONDS)

    def dismiss(self) -> None:
        """Let those that there are go; the next cell has new ones, or those that come again."""
        for peer in self.peers.values():
            peer.dismiss()
        self.peers.clear()

    def _wait_for_peers(self, cell: Cell, stop: Callable[[], bool]) -> None:
        """Have every rank there and ready."""

        def there() -> bool:
            if stop():
                raise Stopped(str(cell))
            if self.reception is not None:
                for rank, connection in self.reception.arrived():
                    self.peers[rank] = _Peer(connection)
            return len(self.peers) == self.others and all(
                peer.ready() for peer in self.peers.values()
            )

        if self.reception is None:
            for rank in range(1, self.others + 1):
                if rank not in self.peers:
                    gpu = self.gpus[(rank - 1) % len(self.gpus)] if self.gpus else None
                    self.peers[rank] = _started_peer(gpu)
        self._wait(there, ARRIVAL_SECONDS)

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            for rank, peer in self.peers.items():
                if peer.end:
                    raise RankLost(f"rank {rank}: {peer.end}")
            if time.monotonic() > deadline:
                missing = [
                    str(r)
                    for r in range(1, self.others + 1)
                    if r not in self.peers or not self.peers[r].ready()
                ]
                which = f"rank {', '.join(missing)}" if missing else "a rank"
                raise RankLost(f"{which} did not come within {seconds:g} seconds")
            time.sleep(POLL_SECONDS)


class _Peer:
    """Another rank, as rank 0 sees it."""

    def __init__(self, connection: Connection, process: BaseProcess | None = None) -> None:
        self.connection, self.process = connection, process
        self._ready = self._gone = False

    def _read(self) -> None:
        try:
            while not self._gone and self.connection.poll():
                self._ready = self.connection.recv() == READY
        except (EOFError, OSError):
            self._gone = True

    def ready(self) -> bool:
        """Whether it waits for a cell."""
        self._read()
        return self._ready

    @property
    def end(self) -> str:
        """How it ended; "" while it lives."""
        self._read()
        if self.process is not None:
            return death(self.process) if not self.process.is_alive() else ""
        return "its process or its node is gone" if self._gone else ""

    def send(self, call: Call | str) -> None:
        self._ready = False
        with contextlib.suppress(OSError):  # a dead one is noticed when it is waited for
            self.connection.send(call)

    def dismiss(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.connection.close()


def _started_peer(gpu: str | None) -> _Peer:
    """A process of this machine."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    # Not a daemon: a task may want processes of its own, to load data.
    process = context.Process(target=_main, args=(theirs, gpu))
    with interrupts_ignored():
        process.start()
    theirs.close()
    return _Peer(mine, process)


def _main(connection: Connection, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # It has nothing to save, and nobody to work for.
    serve(connection, lambda: os._exit(1))


def serve(connection: Connection, alone: Callable[[], object] = lambda: None) -> None:
    """Join rank 0 for one cell after another until the connection ends, at which ``alone`` is
    called at once, whatever is being done."""
    for number in (*FROM_TERMINAL, signal.SIGTERM):  # rank 0 decides, for all ranks at once
        signal.signal(number, signal.SIG_IGN)
    calls: queue.SimpleQueue[Call | str | None] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                calls.put(connection.recv())
        calls.put(None)
        alone()

    threading.Thread(target=listen, daemon=True).start()
    from metabench.core.registry import load_plugins

    load_plugins()
    import metabench.run.runner  # noqa: F401  # now, not while the others wait

    with contextlib.suppress(OSError):
        connection.send(READY)
        while (call := calls.get()) is not None:
            if isinstance(call, Call):  # not word of rank 0 that this rank did not wait for
                _answer(call, calls.get)
                connection.send(READY)


def _answer(call: Call, leave: Callable[[], object]) -> None:
    import torch
    import torch.distributed as dist

    from metabench.contract.parallel.process_group import ProcessGroup, joined
    from metabench.run.runner import follow

    with contextlib.suppress(Exception):  # what goes wrong, rank 0 has heard or sees
        store = dist.TCPStore(  # type: ignore[attr-defined]
            call.host, call.port, is_master=False, timeout=timedelta(seconds=MEET_SECONDS)
        )
        store.set(_name(call.rank), "here")
        with joined(store, call.rank, call.world, call.patience, leave):
            follow(
                call.cell,
                ProcessGroup(call.rank, call.world, torch.device(call.device)),
                call.engine,
            )


def _name(rank: int) -> str:
    return f"rank {rank}"


class _Reception:
    """Where ranks from other nodes come to: a socket; its address and the key to it are in a
    file that only its user reads."""

    def __init__(self, place: Path) -> None:
        self.host = os.uname().nodename
        key = uuid.uuid4().hex
        self._listener = Listener(("", 0), backlog=64, authkey=key.encode())
        self._come: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        threading.Thread(target=self._welcome, daemon=True).start()
        _write_private(place, {"host": self.host, "port": self._listener.address[1], "key": key})

    def _welcome(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
                self._come.put((connection.recv(), connection))
            except (multiprocessing.AuthenticationError, EOFError, ConnectionError):
                continue
            except OSError:  # closed
                return

    def arrived(self) -> Iterator[tuple[int, Connection]]:
        """Those who have come since."""
        while not self._come.empty():
            yield self._come.get()

    def close(self) -> None:
        self._listener.close()


def _write_private(place: Path, what: Any) -> None:
    """Write a file for this user's eyes."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error.strerror}") from None
    write_atomic(place, json.dumps(what).encode(), private=True)


def over(place: Path) -> None:
    """Let those who :func:`attend` know that nobody will call any more. Raises StoreError."""
    _write_private(place, OVER)


def attend(place: Path, rank: int, *, pause: float = 0.5) -> None:
    """Be rank ``rank`` for whoever is named in the file ``place``, one process after another
    where they die, until it says that it is :func:`over`."""
    while True:
        try:
            named = json.loads(place.read_text())
        except (OSError, ValueError):
            named = None
        if named == OVER:
            return
        if named is not None:
            with contextlib.suppress(OSError, EOFError, multiprocessing.AuthenticationError):
                connection = Client((named["host"], named["port"]), authkey=named["key"].encode())
                with connection:
                    connection.send(rank)
                    serve(connection)
        time.sleep(pause)
