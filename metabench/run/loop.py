"""The harness's outer loop: budget, learning curve, guards, checkpoints, final evaluations."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from metabench.contract.method import Context, State
from metabench.contract.problem import Params
from metabench.contract.process_group import Ranks
from metabench.contract.seeds import Seeds
from metabench.core.cell import Budget, Cell
from metabench.core.costs import COUNT_NAMES, Counts, Meter
from metabench.core.errors import (
    Diverged,
    Held,
    SettingError,
    Stopped,
    StoreError,
    TimedOut,
    UnknownName,
)
from metabench.core.limits import RUNAWAY
from metabench.hypergradients.tensor_memory import Footprint
from metabench.run import checkpoint, determinism, learning_curve
from metabench.run.checkpoint import Boundary
from metabench.run.evaluation import Metrics, Stopwatch, evaluate
from metabench.run.events import Listener, Progress, SetAside, Started
from metabench.store.lease import Claim
from metabench.store.store import CHECKPOINT, BadFile, Store

Engine = Literal["auto", "loop", "vmap"]
IDLE_STEPS = 1000
"""Steps without any cost that the budget limits, after which a run is ended."""
TELL_SECONDS = 0.2


@dataclass(frozen=True)
class Options:
    """How a cell is run: nothing here changes a result on the same kind of device."""

    device: torch.device
    listener: Listener
    checkpoint_seconds: float
    time_limit: float | None
    workers: int
    engine: Engine
    stop: Callable[[], bool]


class Loop:
    """One attempt at a cell. :meth:`prepare`, :meth:`train`, :meth:`judge` in this order; ``at``
    always is the last step boundary, from which :meth:`save` makes a checkpoint.

    With several ``ranks`` each of them has one, and goes through the same steps; the store, the
    claim, the listener and the clock that counts are rank 0's."""

    def __init__(self, cell: Cell, parts: tuple[Any, Any, Any, Budget], options: Options) -> None:
        self.cell, self.options = cell, options
        self.task, self.method, self.solver, self.budget = parts
        self.seeds = Seeds.of(cell.seed)
        self.store: Store | None = None
        self.claim: Claim | None = None
        self.ranks = Ranks()
        self.hosts: list[str] = []
        self.attempts = 1
        self.at: Boundary | None = None
        self.resumed: list[dict[str, Any]] = []
        self.training, self.evaluating = Stopwatch(options.device), Stopwatch(options.device)
        self.memory = determinism.PeakMemory(options.device)
        self._peak_before: dict[str, float] = {}
        self._saved = self._told = self._begun = time.monotonic()
        self._judged: tuple[State, Metrics] | None = None
        self._footprint: dict[str, float] = {}

    def prepare(self) -> None:
        """Build the problem; go on from a checkpoint, or start."""
        options, device = self.options, self.options.device
        ranks = self.ranks
        self.problem = self.task.build(self.seeds, device)
        spread = self.problem.episodes_per_step > 1
        self.threads = determinism.intra_op_threads(spread)
        torch.set_num_threads(self.threads)
        cuda = device.type == "cuda"
        engine = options.engine
        if not self.method.batched:
            engine = "loop"
        elif engine == "auto":
            engine = "vmap" if cuda and spread else "loop"
        self.ctx = Context(
            self.problem,
            self.solver,
            self.seeds,
            self.task.offers,
            budget=self.budget,
            device=device,
            engine=engine,
            workers=ranks.agree(options.workers if spread and not cuda else 1),
            ranks=ranks,
        )
        if self.method.reconstruction:
            self.ctx.notes["reconstruction"] = self.method.reconstruction
        self.made_with = {
            **determinism.versions(),
            "contract": self.cell.contract,
            "key": self.cell.key,
            "device": str(device),
            "engine": engine,
            "threads": self.threads,
        }
        if engine == "vmap" and ranks.world > 1:  # other batches may have other last bits
            self.made_with["ranks"] = ranks.world
        self.compare()
        if not self.resume():
            determinism.seed_globals(self.seeds.method, device)
            with self.training:
                state = self.method.init(self.ctx)
            state = self.told(_detached(state))
            self.at = Boundary(state, counts=self.ctx.meter.counts.as_dict())
        options.listener(Started(self.cell, self.boundary.step))

    def compare(self) -> None:
        """Raise SettingError where ranks differ in what changes results."""
        if self.ranks.world == 1:
            return
        found = self.ranks.exchange((platform.node(), self.made_with))
        self.hosts = [host for host, _ in found]
        for rank, (host, other) in enumerate(found):
            for name, value in found[0][1].items():
                if other.get(name) != value:
                    raise SettingError(
                        f"rank {rank} on {host} has {name} {other.get(name)}, rank 0 has {value}"
                    )

    def told(self, value: Any) -> Any:
        """A value and the training clock as rank 0 has them."""
        value, self.training.seconds = self.ranks.agree((value, self.training.seconds))
        return value

    def train(self) -> None:
        """Outer steps until a limit of the budget is reached."""
        while True:
            at = self.boundary
            spent = self.spent(at)
            done = spent >= 1 or at.idle >= IDLE_STEPS
            seen = at.curve["step"][-1] if at.curve else None
            if seen != at.step and (done or at.step % self.budget.eval_every == 0):
                self.look()
            if done:
                break
            self.check()
            self.tell("training", spent)
            self.step()
            self.offer()
        if spent < 1:
            self.ctx.notes["ended"] = (
                f"{IDLE_STEPS} steps without a cost that the budget limits: it can never be spent"
            )

    def step(self) -> None:
        """One outer step, guarded. Raises Diverged."""
        at = self.boundary
        determinism.seed_globals(self.seeds.method + 1 + at.step, self.options.device)
        with self.training:
            new, log = self.method.step(self.ctx, at.state)
        moved, log = self.told((None if new is at.state else _detached(new), log))
        state = at.state if moved is None else moved
        _guard(at.step, log, state.reported)
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

    def look(self) -> None:
        """A row of the learning curve: evaluate on the validation split, keep the best state."""
        at = self.boundary
        if self._judged is None or self._judged[0] is not at.state:
            self._judged = at.state, self.evaluate(self.method, at.state, "valid")
        metrics = self._judged[1]
        if self.task.metric not in metrics:
            raise UnknownName(f"metric of task {self.cell.task} called", self.task.metric, metrics)
        row: dict[str, float | None] = {"step": at.step}
        row |= {f"train/{name}": total / n for name, (total, n) in at.logs.items()}
        row |= {f"valid/{name}": found.mean for name, found in metrics.items()}
        row |= {f"cost/{name}": n for name, n in at.counts.items()}
        row["cost/seconds"] = self.training.seconds
        row |= learning_curve.lam_columns(at.state.reported, self.problem)
        new = replace(at, curve=learning_curve.appended(at.curve, row), logs={})
        if self.budget.select == "last" or at.best is None or self.better(metrics, at.valid):
            new = replace(new, best=at.state, best_step=at.step, valid=metrics)
        self.at = new
        self.offer()

    def better(self, new: Metrics, old: Metrics) -> bool:
        """Whether the task's metric has improved."""
        a, b = new[self.task.metric].mean, old[self.task.metric].mean
        return a > b if self.task.goal == "max" else a < b

    def judge(self) -> None:
        """The final evaluations of the selected state: the first look at their splits."""
        best = self.boundary.best
        assert best is not None
        self.ctx.step = self.boundary.best_step
        ways = [("", self.method)]
        test, train = self.method.test_steps, self.method.inner_steps
        if test is not None and test != train:
            ways.append((f"@{train}_steps", replace(self.method, test_steps=None)))
        for split in self.problem.evaluations:
            for suffix, method in ways:
                if split + suffix not in self.boundary.metrics:
                    found = self.evaluate(method, best, split)
                    metrics = {**self.boundary.metrics, split + suffix: found}
                    for name, value in found.items():
                        if abs(value.mean) >= RUNAWAY:
                            self.ctx.notes["runaway"] = (
                                f"{name} on {split + suffix!r} is {value.mean:.3g}: finite, "
                                "but the inner training has run away"
                            )
                    self.at = replace(self.boundary, metrics=metrics)
                    self.offer()
        if self.budget.measure_memory and self.ranks.rank == 0:
            self._footprint = {"peak_tensor_bytes": self.footprint()}

    def footprint(self) -> int:
        """Bytes of tensors that the first outer step holds at most: taken again, one episode after
        another, and forgotten.

        A thread of its own has none of the buffers that threads keep from step to step, so that
        they count whatever ran before; a problem keeps what its first step made, so that after a
        resumption this is made beforehand.
        """
        alone = replace(self.ctx, engine="loop", workers=1, ranks=Ranks())
        ctx = replace(alone, meter=Meter(), notes=dict(self.ctx.notes), step=0)
        determinism.seed_globals(self.seeds.method, self.options.device)
        with self.evaluating:
            state = _detached(self.method.init(ctx))

            def step() -> int:
                determinism.seed_globals(self.seeds.method + 1, self.options.device)
                with Footprint() as held:
                    self.method.step(ctx, state)
                peak: int = held.peak
                return peak

            for _ in range(2 if self.resumed else 1):
                with ThreadPoolExecutor(
                    1, initializer=torch.set_num_threads, initargs=(self.threads,)
                ) as thread:
                    peak = thread.submit(step).result()
        return peak

    def evaluate(self, method: Any, state: State, split: str) -> Metrics:
        """On as many episodes as the budget says. Raises Diverged."""
        valid = split == "valid"
        episodes = self.budget.valid_episodes if valid else self.budget.test_episodes

        def check() -> None:
            self.check()
            self.tell("validation" if valid else split, self.spent(self.boundary))

        determinism.seed_globals(self.seeds.evaluation, self.options.device)
        with self.evaluating:
            return evaluate(self.ctx, method, state, split, episodes, check)

    def spent(self, at: Boundary) -> float:
        """The largest part of any of the budget's limits that is used up."""
        used = {**at.counts, "outer_steps": at.step, "seconds": self.training.seconds}
        parts = [0.0]
        for name in Budget.LIMITS:
            limit = getattr(self.budget, name)
            if limit is not None:
                parts.append(used[name] / limit if limit else 1.0)
        return max(parts)

    def check(self) -> None:
        """Raise Stopped, TimedOut or Held where the run must not go on; rank 0 decides."""
        self.ranks.together(self._check)

    def _check(self) -> None:
        limit = self.options.time_limit
        if self.options.stop():
            raise Stopped(str(self.cell))
        if limit is not None and time.monotonic() - self._begun > limit:
            raise TimedOut(f"not finished within {limit:g} seconds; a rerun goes on from here")
        if self.claim is not None and self.claim.lost:
            raise Held(f"{self.cell}: another process has taken the cell over")

    def tell(self, phase: str, spent: float) -> None:
        """Progress, a few times a second at most."""
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told, at = now, self.boundary
            latest = {name: total / n for name, (total, n) in at.logs.items()}
            self.options.listener(
                Progress(self.cell, at.step, self.budget.outer_steps, spent, phase, latest)
            )

    def offer(self) -> None:
        """A checkpoint, if it is time for one."""
        if time.monotonic() - self._saved >= self.options.checkpoint_seconds:
            self.save()

    def save(self, *, quietly: bool = False) -> None:
        """A checkpoint of the last step boundary. Raises StoreError unless ``quietly``."""
        if self.at is None or self.store is None or self.claim is None or not self.claim.held():
            return
        content = {
            "boundary": self.at.pack(),
            "notes": self.ctx.notes,
            "seconds": self.training.seconds,
            "evaluation_seconds": self.evaluating.seconds,
            "peak": self.peak(),
            "attempts": self.attempts,
            "resumed": self.resumed,
        }
        try:
            checkpoint.save(self.path(), content, self.made_with)
        except StoreError:
            if not quietly:
                raise
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the checkpoint, where there is one that can be trusted."""
        data = self.ranks.agree(self._checkpoint())
        if data is None:
            return False
        at = self.at = Boundary.unpack(data["boundary"])
        self.ctx.step, self.ctx.meter = at.step, Meter(Counts(**at.counts))
        self.ctx.notes.update(data["notes"])
        self.training.seconds = data["seconds"]
        self.evaluating.seconds = data["evaluation_seconds"]
        self._peak_before, self.resumed = data["peak"], data["resumed"]
        self.attempts = max(self.attempts, data["attempts"] + 1)
        commit = determinism.facts()["git"].get("commit", "")
        self.resumed.append({"step": at.step, "at": stamp(), "commit": commit})
        return True

    def _checkpoint(self) -> dict[str, Any] | None:
        """What the store has; what cannot be trusted is set aside."""
        if self.store is None:
            return None
        try:
            return checkpoint.load(self.path(), self.made_with)
        except checkpoint.Damaged as damage:
            bad = self.store.set_aside(BadFile(self.path(), str(damage)))
            self.options.listener(SetAside(bad))
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

    def environment(self) -> dict[str, Any]:
        """What it ran on."""
        out: dict[str, Any] = {
            **determinism.facts(),
            "device": str(self.options.device),
            "packages": determinism.packages(self.task, self.method, self.solver),
            "memory_at_start_bytes": self.memory.at_start,
            "resumed": self.resumed,
        }
        if self.at is not None:
            out |= {
                "engine": self.ctx.engine,
                "threads": self.threads,
                "workers": self.ctx.workers,
                "ranks": self.ranks.world,
            }
        if self.hosts:
            out["rank_hosts"] = self.hosts
            if self.problem.episodes_per_step == 1:
                out["ranks_note"] = (
                    "a step has one episode, which one rank works on: the others only helped with "
                    "evaluation"
                )
        return out

    def path(self) -> Path:
        """Of the checkpoint."""
        assert self.store is not None
        return self.store.folder(self.cell.key) / CHECKPOINT

    @property
    def boundary(self) -> Boundary:
        """``at``, which :meth:`prepare` has set."""
        assert self.at is not None
        return self.at


def stamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _guard(step: int, log: dict[str, float], lam: Params) -> None:
    """Raise Diverged where the outer loss or lam is no number."""
    loss = log.get("outer_loss")
    if loss is not None and not math.isfinite(loss):
        raise Diverged(f"the outer loss at outer step {step} is {loss}")
    if lam and not bool(torch.stack([torch.isfinite(v).all() for v in lam.values()]).all()):
        bad = [name for name, v in lam.items() if not bool(torch.isfinite(v).all())]
        raise Diverged(f"lam is not finite after outer step {step} (in {', '.join(bad)})")


def _detached(state: State) -> State:
    """The state without a graph: the same whether it comes from a step or from a checkpoint."""
    return State(
        *torch.utils._pytree.tree_map(
            lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tuple(vars(state).values())
        )
    )
