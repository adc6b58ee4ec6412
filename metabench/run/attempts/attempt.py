"""An attempt at a cell: where it stands, what it has spent, its checkpoints, what may end it."""

from __future__ import annotations

import copy
import platform
import time
from pathlib import Path
from typing import Any

from metabench.contract.context import Context
from metabench.contract.parallel.process_group import ProcessGroup
from metabench.contract.seeds import Seeds
from metabench.core.cell import Cell
from metabench.core.costs import COUNT_NAMES, Counts, Meter
from metabench.core.errors import Held, SettingError, Stopped, StoreError, TimedOut
from metabench.run import determinism
from metabench.run.attempts import checkpoint
from metabench.run.attempts.checkpoint import Boundary, Checkpoint, stamp
from metabench.run.evaluation import Stopwatch
from metabench.run.events import Progress, Quarantined
from metabench.run.options import Parts, RunOptions
from metabench.store.cell_folder import CHECKPOINT
from metabench.store.files import BadFile
from metabench.store.lease import Lease
from metabench.store.store import Store

PROGRESS_SECONDS = 0.2


class Attempt:
    """An attempt at a cell. ``at`` always is its last step boundary, from which :meth:`save` makes
    a checkpoint, and on from which :meth:`resume` goes.

    In a ``group`` of several processes each has an attempt, and goes through the same steps; the
    store, the lease, the listener and the clock that counts are rank 0's. ``attempts`` counts this
    one. What is done in it, timed by ``training`` and ``evaluating``, is
    :class:`metabench.run.loop.Loop`'s.
    """

    ctx: Context
    """What the method is given; with it come the notes and counts of the attempt."""
    made_with: dict[str, Any]
    """Under what conditions an attempt that goes on from a checkpoint gives the same bits."""

    def __init__(
        self,
        cell: Cell,
        parts: Parts,
        options: RunOptions,
        group: ProcessGroup,
        store: Store | None = None,
        lease: Lease | None = None,
        attempts: int = 1,
    ) -> None:
        self.cell, self.parts, self.options, self.group = cell, parts, options, group
        self.task, self.method, self.solver, self.budget = parts
        self.store, self.lease, self.attempts = store, lease, attempts
        self.seeds = Seeds.of(cell.seed)
        self.hosts: list[str] = []
        self._at: Boundary | None = None
        self._noted: dict[str, Any] = {}
        self.resumed: list[dict[str, Any]] = []
        self.training, self.evaluating = Stopwatch(options.device), Stopwatch(options.device)
        self.memory = determinism.PeakMemory(options.device)
        self._peak_before: dict[str, float] = {}
        self._saved = self._reported = time.monotonic()
        self._footprint: dict[str, float] = {}

    @property
    def at(self) -> Boundary | None:
        """The last step boundary, with the notes that there were: what a step that is cut off has
        noted goes with what it has counted, and is found anew."""
        return self._at

    @at.setter
    def at(self, new: Boundary) -> None:
        self._at, self._noted = new, copy.deepcopy(self.ctx.notes)

    @property
    def boundary(self) -> Boundary:
        """``at``, once there is one."""
        assert self.at is not None
        return self.at

    def compare(self) -> None:
        """Raise SettingError where ranks differ in what changes results."""
        if self.group.world == 1:
            return
        found = self.group.exchange((platform.node(), self.made_with))
        self.hosts = [host for host, _ in found]
        for rank, (host, other) in enumerate(found):
            for name, value in found[0][1].items():
                if other.get(name) != value:
                    raise SettingError(
                        f"rank {rank} on {host} has {name} {other.get(name)}, rank 0 has {value}"
                    )

    def broadcast(self, value: Any) -> Any:
        """A value and the training clock as rank 0 has them."""
        value, self.training.seconds = self.group.agree((value, self.training.seconds))
        return value

    def check(self) -> None:
        """Raise Stopped, TimedOut or Held where the run must not go on; rank 0 decides."""
        self.group.together(self._check)

    def _check(self) -> None:
        limit = self.options.time_limit
        if self.options.stop():
            raise Stopped(str(self.cell))
        if limit is not None and time.monotonic() - self.options.begun > limit:
            raise TimedOut(f"not finished within {limit:g} seconds; a rerun goes on from here")
        if self.lease is not None and self.lease.lost:
            raise Held(f"{self.cell}: another process has taken the cell over")

    def report_progress(self, phase: str, spent: float) -> None:
        """Progress, a few times a second at most."""
        now = time.monotonic()
        if now - self._reported >= PROGRESS_SECONDS:
            self._reported, at = now, self.boundary
            latest = {name: total / n for name, (total, n) in at.logs.items()}
            self.options.listener(
                Progress(self.cell, at.step, self.budget.outer_steps, spent, phase, latest)
            )

    def maybe_checkpoint(self) -> None:
        """A checkpoint, if it is time for one."""
        if time.monotonic() - self._saved >= self.options.checkpoint_seconds:
            self.save()

    def save(self, *, quietly: bool = False) -> None:
        """A checkpoint of the last step boundary, unless the lease is lost: then the place is
        another's. Raises StoreError unless ``quietly``."""
        if self.at is None or self.store is None or self.lease is None:
            return
        seconds, evaluation = self.training.seconds, self.evaluating.seconds
        content = Checkpoint(
            self.at, self._noted, seconds, evaluation, self.peak(), self.attempts, self.resumed
        )
        try:
            checkpoint.save(self.path(), content, self.made_with, self.lease.sure)
        except Held:
            return
        except StoreError:
            if not quietly:
                raise
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the checkpoint, where there is one that can be trusted."""
        found = self.group.agree(self._checkpoint())
        if found is None:
            return False
        self.ctx.notes.update(found.notes)
        at = self.at = found.boundary
        self.ctx.step, self.ctx.meter = at.step, Meter(Counts(**at.counts))
        self.training.seconds = found.seconds
        self.evaluating.seconds = found.evaluation_seconds
        self._peak_before, self.resumed = found.peak, found.resumed
        self.attempts = max(self.attempts, found.attempts + 1)
        commit = determinism.facts()["git"].get("commit", "")
        self.resumed.append({"step": at.step, "at": stamp(), "commit": commit})
        return True

    def _checkpoint(self) -> Checkpoint | None:
        """What the store has; what cannot be trusted is quarantined."""
        if self.store is None:
            return None
        try:
            return checkpoint.load(self.path(), self.made_with)
        except checkpoint.Damaged as damage:
            bad = self.store.quarantine(BadFile(self.path(), str(damage)))
            self.options.listener(Quarantined(bad))
            return None

    def peak(self) -> dict[str, float]:
        """Peak memory over this attempt and those it went on from."""
        now = self.memory.read()
        return {name: max(value, self._peak_before.get(name, 0)) for name, value in now.items()}

    def cost(self) -> dict[str, float]:
        """Counts up to the last step boundary, clocks, memory."""
        counts = self.at.counts if self.at is not None else dict.fromkeys(COUNT_NAMES, 0)
        return {
            **counts,
            "seconds": self.training.seconds,
            "evaluation_seconds": self.evaluating.seconds,
            **self.peak(),
            **self._footprint,
        }

    def path(self) -> Path:
        """Of the checkpoint."""
        assert self.store is not None
        return self.store.folder(self.cell.key) / CHECKPOINT
