"""One cell, run: a pure function of the cell apart from clocks, whatever interrupts it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from metabench.contract.parallel.process_group import ProcessGroup
from metabench.contract.problem import Params
from metabench.core.capabilities import check_applicable
from metabench.core.cell import Cell, instances
from metabench.core.environment.hardware import cores
from metabench.core.errors import Diverged, Held, RankLost, Stopped, StoreError, TimedOut
from metabench.run import determinism, learning_curve
from metabench.run.attempts.checkpoint import stamp
from metabench.run.evaluation import pictures
from metabench.run.events import Event, Finished, Interrupted, Listener, Quarantined, ignore
from metabench.run.loop import Loop
from metabench.run.options import Engine, Parts, RunOptions
from metabench.store.files import remove
from metabench.store.lease import Lease
from metabench.store.record import Curve, Record, Status
from metabench.store.store import Store

if TYPE_CHECKING:
    from metabench.store.encoding import Arrays

Joined = Callable[[], AbstractContextManager[ProcessGroup]]
"""What gathers the processes of a run."""

Gather = Callable[
    [Cell, torch.device, Engine, Callable[[], bool]], AbstractContextManager[ProcessGroup]
]
"""From a cell, its device, its engine and what says to stop, to the processes that share it:
:meth:`metabench.run.workers.rank_processes.RankProcesses.gathered`."""


def run_cell(
    cell: Cell,
    store: Store | None = None,
    *,
    device: str | torch.device | None = None,
    listener: Listener | None = None,
    checkpoint_seconds: float = 60.0,
    time_limit: float | None = None,
    workers: int | None = None,
    engine: Engine = "auto",
    stop: Callable[[], bool] | None = None,
    gather: Gather | None = None,
) -> Record:
    """Run a cell to its record, and keep it where there is a store.

    With a store the cell's lease is taken first; a finished record is handed back as it is, and
    a run continues from its checkpoint. Checkpoints are at least ``checkpoint_seconds`` apart
    (0: every outer step). ``time_limit`` in seconds of this call. ``workers``: threads for the
    episodes of a step (default: the usable cores); they change no result. ``engine`` "auto":
    batched episodes on a GPU or where the problem says that it pays on a CPU, else one after
    another; "graph", on a GPU alone: batched, and each outer step replayed from a captured CUDA
    graph. ``stop`` is asked between steps.
    ``gather``: how other processes come to share the episodes; they change no result either.

    What goes wrong while running becomes a record (diverged, timeout, failed). Raises
    NotApplicable, UnknownName, SettingError (nothing is run), StoreError (the lease cannot be
    written), Held (another live process has it), Stopped (``stop`` said so; a checkpoint is kept,
    as for KeyboardInterrupt), RankLost (one of the others is gone; likewise), and, once the record
    is kept, what ``listener`` raised.
    """
    parts = instances(cell)
    check_applicable(*parts[:3])
    patient = _PatientListener(listener or ignore)
    options = RunOptions(
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        patient,
        checkpoint_seconds,
        time_limit,
        workers or cores(),
        engine,
        stop or (lambda: False),
    )

    def joined() -> AbstractContextManager[ProcessGroup]:
        if gather is None:
            return nullcontext(ProcessGroup())
        return gather(cell, options.device, engine, options.stop)

    if store is not None:
        record = _leased(cell, parts, options, joined, store)
    else:
        record = _RecordedRun(cell, parts, options, joined).run()[0]
        patient(Finished(record))
    if patient.error is not None:
        raise patient.error
    return record


def follow(cell: Cell, group: ProcessGroup, engine: Engine) -> None:
    """Take part in a cell that rank 0 runs, as another rank of it; raises what that raises."""
    options = RunOptions(group.device, ignore, math.inf, None, 1, engine, lambda: False)

    def begun() -> Loop:
        loop = Loop(cell, instances(cell), options, group)
        loop.prepare()
        return loop

    with determinism.fixed(group.device):
        loop = group.together(begun)
        group.together(loop.train)
        group.together(loop.final_evaluations)


class _PatientListener:
    """A listener whose own errors are not taken for the cell's: they wait until it has ended."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.error: Exception | None = None

    def __call__(self, event: Event) -> None:
        if self.error is None:
            try:
                self.listener(event)
            except Exception as error:
                self.error = error


def _leased(cell: Cell, parts: Parts, options: RunOptions, joined: Joined, store: Store) -> Record:
    """The stored record of a finished cell, or a run under a lease."""
    lease = store.lease(cell.key)
    if lease is None:
        raise Held(f"{cell} is being run by {store.holder(cell.key) or 'another process'}")
    with lease:
        for bad in store.repair_leased(lease):
            options.listener(Quarantined(bad))
        known = store.get(cell.key)
        if known is not None and known.status == "done":
            options.listener(Finished(known, reused=True))
            return known
        attempts = known.attempts + 1 if known is not None else 1
        record, unsaved = _RecordedRun(cell, parts, options, joined, store, lease, attempts).keep()
        options.listener(Finished(record, unsaved=unsaved))
        return record


