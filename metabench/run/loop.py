"""The harness's outer loop: steps, evaluations on the way, and the final ones."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from metabench.contract.method import State
from metabench.core.costs import CUT_LOOK, CUT_STEP, Counts
from metabench.core.errors import BudgetSpent, Diverged, SettingError, UnknownName, Unpriced
from metabench.core.limits import RUNAWAY
from metabench.core.readouts import by_steps, ending
from metabench.run import determinism, engines, learning_curve
from metabench.run.attempts.attempt import Attempt
from metabench.run.attempts.checkpoint import Boundary, detached
from metabench.run.attempts.guards import Untouched, check_numbers, check_state, check_step
from metabench.run.costs import budgets, looks
from metabench.run.costs.first_step import peak_bytes
from metabench.run.costs.warm_up import warm_up
from metabench.run.evaluation import Metrics, Retrained, at_once, evaluate
from metabench.run.events import Measured, Started
from metabench.run.selection import Selection
from metabench.store.record import RETRAINED

IDLE_STEPS = 1000
"""Steps in a row that bring no limit of the budget nearer, after which a run is ended."""


class Loop(Attempt):
    """An attempt at a cell: :meth:`prepare`, :meth:`train`, :meth:`final_evaluations`, in this
    order.

    ``training`` times the method's init and its outer steps, with drawing their episodes. Not in it
    are imports, building the problem with its data, evaluations, checkpoints, and the warm-up that
    every attempt begins with (:func:`metabench.run.costs.warm_up.warm_up`; none where several
    processes share a cell, whose first step has it in its time).
    """

    warm_up_seconds: float | None = None
    at_once: int | None = None
    """Episodes that evaluations adapt by one vmap."""

    def prepare(self) -> None:
        """Build the problem; go on from a checkpoint, or start."""
        device = self.options.device
        self.problem = self.task.build(self.seeds, device)
        self.ctx = engines.context(
            self.cell, self.parts, self.problem, self.seeds, self.options, self.group
        )
        self.engine = engines.named(self.ctx)
        self.selection = Selection(self.task, self.budget)
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
            if seen != at.step and not cut and (done or budgets.is_due(self.budget, at)):
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
            kept_back = looks.last(at.curve)
            with self.training, budgets.limited(self.budget, self.ctx.meter, kept_back):
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
        advanced = budgets.advanced(self.budget, at, after)
        self.at = replace(after, idle=0 if advanced else at.idle + 1)

    def validate(self) -> None:
        """A row of the learning curve: evaluate on "valid", and on "selection" where the budget
        chooses the state by that; keep the best state. An evaluation that is charged and takes more
        than the budget has left is as if it had not begun, and ends the run."""
        at = self.boundary
        self.selection.check_kept()
        charged = self.budget.charge_looks is True
        # One that is charged is taken anew, since a resumed run has no other to take it from.
        found = None if charged else self.selection.known(at.state)
        if found is None:
            paid: AbstractContextManager[None] = nullcontext()
            if charged:
                paid = budgets.limited(self.budget, self.ctx.meter)
            try:
                with paid:
                    found = {
                        split: self.evaluate(self.method, at.state, split)
                        for split in self.selection.splits
                    }
            except BudgetSpent as why:
                self.unaffordable(at, why)
                return
            self.selection.keep(at.state, found)
            at = replace(at, counts=self.ctx.meter.counts.as_dict()) if charged else at
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
        new = self.selection.select(new, found)
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

    def final_evaluations(self) -> None:
        """The final evaluations of the selected state: the first look at their splits."""
        best = self.boundary.best
        assert best is not None
        self.selection.check_kept()
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
        return budgets.spent(self.budget, at, self.training.seconds)
