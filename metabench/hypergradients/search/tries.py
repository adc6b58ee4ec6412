"""Tries of a search beside its own: the task's initial lam first, and the best few again.

A search that judges lams by one noisy value each answers with one that was good or lucky. With
:attr:`Tries.finalists` = k the last part of the budget goes to the k best, judged again in rounds,
each on the same new episodes for all (common random numbers), and the answer is the least mean over
all values of a finalist. SMAC (Hutter, Hoos, Leyton-Brown, LION 2011) starts from the default
configuration and judges by several runs, too, but shares the runs out along the search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.contract.problem import Batch, Episode, Params
from metabench.core import settings
from metabench.hypergradients.search.gradient_free import (
    ARMS,
    Judged,
    Search,
    losses_log,
    point_of,
    regretted,
    train,
)

FINALISTS = "finalists"
"""In the memory once the best are judged again: {"arms", "start"}, their places in ``ARMS``, the
best first, and the outer step of the first of these trainings."""

CLOSE = 1e-9
"""Of a try: what is left of a budget is counted in floating point."""


@dataclass(frozen=True)
class InitialFirst(Search):
    """A search that may try the task's initial lam before all others."""

    initial_first: bool = settings.later(False)
    """The task's initial lam is the first that is tried."""

    def initial_point(self, ctx: Context) -> tuple[float, ...]:
        """Where the initial lam is in the unit cube."""
        return point_of(ctx.problem.init_outer(), ctx.problem.hypers)

    def lam(self, ctx: Context, point: Sequence[float]) -> Params:
        """lam at a point; at the initial lam's point that one as it is, not rounded."""
        if self.initial_first and tuple(point) == self.initial_point(ctx):
            return ctx.problem.project(ctx.problem.init_outer())
        return super().lam(ctx, point)


@dataclass(frozen=True)
class Tries(InitialFirst):
    """A search by one full training a step, which may end with judging its best lams again."""

    finalists: Annotated[int, Field(ge=0)] = settings.later(0)
    """So many of the best lams are trained and judged again at the end of the budget, in tries that
    are charged like all; the answer is by means. None is where a training gives the same value
    again, nor where nothing but time limits the run."""
    repeats: Annotated[int, Field(ge=1)] = settings.later(1)
    """How often each of them; all in all never more tries than there were before."""

    def asked(self, ctx: Context) -> int:
        """How many points of its own the search has asked for."""
        return ctx.step - int(self.initial_first)

    def ask_round(
        self, ctx: Context, state: State, kinds: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """The initial lam, then what :meth:`ask` gives."""
        if self.initial_first and ctx.step == 0:
            return [self.initial_point(ctx)]
        return super().ask_round(ctx, state, kinds)

    def keeps_account(self, ctx: Context) -> bool:
        """Where the best are judged again, too."""
        return self.finalists > 0 or super().keeps_account(ctx)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A new try; or, where the budget holds no more than those, a finalist again."""
        if self.finalists and FINALISTS not in state.memory:
            state = self.closing(ctx, state)
        if FINALISTS not in state.memory:
            return super().step(ctx, state)
        arms, start = state.memory[FINALISTS]["arms"], state.memory[FINALISTS]["start"]
        turn, at = divmod(ctx.step - start, len(arms))
        episodes = ctx.training_episodes(start + turn * len(arms))
        lam = state.memory[ARMS][arms[at]]["lam"]
        loss, end = train(ctx, lam, episodes, steps=self.inner_steps, lr=self.inner_lr)
        found = [Judged(point_of(lam, ctx.problem.hypers), lam, loss, end)]
        state, account = self.entered(ctx, state, found)
        state = regretted(ctx, state, found, episodes)
        return self.recommend(ctx, state, found), losses_log(found) | account

    def closing(self, ctx: Context, state: State) -> State:
        """The state with its finalists, where what is left of the budget is no more than the tries
        for them; as it is where it is more, or where a second value would be the first."""
        left = tries_left(ctx)
        if left is None:
            ctx.notes["finalists"] = "none: only time limits the run"
            return state
        if left > min(self.finalists * self.repeats, ctx.step) or not left:
            return state
        means = [arm["total"] / arm["count"] for arm in state.memory.get(ARMS, [])]
        order = sorted((i for i, x in enumerate(means) if x < math.inf), key=means.__getitem__)
        best = order[: min(self.finalists, int(left))]
        if not best:
            return state
        if self.is_noise_free(ctx, state.memory[ARMS][best[0]]["lam"]):
            ctx.notes["finalists"] = "none: a training gives the same value again"
            return state
        memory = {**state.memory, FINALISTS: {"arms": best, "start": ctx.step}}
        return replace(state, memory=memory)

    def is_noise_free(self, ctx: Context, lam: Params) -> bool:
        """Whether a training at lam now is that of the first step, number for number: the same
        first theta and batches, and a solver that draws nothing. Not counted as cost."""
        solver, _ = ctx.inner_rule(lam, self.inner_lr)
        if ctx.solver.noisy or solver.by_examples:
            return False
        pairs = zip(ctx.training_episodes(0), ctx.training_episodes(), strict=True)
        with ctx.uncounted():
            return all(
                equal(ctx.problem.init_inner(lam, a), ctx.problem.init_inner(lam, b))
                and same_batches(a, b, self.inner_steps)
                for a, b in pairs
            )

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """The least mean; once finalists are judged again, of those of them that have been."""
        if FINALISTS not in state.memory:
            return super().recommend(ctx, state, found)
        arms, start = state.memory[FINALISTS]["arms"], state.memory[FINALISTS]["start"]
        again = [state.memory[ARMS][i] for i in arms[: ctx.step - start + 1]]
        best = min(again, key=lambda arm: arm["total"] / arm["count"])
        mean = best["total"] / best["count"]
        if not mean < math.inf:
            return state
        return State(best["lam"], best["theta"], {**state.memory, "best": mean})


def tries_left(ctx: Context) -> float | None:
    """How many more steps the budget holds if each takes what those so far took in the mean, whole
    ones only; infinite before the first, None where nothing but time limits the run."""
    spent = ctx.progress
    if spent is None:
        return None
    return math.floor((1 - spent) * ctx.step / spent + CLOSE) if spent else math.inf


def same_batches(a: Episode, b: Episode, steps: int) -> bool:
    """Whether two episodes are judged by the same batch and have the same inner batches."""
    if not equal(a.outer, b.outer):
        return False
    fixed = not (callable(a.inner) or callable(b.inner))
    return all(equal(a.batch(t), b.batch(t)) for t in range(min(steps, 1) if fixed else steps))


def equal(a: Params | Batch, b: Params | Batch) -> bool:
    """Whether two dicts of tensors are the same bit for bit."""
    return a.keys() == b.keys() and all(v is b[k] or torch.equal(v, b[k]) for k, v in a.items())
