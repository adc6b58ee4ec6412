"""Random and quasi-random search on lam: one full inner training a try, the best one kept.

Bergstra, Bengio: Random Search for Hyper-Parameter Optimization, JMLR 2012; scrambled Sobol points
(scipy) for the quasi-random form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import qmc

from metabench import grads
from metabench.method import Context, GradientMethod, State, inner_loop
from metabench.problem import Hyper, Params
from metabench.registry import methods


@methods.register("random")
@dataclass(frozen=True)
class Random(GradientMethod):
    """Random or quasi-random search on a small lam; one full inner training a try."""

    inner_steps: int = 100
    sequence: Literal["sobol", "uniform"] = "sobol"

    @property
    def needs(self) -> frozenset[str]:
        """Bounds to search in, and few scalars."""
        return frozenset({"search_space", "small_lam"})

    def init(self, ctx: Context) -> State:
        """The first lam, not yet judged."""
        lam = ctx.problem.init_outer()
        theta = None
        if ctx.problem.carried:
            theta = grads.detach(ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)))
        return State(lam, theta, {"best": math.inf})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Draw point ``ctx.step``, train from scratch, keep it where it is better."""
        first = ctx.problem.init_outer()
        u = self.point(ctx, sum(v.numel() for v in first.values()))
        lam = place(u, ctx.problem.hypers, first)
        losses, end = [], None
        for episode in ctx.training_episodes():
            start = grads.detach(ctx.problem.init_inner(lam, episode))
            end, _ = inner_loop(
                ctx, lam, start, episode, steps=self.inner_steps, lr=self.inner_lr
            )
            losses.append(float(ctx.problem.outer_loss(lam, end, episode.outer)))
            ctx.meter.add(trainings=1, function_evaluations=1)
        loss = math.fsum(losses) / len(losses)
        # A training that diverged counts as infinitely bad; it is not dropped.
        loss = loss if math.isfinite(loss) else math.inf
        log = {"outer_loss": loss} if math.isfinite(loss) else {}
        if loss >= state.memory["best"]:
            return state, log
        theta = grads.detach(end) if ctx.problem.carried and end is not None else None
        return State(lam, theta, {"best": loss}), log

    def point(self, ctx: Context, dim: int) -> Sequence[float]:
        """Point number ``ctx.step`` of the sequence in the unit cube [dim]."""
        if self.sequence == "sobol":
            sobol = qmc.Sobol(dim, scramble=True, seed=ctx.seeds.method % 2**32)
            if ctx.step:  # scipy cannot go forward by nothing at the start
                sobol.fast_forward(ctx.step)
            return [float(x) for x in sobol.random(1)[0]]
        gen = torch.Generator().manual_seed((ctx.seeds.method + ctx.step) % 2**63)
        return torch.rand(dim, generator=gen, dtype=torch.float64).tolist()


def place(u: Sequence[float], hypers: Sequence[Hyper], like: Params) -> Params:
    """A point of the unit cube as lam, by each part's bounds and scale."""
    out, at = {}, 0
    for hyper in hypers:
        value = like[hyper.name]
        part = torch.tensor(
            list(u[at : at + value.numel()]), dtype=value.dtype, device=value.device
        )
        at += value.numel()
        if hyper.choices:
            part = (part * len(hyper.choices)).floor()
        else:
            assert hyper.low is not None and hyper.high is not None
            low, high = (math.log(x) if hyper.log else x for x in (hyper.low, hyper.high))
            part = low + part * (high - low)
            part = part.exp() if hyper.log else part
        out[hyper.name] = part.reshape(value.shape)
    return out
