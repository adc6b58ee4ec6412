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

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import Context, State
from metabench.contract.problem import Params
from metabench.core.registry import method
from metabench.hypergradients.search.gradient_free import Paused, kinds, losses_log
from metabench.hypergradients.search.halving import Rungs, lengths


@method("asha")
@dataclass(frozen=True)
class ASHA(Rungs):
    r"""ASHA (Li 2020): the best so far of each rung are trained longer, one job a step.

    Formula:
        x = \operatorname*{arg\,min}_{x \in T_i \setminus R_{i+1}} \ell_i(x), \qquad T_i =
        \text{the best } \lfloor |R_i| / \eta \rfloor \text{ of rung } R_i, \quad i \text{ as high
        as one is left}

    Loop:
        for i in reversed(range(rungs - 1)):  # one job a step
            top = sorted(rung[i], key=loss)[: len(rung[i]) // eta]
            if left := [p for p in top if p not in rung[i + 1]]:
                rung[i + 1].append(train_on(left[0], inner_steps // eta ** (rungs - 2 - i)))
                break
        else:
            rung[0].append(train_on(draw(), inner_steps // eta ** (rungs - 1)))
    """

    rungs: Annotated[int, Field(ge=1)] = 4
    """Lengths of training, the longest of ``inner_steps``."""

    def __post_init__(self) -> None:
        lengths(self.inner_steps, self.eta, self.rungs)

    def init(self, ctx: Context) -> State:
        """No trial."""
        state = super().init(ctx)
        dim = len(kinds(ctx.problem.hypers, ctx.problem.init_outer()))
        points = torch.zeros(0, dim, dtype=torch.float64)
        losses = torch.zeros(0, self.rungs, dtype=torch.float64)
        more = {"points": points, "losses": losses, "paused": []}
        return replace(state, memory={**state.memory, **more})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One job."""
        points, losses = state.memory["points"], state.memory["losses"]
        paused: list[Tensor] = list(state.memory["paused"])
        seen = [[x for x in row if not math.isnan(x)] for row in losses.tolist()]
        at = promoted(seen, self.eta, self.rungs)
        steps = lengths(self.inner_steps, self.eta, self.rungs)
        if at is None:
            at = len(points)
            (trial,) = self.drawn(ctx, at, 1)
            points = torch.cat([points, torch.tensor([trial["point"]], dtype=torch.float64)])
            losses = torch.cat([losses, torch.full((1, self.rungs), math.nan, dtype=torch.float64)])
            seen, paused = [*seen, []], [*paused, torch.zeros(0, dtype=torch.float64)]
        else:
            trial = {"point": points[at].tolist(), "done": 0, "paused": None}
            if self.resume:
                trial["done"] = steps[len(seen[at]) - 1]
                trial["paused"] = unpacked(ctx, paused[at], self.lam(ctx, trial["point"]))
        rung = len(seen[at])
        # All trials meet in the same rungs: they share the episodes of round 0.
        found, _ = self.trained(ctx, trial, 0, steps[rung])
        losses = losses.clone()
        losses[at, rung] = found.loss
        keep = self.resume and rung + 1 < self.rungs
        paused[at] = packed(found.end) if keep else torch.zeros(0, dtype=torch.float64)
        more = {"points": points, "losses": losses, "paused": paused}
        state = replace(state, memory={**state.memory, **more})
        log = {**losses_log([found]), "steps": float(steps[rung])}
        return self.answered(ctx, state, [found], steps[rung]), log


def packed(paused: Paused) -> Tensor:
    """A paused training as one float64 tensor [n]: hundreds of them are kept."""
    return torch.cat([v.reshape(-1).double() for v in autodiff.tensors(paused)])


def unpacked(ctx: Context, flat: Tensor, lam: Params) -> Paused:
    """What :func:`packed` was given, of trainings at ``lam`` on the episodes of round 0."""
    like: Paused = []
    for episode in ctx.training_episodes(0):
        theta = autodiff.detach(ctx.problem.init_inner(lam, episode))
        solver, _ = ctx.inner_rule(lam, 1.0)
        like.append({"theta": theta, "solver": solver.init(theta)})
    each = autodiff.tensors(like)
    parts = flat.split([v.numel() for v in each])
    new = [part.reshape(v.shape).to(v.dtype) for part, v in zip(parts, each, strict=True)]
    whole: Paused = autodiff.with_tensors(like, new)
    return whole


def promoted(losses: list[list[float]], eta: int, rungs: int) -> int | None:
    """Which trial goes on, by the losses of each at its rungs so far; None: a new one starts."""
    for rung in reversed(range(rungs - 1)):
        there = [i for i, one in enumerate(losses) if len(one) > rung]
        best = sorted(there, key=lambda i: losses[i][rung])[: len(there) // eta]
        for i in best:
            if len(losses[i]) == rung + 1 and losses[i][rung] < math.inf:
                return i
    return None