class _RecordedRun:
    """A loop, run together with the processes that share it, and the record that comes of it."""

    def __init__(
        self,
        cell: Cell,
        parts: Parts,
        options: RunOptions,
        joined: Joined,
        store: Store | None = None,
        lease: Lease | None = None,
        attempts: int = 1,
    ) -> None:
        def loop(group: ProcessGroup) -> Loop:
            return Loop(cell, parts, options, group, store, lease, attempts)

        self.cell, self.joined, self.store, self.lease = cell, joined, store, lease
        self.make = loop
        self.loop = loop(ProcessGroup())  # until the others have come
        self.device, self.listener = options.device, options.listener
        self.started = stamp()

    def run(self) -> tuple[Record, Curve, Params | None, Arrays]:
        """The record, its curve, and the tested lam and its pictures where the run is done."""
        status: Status = "done"
        reason = trace = ""
        shown: Arrays = {}
        determinism.facts()  # of the code that runs now, not of edits made meanwhile
        with determinism.fixed(self.device):
            try:
                with self.joined() as group:
                    loop = self.loop = self.make(group)
                    group.together(loop.prepare)
                    group.together(loop.train)
                    group.together(loop.final_evaluations)
                    if (best := loop.boundary.best) is not None:
                        shown = pictures(loop.ctx, loop.method, best)
            except (Stopped, RankLost, KeyboardInterrupt, SystemExit):
                # Where the disk refuses, the older checkpoint stays.
                self.loop.save(quietly=True)
                if self.loop.at is not None:
                    self.listener(Interrupted(self.cell, self.loop.at.step))
                raise
            except (Held, StoreError):
                raise
            except Diverged as error:
                status, reason = "diverged", str(error)
            except TimedOut as error:
                status, reason = "timeout", str(error)
                self.loop.save(quietly=True)
            except Exception as error:
                status, trace = "failed", traceback.format_exc()
                reason = f"{type(error).__name__}: {error}"
        record, at = self.record(status, reason, trace), self.loop.at
        if at is None:
            return record, {}, None, {}
        record = replace(record, notes=dict(self.loop.ctx.notes))
        if status != "done" or at.best is None:
            return record, at.curve, None, {}
        record = replace(
            record,
            metrics={
                "valid": at.valid,
                **({"selection": at.selection} if at.selection else {}),
                **at.metrics,
            },
            selected_step=at.best_step,
            lam=learning_curve.describe(at.best.reported),
        )
        return record, at.curve, at.best.reported, shown

    def record(self, status: Status, reason: str, trace: str) -> Record:
        """What every record says, however the run ended."""
        loop = self.loop
        return Record(
            key=self.cell.key,
            cell=self.cell,
            status=status,
            reason=reason,
            traceback=trace,
            seeds=asdict(loop.seeds),
            steps=loop.at.step if loop.at is not None else 0,
            cost=loop.cost(),
            environment=_environment(loop),
            started=self.started,
            ended=stamp(),
            attempts=loop.attempts,
        )

    def keep(self) -> tuple[Record, str]:
        """Run, and write the record; why it could not be written, or "". Where the disk refuses,
        the cell has failed and says so if it can; its checkpoint stays, for a rerun to continue."""
        assert self.store is not None
        try:
            record, curve, lam, shown = self.run()
            arrays = learning_curve.arrays(lam) if lam is not None else None
            record = self.store.write(record, curve, arrays, shown, lease=self.lease)
            if record.status != "timeout":
                self.drop_checkpoint()
        except StoreError as error:
            record = self.record("failed", str(error), traceback.format_exc())
            try:
                return self.store.write(record, lease=self.lease), ""
            except StoreError as again:
                return record, str(again)
        return record, ""

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a run that has ended, unless the cell is another's by now. The
        record is kept: what cannot be removed is for a repair."""
        assert self.lease is not None
        with suppress(Held, StoreError), self.lease.sure():
            remove(self.loop.path())


def _environment(loop: Loop) -> dict[str, Any]:
    """What an attempt ran on."""
    out: dict[str, Any] = {
        **determinism.facts(),
        "device": str(loop.options.device),
        "packages": determinism.packages(loop.task, loop.method, loop.solver),
        "memory_at_start_bytes": loop.memory.at_start,
        "resumed": loop.resumed,
    }
    if loop.warm_up_seconds is not None:
        out["warm_up_seconds"] = loop.warm_up_seconds
    if loop.at is not None:
        out |= {"engine": loop.engine, "threads": loop.threads}
        if loop.at_once is not None:
            out["adapted_at_once"] = loop.at_once
        out |= {"workers": loop.ctx.workers, "ranks": loop.group.world}
    if loop.hosts:
        out["rank_hosts"] = loop.hosts
        if loop.problem.episodes_per_step == 1:
            out["ranks_note"] = (
                "a step has one episode, which one rank works on: the others only helped with "
                "evaluation"
            )
    return out
