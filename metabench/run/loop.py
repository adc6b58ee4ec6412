"""The harness's outer loop: budget, learning curve, guards, checkpoints, final evaluations."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from metabench.contract.at_once import Graphs, cuda_graph
from metabench.contract.method import Context, State
from metabench.contract.process_group import ProcessGroup
from metabench.contract.seeds import Seeds
from metabench.core.cell import Cell
from metabench.core.costs import COUNT_NAMES, CUT_LOOK, CUT_STEP, Counts, Meter
from metabench.core.errors import (
    BudgetSpent,
    Diverged,
    Held,
    SettingError,
    Stopped,
    StoreError,
    TimedOut,
    UnknownName,
    Unpriced,
)
from metabench.core.limits import RUNAWAY
from metabench.core.readouts import by_steps, ending
from metabench.run import checkpoint, determinism, learning_curve, looks
from metabench.run.checkpoint import Boundary, Checkpoint, detached, stamp
from metabench.run.evaluation import Metrics, Retrained, Stopwatch, at_once, evaluate
from metabench.run.events import Measured, Progress, Quarantined, Started
from metabench.run.first_step import peak_bytes
from metabench.run.guards import Untouched, check_numbers, check_state, check_step
from metabench.run.options import Parts, RunOptions
from metabench.run.warm_up import warm_up
from metabench.store.files import BadFile
from metabench.store.lease import Lease
from metabench.store.record import RETRAINED
from metabench.store.store import CHECKPOINT, Store

IDLE_STEPS = 1000
"""Steps without any cost that the budget limits, after which a run is ended."""
PROGRESS_SECONDS = 0.2


class Loop:
    """One attempt at a cell: :meth:`prepare`, :meth:`train`, :meth:`final_evaluations`, in this
    order; ``at`` always is the last step boundary, from which :meth:`save` makes a checkpoint.

    In a ``group`` of several processes each has a loop, and goes through the same steps; the store,
    the lease, the listener and the clock that counts are rank 0's. ``attempts`` counts this one.

    ``training`` times the method's init and its outer steps, with drawing their episodes. Not in it
    are imports, building the problem with its data, evaluations, checkpoints, and the warm-up that
    every attempt begins with (:func:`metabench.run.warm_up.warm_up`; none where several processes
    share a cell, whose first step has it in its time).
    """

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
        self.cell, self.options, self.group = cell, options, group
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
        self._validated: tuple[State, dict[str, Metrics]] | None = None
        self._kept: dict[str, Untouched] = {}
        self._footprint: dict[str, float] = {}
        self.warm_up_seconds: float | None = None
        self.at_once: int | None = None  # episodes that evaluations adapt by one vmap

    def prepare(self) -> None:
        """Build the problem; go on from a checkpoint, or start."""
        device = self.options.device
        self.problem = self.task.build(self.seeds, device)
        self.ctx = self.context()
        spread = self.ctx.engine == "loop" and self.problem.episodes_per_step > 1
        self.threads = determinism.intra_op_threads(spread)
        torch.set_num_threads(self.threads)
        if self.method.reconstruction:
            self.ctx.notes["reconstruction"] = self.method.reconstruction
        self.made_with = {
            **determinism.versions(),
            "contract": self.cell.contract,
            "key": self.cell.key,
            "device": str(device),
            "engine": self.engine,
            "threads": self.threads,
        }
        if self.ctx.engine == "vmap" and self.group.world > 1:
            self.made_with["ranks"] = self.group.world  # other batches may have other last bits
        self.compare()
        if not self.resume():
            determinism.seed_globals(self.seeds.method, device)
            with self.training:
                state = self.method.init(self.ctx)
            check_state(f"init of {self.cell.method}", state)
            state = self.broadcast(detached(state))
            self.at = Boundary(state, counts=self.ctx.meter.counts.as_dict())
        trial = self.attempts - len(self.resumed)
        at = self.boundary
        self.options.listener(Started(self.cell, at.step, at.curve, trial))

    def context(self) -> Context:
        """What the method is given of the problem, the engine chosen. Raises SettingError where a
        graph is asked for and cannot be captured."""
        options = self.options
        spread = self.problem.episodes_per_step > 1
        cuda = options.device.type == "cuda"
        engine: Literal["loop", "vmap"] = "vmap" if options.engine == "vmap" else "loop"
        if options.engine == "graph":
            self.check_capturable()
            engine = "vmap"
        elif not self.method.batched or self.solver.by_examples:
            engine = "loop"
        elif options.engine == "auto":
            pays = cuda or self.problem.batched_on_cpu
            engine = "vmap" if pays and spread else "loop"
        return Context(
            self.problem,
            self.solver,
            self.seeds,
            self.task.offers,
            budget=self.budget,
            device=options.device,
            engine=engine,
            workers=self.group.agree(options.workers if spread and not cuda else 1),
            adapted_at_once=self.adapted_at_once(),
            group=self.group,
            graphs=Graphs(cuda_graph) if options.engine == "graph" else None,
        )

    def adapted_at_once(self) -> int:
        """How many episodes an evaluation adapts by one vmap, where the method can: that it trains
        in another way, or on other episodes, does not matter."""
        together: int = self.problem.episodes_per_step
        at_once: int | None = self.problem.adapted_at_once
        if self.options.engine == "loop":
            return 1
        if self.options.engine != "auto" or self.options.device.type == "cuda":
            return together
        if at_once is not None:
            return at_once
        return together if self.problem.batched_on_cpu else 1

    def check_capturable(self) -> None:
        """Raise SettingError, naming what is in the way of a captured graph."""
        name = self.cell.method
        for fine, why in (
            (self.options.device.type == "cuda", f"needs a CUDA device, not {self.options.device}"),
            (self.group.world == 1, "needs one process, and no further ranks"),
            (self.problem.episodes_per_step > 1, "needs several episodes an outer step"),
            (self.method.batched and not self.solver.by_examples, f"needs {name} over vmap"),
            (self.method.capturable, f"needs a capturable method, which {name} is not here"),
            (self.problem.capturable, f"needs a capturable task, which {self.cell.task} is not"),
        ):
            if not fine:
                raise SettingError(f'engine "graph" {why}; "vmap" is the same without a graph')

    @property
    def engine(self) -> str:
        """How episodes are worked through: "loop", "vmap", or "graph"."""
        return self.ctx.engine if self.ctx.graphs is None else "graph"

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

    def warm_up(self) -> None:
        """Take from the training clock what a process does once, where steps are to come."""
        if self.group.world > 1 or self.spent(self.boundary) >= 1:
            return
        self.warm_up_seconds, init = warm_up(self.ctx, self.method)
        if init is not None and not self.resumed:
            self.training.seconds = init

    def train(self) -> None:
        """Outer steps until a limit of the budget is reached. Raises Unpriced, naming method and
        task, where the budget cannot tell what they cost."""
        try:
            self._train()
        except Unpriced as why:
            raise Unpriced(why.count, f"{self.cell.method} on {self.cell.task}") from None

    def _train(self) -> None:
        self.warm_up()
        while True:
            at = self.boundary
            spent = self.spent(at)
            done = spent >= 1 or at.idle >= IDLE_STEPS or CUT_STEP in self.ctx.notes
            seen = at.curve["step"][-1] if at.curve else None
            cut = CUT_LOOK in self.ctx.notes
            if seen != at.step and not cut and (done or self.is_due(at)):
                self.validate()
            if done or CUT_LOOK in self.ctx.notes:
                break
            self.check()
            self.report_progress("training", spent)
            self.step()
            self.maybe_checkpoint()
        if at.idle >= IDLE_STEPS:
            self.ctx.notes["ended"] = (
                f"{IDLE_STEPS} steps without a cost that the budget limits: it can never be spent"
            )

    def step(self) -> None:
        """One outer step, guarded; one that takes more than the budget has left is as if it had not
        begun, and the last. Raises Diverged."""
        at = self.boundary
        determinism.seed_globals(self.seeds.method + 1 + at.step, self.options.device)
        given = Untouched(at.state)
        try:
            with self.training, self.limited(looks.last(at.curve)):
                new, log = check_step(
                    self.cell.method, self.method.step(self.ctx, at.state), at.state
                )
        except BudgetSpent:
            self.ctx.notes.clear()
            self.ctx.notes.update(copy.deepcopy(self._noted) | {CUT_STEP: at.step + 1})
            self.ctx.meter.counts = Counts(**at.counts)
            self.at = at
            return
        given.check(f"by outer step {at.step}")
        moved, log = self.broadcast((None if new is at.state else detached(new), log))
        state = at.state if moved is None else moved
        check_numbers(at.step, log, state.reported)
        logs = dict(at.logs)
        for name, value in log.items():
            if math.isfinite(value):
                total, n = logs.get(name, (0.0, 0))
                logs[name] = [total + value, n + 1]
        counts = self.ctx.meter.counts.as_dict()
        self.ctx.step = at.step + 1
        after = replace(at, state=state, step=at.step + 1, counts=counts, logs=logs)
        idle = at.idle + 1 if self.spent(after) <= self.spent(at) else 0
        self.at = replace(after, idle=idle)

    def validate(self) -> None:
        """A row of the learning curve: evaluate on "valid", and on "selection" where the budget
        chooses the state by that; keep the best state. An evaluation that is charged and takes more
        than the budget has left is as if it had not begun, and ends the run."""
        at = self.boundary
        self.check_kept()
        charged = self.budget.charge_looks is True
        # One that is charged is taken anew, since a resumed run has no other to take it from.
        if charged or self._validated is None or self._validated[0] is not at.state:
            splits = ["valid"] + ["selection"] * (self.budget.select == "best_selection")
            paid: AbstractContextManager[None] = self.limited() if charged else nullcontext()
            try:
                with paid:
                    found = {split: self.evaluate(self.method, at.state, split) for split in splits}
            except BudgetSpent as why:
                self.unaffordable(at, why)
                return
            self._validated = at.state, found
            self._kept["validated"] = Untouched(at.state, bits=True)
            at = replace(at, counts=self.ctx.meter.counts.as_dict()) if charged else at
        found = self._validated[1]
        metrics = found["valid"]
        if self.task.metric not in metrics:
            raise UnknownName(f"metric of task {self.cell.task} called", self.task.metric, metrics)
        row = learning_curve.row(at.step, at.logs, found, at.counts)
        row["cost/seconds"] = self.training.seconds
        if charged:
            spent, before = (self.budget.cost_of(x.counts) for x in (at, self.boundary))
            row[looks.COST] = looks.costs(at.curve)[-1] + spent - before
        row |= learning_curve.lam_columns(at.state.reported, self.problem)
        new = replace(at, curve=learning_curve.appended(at.curve, row), logs={})
        first = self.budget.select == "last" or at.best is None
        chosen_by = found.get("selection", {})
        if first or self.better(chosen_by or metrics, at.selection or at.valid):
            new = replace(new, best=at.state, best_step=at.step, valid=metrics, selection=chosen_by)
            self._kept["best"] = self._kept["validated"]
        self.at = new
        self.options.listener(Measured(self.cell, {n: c[-1] for n, c in new.curve.items()}))
        self.maybe_checkpoint()

    def unaffordable(self, at: Boundary, why: BudgetSpent) -> None:
        """End the run before an evaluation that it cannot pay. Raises SettingError for the first
        one: then no state can be tested."""
        self.ctx.meter.counts = Counts(**at.counts)
        if at.best is None:
            raise SettingError(
                f"budget: the first evaluation alone takes {why}: raise the limit, lower "
                "valid_episodes, or leave charge_looks out"
            )
        self.ctx.notes[CUT_LOOK] = at.step
        self.at = at

    def check_kept(self) -> None:
        """Raise ChangedInPlace where the state last validated, or the best one, was written to."""
        for held in self._kept.values():
            held.check("after it was validated")

    def better(self, new: Metrics, old: Metrics) -> bool:
        """Whether the task's metric has improved."""
        a, b = new[self.task.metric].mean, old[self.task.metric].mean
        return a > b if self.task.goal == "max" else a < b

    def final_evaluations(self) -> None:
        """The final evaluations of the selected state: the first look at their splits."""
        best = self.boundary.best
        assert best is not None
        self.check_kept()
        self.ctx.step = self.boundary.best_step
        ways = [("", self.method), *by_steps(self.method, self.budget).items()]
        further = {ending(steps) for steps in self.budget.test_after or ()}
        if anew := Retrained.of(self.budget):
            ways.append((RETRAINED, anew))
        for split in self.problem.evaluations:
            for suffix, method in ways:
                if split + suffix not in self.boundary.metrics:
                    try:
                        found = self.evaluate(method, best, split)
                    except Diverged as error:
                        # At the lam found the readout's step size may be too long, or its steps
                        # too many: that says nothing of the run, whose own theta has been tested.
                        if suffix == RETRAINED:
                            self.ctx.notes["retraining"] = f"on {split!r}: {error}"
                        elif suffix in further:
                            self.ctx.notes[split + suffix] = str(error)
                        else:
                            raise
                        continue
                    metrics = {**self.boundary.metrics, split + suffix: found}
                    for name, value in found.items():
                        if abs(value.mean) >= RUNAWAY:
                            self.ctx.notes["runaway"] = (
                                f"{name} on {split + suffix!r} is {value.mean:.3g}: finite, "
                                "but the inner training has run away"
                            )
                    self.at = replace(self.boundary, metrics=metrics)
                    self.maybe_checkpoint()
        if self.budget.measure_memory and self.group.rank == 0:
            with self.evaluating:
                peak = peak_bytes(self.ctx, self.method, self.threads, again=bool(self.resumed))
            self._footprint = {"peak_tensor_bytes": peak}

    def evaluate(self, method: Any, state: State, split: str) -> Metrics:
        """On as many episodes as the budget says. Raises Diverged."""
        valid = split in ("valid", "selection")
        episodes = self.budget.valid_episodes if valid else self.budget.test_episodes

        def check() -> None:
            self.check()
            self.report_progress("validation" if valid else split, self.spent(self.boundary))

        determinism.seed_globals(self.seeds.evaluation, self.options.device)
        if method is self.method:
            self.at_once = at_once(self.ctx, method, state, split)
        given = Untouched(state)
        charged = valid and self.budget.charge_looks is True
        with self.evaluating:
            found = evaluate(self.ctx, method, state, split, episodes, check, charged=charged)
        given.check(f"by its evaluation on {split!r}")
        return found

    def spent(self, at: Boundary) -> float:
        """The largest part of any of the budget's limits that is used up."""
        used = {**at.counts, "outer_steps": at.step, "seconds": self.training.seconds}
        return max(self.budget.spent(used), default=0.0)

    def is_due(self, at: Boundary) -> bool:
        """Whether an evaluation is planned at this step."""
        every = self.budget.eval_every_cost
        if every is None:
            return at.step % self.budget.eval_every == 0
        if not at.curve:
            return True
        then = {name: at.curve[f"cost/{name}"][-1] or 0 for name in COUNT_NAMES}
        now, before = (self.budget.cost_of(counts) // every for counts in (at.counts, then))
        return now > before

    def limited(self, kept_back: float = 0.0) -> AbstractContextManager[None]:
        """Inside, nothing that is counted may go beyond its limit in the budget, nor all of it
        together beyond the budget's cost less what is ``kept_back``."""
        limits = {name: getattr(self.budget, name) for name in COUNT_NAMES}
        limits = {name: most for name, most in limits.items() if most is not None}
        priced: tuple[Mapping[str, float], float] | None = None
        if self.budget.cost is not None:
            priced = self.budget.prices or {}, self.budget.cost - kept_back
        return self.ctx.meter.limited(limits, priced)

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
        """``at``, which :meth:`prepare` has set."""
        assert self.at is not None
        return self.at
