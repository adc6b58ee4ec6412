"""ASHA: successive halving where nothing waits; whoever is in the best third so far goes on.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar: A System for Massively
Parallel Hyperparameter Tuning, MLSys 2020, arXiv 1810.05934, with one worker. A step is one job:

    from the second-longest rung down: of its k trainings take the best k // eta; the best of them
    that has not gone on yet goes on to the next rung. If there is none, a new point starts.

What is left behind now may go on later, so each paused training is kept. (Optuna's pruner is the
form that stops for good.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from metabench.contract.method import Context, State
from metabench.core.registry import method
from metabench.hypergradients.gradient_free import losses_log
from metabench.hypergradients.halving import Rungs, Trial, lengths


@method("asha")
@dataclass(frozen=True)
class ASHA(Rungs):
    """ASHA (Li 2020): the best so far of each rung are trained longer, one job a step."""

    rungs: Annotated[int, Field(ge=1)] = 4
    """Lengths of training, the longest of ``inner_steps``."""

    def __post_init__(self) -> None:
        lengths(self.inner_steps, self.eta, self.rungs)

    def init(self, ctx: Context) -> State:
        """No trial."""
        state = super().init(ctx)
        return replace(state, memory={**state.memory, "trials": []})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One job."""
        trials: list[Trial] = state.memory["trials"]
        at = promoted([trial["losses"] for trial in trials], self.eta, self.rungs)
        if at is None:
            at = len(trials)
            (new,) = self.drawn(ctx, at, 1)
            trials = [*trials, {**new, "losses": []}]
        rung = len(trials[at]["losses"])
        steps = lengths(self.inner_steps, self.eta, self.rungs)[rung]
        # All trials meet in the same rungs: they share the episodes of round 0.
        found, trial = self.trained(ctx, trials[at], 0, steps)
        trial["losses"] = [*trial["losses"], found.loss]
        if rung + 1 == self.rungs:
            trial["paused"] = None
        trials = [*trials[:at], trial, *trials[at + 1 :]]
        state = replace(state, memory={**state.memory, "trials": trials})
        log = {**losses_log([found]), "steps": float(steps)}
        return self.answered(ctx, state, [found], steps), log


def promoted(losses: list[list[float]], eta: int, rungs: int) -> int | None:
    """Which trial goes on, by the losses of each at its rungs so far; None: a new one starts."""
    for rung in reversed(range(rungs - 1)):
        there = [i for i, one in enumerate(losses) if len(one) > rung]
        best = sorted(there, key=lambda i: losses[i][rung])[: len(there) // eta]
        for i in best:
            if len(losses[i]) == rung + 1 and losses[i][rung] < math.inf:
                return i
    return None
