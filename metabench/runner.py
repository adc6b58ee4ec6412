"""One cell, run: a pure function of the cell apart from clocks, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from metabench import checkpoint, environment, trajectory
from metabench.cell import Budget, Cell, check_applicable, instances
from metabench.claim import Claim
from metabench.errors import Diverged, Held, Stopped, StoreError, TimedOut, UnknownName
from metabench.evaluation import Metrics, Stopwatch, evaluate
from metabench.events import Finished, Interrupted, Listener, Progress, SetAside, Started, ignore
from metabench.meter import COUNT_NAMES, Counts, Meter
from metabench.method import Context, State
from metabench.problem import Params, Seeds
from metabench.record import Curve, Estimate, Record, Status
from metabench.store import CHECKPOINT, BadFile, Store

Engine = Literal["auto", "loop", "vmap"]
IDLE_STEPS = 1000
"""Steps without any cost that the budget limits, after which a run is ended."""


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
) -> Record:
    """Run a cell to its record, and keep it where there is a store.

    With a store the cell is claimed first; a finished record is handed back as it is, and a
    checkpoint is gone on from. Checkpoints are at least ``checkpoint_seconds`` apart (0: every
    outer step). ``time_limit`` in seconds of this call. ``workers``: threads for the episodes of a
    step (default: the usable cores); they change no result. ``engine`` "auto": batched episodes on
    a GPU, one after another on a CPU. ``stop`` is asked between steps.

    What goes wrong while running becomes a record (diverged, timeout, failed). Raises
    NotApplicable, UnknownName, SettingError (nothing is run), Held (another live process has the
    cell), Stopped (``stop`` said so; a checkpoint is kept, as for KeyboardInterrupt).
    """
    task, method, solver, budget = instances(cell)
    check_applicable(task, method)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = _Run(
        cell, task, method, solver, budget, chosen, listener or ignore, checkpoint_seconds,
        time_limit, workers or environment.cores(), engine, stop or (lambda: False),
    )
    if store is None:
        return run.run()[0]
    claim = store.claim(cell.key)
    if claim is None:
        raise Held(f"{cell} is being run by {store.holder(cell.key) or 'another process'}")
    with claim:
        for bad in store.mend_claimed(claim):
            run.listener(SetAside(bad))
        known = store.get(cell.key)
        if known is not None and known.status == "done":
            run.listener(Finished(known, reused=True))
            return known
        run.store, run.claim = store, claim
        run.attempts = known.attempts + 1 if known is not None else 1
        return _keep(store, claim, run)


def _keep(store: Store, claim: Claim, run: _Run) -> Record:
    """Run, and write the record; where the disk refuses, the cell has failed and says so if it
    can."""
    record, curve, lam = run.run()
    keep_checkpoint = run.can_go_on
    unsaved = ""
    try:
        record = store.write(
            record, curve, trajectory.arrays(lam) if lam is not None else None, claim=claim
        )
    except StoreError as error:
        keep_checkpoint = True
        if record.status == "done":
            record = dataclasses.replace(
                record, status="failed", reason=str(error), metrics={}, selected_step=None, lam={}
            )
        try:
            record = store.write(record, claim=claim)
        except StoreError as again:
            unsaved = str(again)
    if not keep_checkpoint:
        (store.folder(record.key) / CHECKPOINT).unlink(missing_ok=True)
    run.listener(Finished(record, unsaved=unsaved))
    return record


@dataclass
class _At:
    """All that a run has become up to a step boundary: what a checkpoint holds."""

    state: State
    step: int = 0
    counts: dict[str, int] = field(default_factory=lambda: Counts().as_dict())
    logs: dict[str, list[float]] = field(default_factory=dict)
    """Name to sum and number of what the method logged since the last row."""
    curve: Curve = field(default_factory=dict)
    best: State | None = None
    best_step: int = 0
    valid: Metrics = field(default_factory=dict)
    """Of ``best``."""
    idle: int = 0
    metrics: dict[str, Metrics] = field(default_factory=dict)
    """Final evaluations done so far."""


class _Run:
    def __init__(
        self, cell: Cell, task: Any, method: Any, solver: Any, budget: Budget,
        device: torch.device, listener: Listener, every: float, limit: float | None,
        workers: int, engine: Engine, stop: Callable[[], bool],
    ) -> None:
        self.cell, self.task, self.method, self.solver = cell, task, method, solver
        self.budget, self.device, self.listener = budget, device, listener
        self.every, self.limit, self.workers, self.engine = every, limit, workers, engine
        self.stop = stop
        self.seeds = Seeds.of(cell.seed)
        self.store: Store | None = None
        self.claim: Claim | None = None
        self.attempts = 1
        self.can_go_on = False  # whether the checkpoint is worth keeping beside the record
        self.at: _At | None = None
        self.resumed: list[dict[str, Any]] = []
        self.peak: dict[str, float] = {}
        self.training, self.evaluating = Stopwatch(device), Stopwatch(device)
        self._saved = self._told = self._begun = time.monotonic()
        self._judged: tuple[State, Metrics] | None = None

    def run(self) -> tuple[Record, Curve, Params | None]:
        """The record, its curve, and the tested lam of a run that is done."""
        started = _stamp()
        status: Status
        environment.facts()  # of the code that runs now, not of edits made meanwhile
        self.memory = environment.PeakMemory(self.device)
        with environment.fixed(self.device):
            try:
                self.prepare()
                self.train()
                self.judge()
                status, reason, trace = "done", "", ""
            except (Stopped, KeyboardInterrupt, SystemExit):
                self.interrupted()
                raise
            except Held:
                raise
            except Diverged as error:
                status, reason, trace = "diverged", str(error), ""
            except TimedOut as error:
                status, reason, trace = "timeout", str(error), ""
                self.can_go_on = True
                self.save(quietly=True)
            except Exception as error:
                self.can_go_on = isinstance(error, StoreError)
                status, trace = "failed", traceback.format_exc()
                reason = f"{type(error).__name__}: {error}"
        at = self.at
        done = status == "done" and at is not None and at.best is not None
        lam = at.best.lam if done and at is not None and at.best is not None else None
        record = Record(
            key=self.cell.key, cell=self.cell, status=status, reason=reason, traceback=trace,
            seeds=asdict(self.seeds),
            metrics=at.metrics if done and at is not None else {},
            selected_step=at.best_step if done and at is not None else None,
            steps=at.step if at is not None else 0,
            cost=self.cost(),
            lam=trajectory.describe(lam) if lam is not None else {},
            notes=dict(self.ctx.notes) if at is not None else {},
            environment=self.environment(),
            started=started, ended=_stamp(), attempts=self.attempts,
        )
        if self.store is None:
            self.listener(Finished(record))
        return record, at.curve if at is not None else {}, lam

    def prepare(self) -> None:
        """Build the problem; go on from a checkpoint, or start."""
        self.problem = self.task.build(self.seeds, self.device)
        spread = self.problem.episodes_per_step > 1
        self.threads = environment.intra_op_threads(spread)
        torch.set_num_threads(self.threads)
        cuda = self.device.type == "cuda"
        engine = ("vmap" if cuda and spread else "loop") if self.engine == "auto" else self.engine
        self.ctx = Context(
            self.problem, self.solver, self.seeds, self.task.offers, budget=self.budget,
            device=self.device, engine=engine,
            workers=self.workers if spread and not cuda else 1,
        )
        self.made_with = {
            **environment.versions(), "contract": self.cell.contract, "key": self.cell.key,
            "device": str(self.device), "engine": engine, "threads": self.threads,
        }
        if self.resume():
            return
        environment.seed_globals(self.seeds.method)
        with self.training:
            state = self.method.init(self.ctx)
        self.at = _At(_detached(state), counts=self.ctx.meter.counts.as_dict())
        self.listener(Started(self.cell))

    def train(self) -> None:
        """Outer steps until a limit of the budget is reached."""
        at = self._at()
        while True:
            spent = self.spent()
            done = spent >= 1 or at.idle >= IDLE_STEPS
            seen = at.curve["step"][-1] if at.curve else None
            if seen != at.step and (done or at.step % self.budget.eval_every == 0):
                self.look()
            if done:
                break
            self.check()
            self.tell("training", spent)
            environment.seed_globals(self.seeds.method + 1 + at.step)
            with self.training:
                new, log = self.method.step(self.ctx, at.state)
            state = at.state if new is at.state else _detached(new)
            _guard(at.step, log, state.lam)
            self.ctx.step += 1
            at.state, at.step, at.counts = state, self.ctx.step, self.ctx.meter.counts.as_dict()
            for name, value in log.items():
                if math.isfinite(value):
                    total, n = at.logs.get(name, (0.0, 0))
                    at.logs[name] = [total + value, n + 1]
            at.idle = 0 if self.spent() > spent else at.idle + 1
            self.offer()
        if spent < 1:
            self.ctx.notes["ended"] = (
                f"{IDLE_STEPS} steps without a cost that the budget limits: it can never be spent"
            )

    def look(self) -> None:
        """A row of the learning curve: evaluate on the validation split, keep the best state."""
        at = self._at()
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
        row |= trajectory.lam_columns(at.state.lam, self.problem)
        trajectory.append(at.curve, row)
        at.logs = {}
        if self.budget.select == "last" or at.best is None or self.better(metrics, at.valid):
            at.best, at.best_step, at.valid = at.state, at.step, metrics
        self.offer()

    def better(self, new: Metrics, old: Metrics) -> bool:
        """Whether the task's metric has improved."""
        a, b = new[self.task.metric].mean, old[self.task.metric].mean
        return a > b if self.task.goal == "max" else a < b

    def judge(self) -> None:
        """The final evaluations of the selected state: the first look at their splits."""
        at = self._at()
        assert at.best is not None
        at.metrics.setdefault("valid", at.valid)
        self.ctx.step = at.best_step
        ways = [("", self.method)]
        test, train = (getattr(self.method, f"{when}_steps", None) for when in ("test", "inner"))
        if test is not None and test != train:
            ways.append((f"@{train}_steps", dataclasses.replace(self.method, test_steps=None)))
        for split in self.problem.evaluations:
            for suffix, method in ways:
                if split + suffix not in at.metrics:
                    found = self.evaluate(method, at.best, split)
                    at.metrics[split + suffix] = found
                    self.offer()

    def evaluate(self, method: Any, state: State, split: str) -> Metrics:
        """On as many episodes as the budget says."""
        valid = split == "valid"
        episodes = self.budget.valid_episodes if valid else self.budget.test_episodes

        def check() -> None:
            self.check()
            self.tell("training" if valid else split, self.spent())

        environment.seed_globals(self.seeds.evaluation)
        with self.evaluating:
            return evaluate(self.ctx, method, state, split, episodes, check)

    def spent(self) -> float:
        """The largest part of any of the budget's limits that is used up."""
        at = self._at()
        used = {**at.counts, "outer_steps": at.step, "seconds": self.training.seconds}
        parts = [0.0]
        for name in Budget.LIMITS:
            limit = getattr(self.budget, name)
            if limit is not None:
                parts.append(used[name] / limit if limit else 1.0)
        return max(parts)

    def check(self) -> None:
        """Raise Stopped, TimedOut or Held where the run must not go on."""
        if self.stop():
            raise Stopped(str(self.cell))
        if self.limit is not None and time.monotonic() - self._begun > self.limit:
            raise TimedOut(f"not finished within {self.limit:g} seconds; a rerun goes on from here")
        if self.claim is not None and self.claim.lost:
            raise Held(f"{self.cell}: another process has taken the cell over")

    def tell(self, phase: str, spent: float) -> None:
        """Progress, a few times a second at most."""
        now = time.monotonic()
        if now - self._told >= 0.2:
            self._told = now
            at = self._at()
            latest = {name: total / n for name, (total, n) in at.logs.items()}
            self.listener(
                Progress(self.cell, at.step, self.budget.outer_steps, spent, phase, latest)
            )

    def offer(self) -> None:
        """A checkpoint, if it is time for one."""
        if time.monotonic() - self._saved >= self.every:
            self.save()

    def save(self, quietly: bool = False) -> None:
        """A checkpoint of the last step boundary. Raises StoreError unless ``quietly``."""
        at = self.at
        if at is None or self.store is None or self.claim is None or not self.claim.held():
            return
        content = {
            **vars(at),
            "state": checkpoint.pack(at.state),
            "best": checkpoint.pack(at.best) if at.best is not None else None,
            "valid": _plain(at.valid),
            "metrics": {name: _plain(found) for name, found in at.metrics.items()},
            "notes": self.ctx.notes, "seconds": self.training.seconds,
            "evaluation_seconds": self.evaluating.seconds, "peak": self.memory.read(),
            "attempts": self.attempts, "resumed": self.resumed,
        }
        try:
            checkpoint.save(self.path(), content, self.made_with)
        except StoreError:
            if not quietly:
                raise
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the checkpoint, where there is one that can be trusted."""
        if self.store is None:
            return False
        try:
            data = checkpoint.load(self.path(), self.made_with)
        except checkpoint.Damaged as damage:
            self.listener(SetAside(self.store.set_aside(BadFile(self.path(), str(damage)))))
            return False
        if data is None:
            return False
        extra = {
            name: data.pop(name)
            for name in ("notes", "seconds", "evaluation_seconds", "peak", "attempts", "resumed")
        }
        at = self.at = _At(**data)
        at.state = checkpoint.unpack(data["state"])
        at.best = checkpoint.unpack(data["best"]) if data["best"] is not None else None
        at.valid = _metrics(data["valid"])
        at.metrics = {name: _metrics(found) for name, found in data["metrics"].items()}
        self.ctx.step, self.ctx.meter = at.step, Meter(Counts(**at.counts))
        self.ctx.notes.update(extra["notes"])
        self.training.seconds = extra["seconds"]
        self.evaluating.seconds = extra["evaluation_seconds"]
        self.peak, self.resumed = extra["peak"], extra["resumed"]
        self.attempts = max(self.attempts, extra["attempts"] + 1)
        commit = environment.facts()["git"].get("commit", "")
        self.resumed.append({"step": at.step, "at": _stamp(), "commit": commit})
        self.listener(Started(self.cell, at.step))
        return True

    def interrupted(self) -> None:
        """Keep what there is; the older checkpoint stays where the disk refuses a new one."""
        self.save(quietly=True)
        if self.at is not None:
            self.listener(Interrupted(self.cell, self.at.step))

    def cost(self) -> dict[str, float]:
        """Counts up to the last step boundary, clocks, memory."""
        counts = self.at.counts if self.at is not None else dict.fromkeys(COUNT_NAMES, 0)
        now = self.memory.read()
        peak = {name: max(value, self.peak.get(name, 0)) for name, value in now.items()}
        return {
            **counts, "seconds": self.training.seconds,
            "evaluation_seconds": self.evaluating.seconds, **peak,
        }

    def environment(self) -> dict[str, Any]:
        """What it ran on."""
        out: dict[str, Any] = {
            **environment.facts(), "device": str(self.device),
            "packages": environment.packages(self.task, self.method, self.solver),
            "memory_at_start_bytes": self.memory.at_start, "resumed": self.resumed,
        }
        if self.at is not None:
            out |= {
                "engine": self.ctx.engine, "threads": self.threads, "workers": self.ctx.workers
            }
        return out

    def path(self) -> Path:
        """Of the checkpoint."""
        assert self.store is not None
        return self.store.folder(self.cell.key) / CHECKPOINT

    def _at(self) -> _At:
        assert self.at is not None
        return self.at


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
    lam, theta, memory = torch.utils._pytree.tree_map(
        lambda x: x.detach() if isinstance(x, torch.Tensor) else x,
        (state.lam, state.theta, state.memory),
    )
    return State(lam, theta, memory)


def _plain(metrics: Metrics) -> dict[str, dict[str, Any]]:
    return {name: asdict(found) for name, found in metrics.items()}


def _metrics(plain: dict[str, dict[str, Any]]) -> Metrics:
    return {name: Estimate(**found) for name, found in plain.items()}


def _stamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
