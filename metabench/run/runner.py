"""One cell, run: a pure function of the cell apart from clocks, whatever interrupts it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace

import torch

from metabench.contract.problem import Params
from metabench.contract.process_group import Ranks
from metabench.core.capabilities import check_applicable
from metabench.core.cell import Cell, instances
from metabench.core.errors import Diverged, Held, RankLost, Stopped, StoreError, TimedOut
from metabench.core.hardware import cores
from metabench.run import determinism, learning_curve
from metabench.run.events import Event, Finished, Interrupted, Listener, SetAside, ignore
from metabench.run.loop import Engine, Loop, Options, stamp
from metabench.store.record import Curve, Record, Status
from metabench.store.store import CHECKPOINT, Store

Joined = Callable[[], AbstractContextManager[Ranks]]
"""What gathers the ranks of a run."""

Gather = Callable[[Cell, torch.device, Engine, Callable[[], bool]], AbstractContextManager[Ranks]]
"""From a cell, its device, its engine and what says to stop, to the processes that share it:
:meth:`metabench.run.rank_processes.Crew.gathered`."""


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

    With a store the cell is claimed first; a finished record is handed back as it is, and a
    checkpoint is gone on from. Checkpoints are at least ``checkpoint_seconds`` apart (0: every
    outer step). ``time_limit`` in seconds of this call. ``workers``: threads for the episodes of a
    step (default: the usable cores); they change no result. ``engine`` "auto": batched episodes on
    a GPU, one after another on a CPU. ``stop`` is asked between steps. ``gather``: how other
    processes come to share the episodes; they change no result either.

    What goes wrong while running becomes a record (diverged, timeout, failed). Raises
    NotApplicable, UnknownName, SettingError (nothing is run), StoreError (the cell cannot be
    claimed), Held (another live process has it), Stopped (``stop`` said so; a checkpoint is kept,
    as for KeyboardInterrupt), RankLost (one of the others is gone; likewise), and, once the record
    is kept, what ``listener`` raised.
    """
    parts = instances(cell)
    check_applicable(*parts[:3])
    tell = _Teller(listener or ignore)
    options = Options(
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        tell,
        checkpoint_seconds,
        time_limit,
        workers or cores(),
        engine,
        stop or (lambda: False),
    )
    loop = Loop(cell, parts, options)

    def joined() -> AbstractContextManager[Ranks]:
        if gather is None:
            return nullcontext(Ranks())
        return gather(cell, options.device, engine, options.stop)

    if store is not None:
        record = _claimed(loop, store, joined)
    else:
        record = _finished(loop, _run(loop, joined)[0])
    if tell.error is not None:
        raise tell.error
    return record


def follow(cell: Cell, ranks: Ranks, engine: Engine) -> None:
    """Take part in a cell that rank 0 runs, as another rank of it; raises what that raises."""
    options = Options(ranks.device, ignore, math.inf, None, 1, engine, lambda: False)

    def begun() -> Loop:
        loop = Loop(cell, instances(cell), options)
        loop.ranks = ranks
        loop.prepare()
        return loop

    with determinism.fixed(ranks.device):
        loop = ranks.together(begun)
        ranks.together(loop.train)
        ranks.together(loop.judge)


class _Teller:
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


def _finished(loop: Loop, record: Record, unsaved: str = "") -> Record:
    loop.options.listener(Finished(record, unsaved=unsaved))
    return record


def _claimed(loop: Loop, store: Store, joined: Joined) -> Record:
    """The stored record of a finished cell, or a run under a claim."""
    cell, tell = loop.cell, loop.options.listener
    claim = store.claim(cell.key)
    if claim is None:
        raise Held(f"{cell} is being run by {store.holder(cell.key) or 'another process'}")
    with claim:
        for bad in store.mend_claimed(claim):
            tell(SetAside(bad))
        known = store.get(cell.key)
        if known is not None and known.status == "done":
            tell(Finished(known, reused=True))
            return known
        loop.store, loop.claim = store, claim
        loop.attempts = known.attempts + 1 if known is not None else 1
        return _keep(store, loop, joined)


def _run(loop: Loop, joined: Joined) -> tuple[Record, Curve, Params | None]:
    """The record, its curve, and the tested lam where the run is done."""
    started = stamp()
    status: Status = "done"
    reason = trace = ""
    determinism.facts()  # of the code that runs now, not of edits made meanwhile
    with determinism.fixed(loop.options.device):
        try:
            with joined() as ranks:
                loop.ranks = ranks
                ranks.together(loop.prepare)
                ranks.together(loop.train)
                ranks.together(loop.judge)
        except (Stopped, RankLost, KeyboardInterrupt, SystemExit):
            # Where the disk refuses, the older checkpoint stays.
            loop.save(quietly=True)
            if loop.at is not None:
                loop.options.listener(Interrupted(loop.cell, loop.at.step))
            raise
        except (Held, StoreError):
            raise
        except Diverged as error:
            status, reason = "diverged", str(error)
        except TimedOut as error:
            status, reason = "timeout", str(error)
            loop.save(quietly=True)
        except Exception as error:
            status, trace = "failed", traceback.format_exc()
            reason = f"{type(error).__name__}: {error}"
    record = Record(
        key=loop.cell.key,
        cell=loop.cell,
        status=status,
        reason=reason,
        traceback=trace,
        seeds=asdict(loop.seeds),
        cost=loop.cost(),
        environment=loop.environment(),
        started=started,
        ended=stamp(),
        attempts=loop.attempts,
    )
    at = loop.at
    if at is None:
        return record, {}, None
    record = replace(record, steps=at.step, notes=dict(loop.ctx.notes))
    if status != "done" or at.best is None:
        return record, at.curve, None
    record = replace(
        record,
        metrics={"valid": at.valid, **at.metrics},
        selected_step=at.best_step,
        lam=learning_curve.describe(at.best.reported),
    )
    return record, at.curve, at.best.reported


def _keep(store: Store, loop: Loop, joined: Joined) -> Record:
    """Run, and write the record. Where the disk refuses, the cell has failed and says so if it can;
    its checkpoint stays, for a rerun to go on from."""
    unsaved = ""
    try:
        record, curve, lam = _run(loop, joined)
        arrays = learning_curve.arrays(lam) if lam is not None else None
        record = store.write(record, curve, arrays, claim=loop.claim)
        if record.status != "timeout":
            (store.folder(record.key) / CHECKPOINT).unlink(missing_ok=True)
    except StoreError as error:
        record = Record(
            key=loop.cell.key,
            cell=loop.cell,
            status="failed",
            reason=str(error),
            traceback=traceback.format_exc(),
            seeds=asdict(loop.seeds),
            cost=loop.cost(),
            steps=loop.at.step if loop.at is not None else 0,
            environment=loop.environment(),
            ended=stamp(),
            attempts=loop.attempts,
        )
        try:
            record = store.write(record, claim=loop.claim)
        except StoreError as again:
            unsaved = str(again)
    return _finished(loop, record, unsaved)
