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
from metabench.method import Context, InnerTraining, State, Steps, inner_loop
from metabench.problem import Episode, Hyper, Params, generator
from metabench.registry import methods


@methods.register("random")
@dataclass(frozen=True)
class Random(InnerTraining):
    """Random or quasi-random search on a small lam; one full inner training a try."""

    inner_steps: Steps = 100
    sequence: Literal["sobol", "uniform"] = "sobol"

    @property
    def needs(self) -> frozenset[str]:
        """Bounds to search in, and few scalars."""
        return frozenset({"search_space", "small_lam"})

    def init(self, ctx: Context) -> State:
        """The first lam, not yet judged."""
        lam = ctx.problem.init_outer()
        return State(lam, self.first_theta(ctx, lam), {"best": math.inf})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Draw point ``ctx.step``, train from scratch, keep it where it is better."""
        first = ctx.problem.init_outer()
        sizes = [first[hyper.name].numel() for hyper in ctx.problem.hypers]
        lam = ctx.problem.project(place(self.point(ctx, sum(sizes)), ctx.problem.hypers, first))

        def trained(episode: Episode) -> tuple[torch.Tensor, Params]:
            start = grads.detach(ctx.problem.init_inner(lam, episode))
            end, _ = inner_loop(ctx, lam, start, episode, steps=self.inner_steps, lr=self.inner_lr)
            ctx.meter.add(trainings=1, function_evaluations=1)
            return ctx.problem.outer_loss(lam, end, episode.outer).detach(), grads.detach(end)

        found = ctx.over_episodes(trained, ctx.training_episodes(), steps=self.inner_steps)
        loss = sum(float(value) for value, _ in found) / len(found)
        if not math.isfinite(loss):
            # A training that diverged is infinitely bad; it has been paid for, and is not kept.
            return state, {}
        if loss >= state.memory["best"]:
            return state, {"outer_loss": loss}
        theta = found[-1][1] if ctx.problem.carried else None
        return State(lam, theta, {"best": loss}), {"outer_loss": loss}

    def point(self, ctx: Context, dim: int) -> Sequence[float]:
        """Point number ``ctx.step`` of the sequence in the unit cube [dim]."""
        if self.sequence == "sobol":
            sobol = qmc.Sobol(dim, scramble=True, seed=ctx.seeds.method % 2**32)
            if ctx.step:  # scipy cannot go forward by nothing at the start
                sobol.fast_forward(ctx.step)
            return [float(x) for x in sobol.random(1)[0]]
        gen = generator(ctx.seeds.method, "random", ctx.step)
        return torch.rand(dim, generator=gen, dtype=torch.float64).tolist()


def place(u: Sequence[float], hypers: Sequence[Hyper], like: Params) -> Params:
    """A point of the unit cube as lam, by each part's bounds and scale; what ``hypers`` do not name
    stays as in ``like``.

    Raises ValueError for a part that has neither choices nor both bounds.
    """
    out, at = dict(like), 0
    for hyper in hypers:
        value = like[hyper.name]
        part = torch.tensor(
            list(u[at : at + value.numel()]), dtype=value.dtype, device=value.device
        )
        at += value.numel()
        if hyper.choices:
            part = (part * len(hyper.choices)).floor().clamp(max=len(hyper.choices) - 1)
        elif hyper.low is None or hyper.high is None:
            raise ValueError(f"lam's part {hyper.name!r} has no bounds to search between")
        else:
            low, high = (math.log(x) if hyper.log else x for x in (hyper.low, hyper.high))
            part = low + part * (high - low)
            part = part.exp() if hyper.log else part
        out[hyper.name] = part.reshape(value.shape)
    return out
