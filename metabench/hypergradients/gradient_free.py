"""Gradient-free search on a small lam: a point a step, one full inner training to judge it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import InnerTraining, State, Steps, inner_loop
from metabench.contract.problem import Episode, Hyper, Params
from metabench.core.limits import LARGEST


@dataclass(frozen=True)
class Search(InnerTraining):
    """The loop of every method that only answers "which point next?"; the best lam is kept.

    A subclass gives :meth:`ask`, and :meth:`tell` where it learns from what came out. Each step
    trains from scratch on the step's episodes and is charged for it.
    """

    inner_steps: Steps = 100

    @property
    def needs(self) -> frozenset[str]:
        """Bounds to search in, and few scalars."""
        return frozenset({"search_space", "small_lam"})

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """A point of the unit cube, one entry a scalar of lam; ``kinds`` has for each the number of
        its categories, 0 for a continuous one."""
        raise NotImplementedError

    def tell(self, state: State, point: Sequence[float], loss: float) -> dict[str, Any]:
        """The method's memory once a point is judged; ``loss`` is infinite where it diverged."""
        return state.memory

    def init(self, ctx: Context) -> State:
        """The first lam, not yet judged."""
        lam = ctx.problem.init_outer()
        return State(lam, self.first_theta(ctx, lam), {"best": math.inf})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Ask for a point, train from scratch, keep it where it is better."""
        first, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        point = self.ask(ctx, state, kinds(hypers, first))
        lam = ctx.problem.project(place(point, hypers, first))

        def trained(episode: Episode) -> tuple[torch.Tensor, Params]:
            start = autodiff.detach(ctx.problem.init_inner(lam, episode))
            end, _ = inner_loop(ctx, lam, start, episode, steps=self.inner_steps, lr=self.inner_lr)
            ctx.meter.add(trainings=1)
            return ctx.outer_value(lam, end, episode.outer), autodiff.detach(end)

        found = ctx.over_episodes(trained, ctx.training_episodes(), steps=self.inner_steps)
        loss = sum(float(value) for value, _ in found) / len(found)
        # A training that ran away is infinitely bad; it has been paid for, and is not kept.
        finite = abs(loss) < LARGEST
        memory = self.tell(state, point, loss if finite else math.inf)
        log = {"outer_loss": loss} if finite else {}
        if not finite or loss >= state.memory["best"]:
            return (state if memory is state.memory else State(state.lam, state.theta, memory)), log
        theta = found[-1][1] if ctx.problem.carried else None
        return State(lam, theta, {**memory, "best": loss}), log


def kinds(hypers: Sequence[Hyper], like: Params) -> list[int]:
    """Number of categories of each scalar that ``hypers`` name, 0 for a continuous one."""
    return [len(h.choices) for h in hypers for _ in range(like[h.name].numel())]


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
