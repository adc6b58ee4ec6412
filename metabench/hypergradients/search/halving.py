"""Many short trainings, few long ones: what successive halving, Hyperband and ASHA share.

A rung is a number of inner steps; who is among the best there goes on to the next. The trainings of
a bracket share episodes, data order and noise. Each is charged for the steps that it takes: from
where it was paused, or from scratch (``resume``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.contract.seeds import generator
from metabench.hypergradients.search.gradient_free import Judged, kinds, losses_log
from metabench.hypergradients.search.tries import InitialFirst

Trial = dict[str, Any]
"""{"point", "done", "paused"}: a point, the inner steps it has had, and where they have ended."""


@dataclass(frozen=True)
class Rungs(InitialFirst):
    """Search by trainings of several lengths; the answer is the best at the longest reached."""

    eta: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on."""
    resume: bool = True
    """Go on from where a training was paused; False: train again from scratch."""

    batched: ClassVar[bool] = False

    def init(self, ctx: Context) -> State:
        """Nothing judged."""
        state = super().init(ctx)
        return replace(state, memory={**state.memory, "longest": 0})

    def drawn(self, ctx: Context, number: int, n: int) -> list[Trial]:
        """Round ``number`` of n new points, uniform in the unit cube; the initial lam may take the
        place of the first of all."""
        gen = generator(ctx.seeds.method, "halving", number)
        dim = len(kinds(ctx.problem.hypers, ctx.problem.init_outer()))
        points = torch.rand(n, dim, generator=gen, dtype=torch.float64).tolist()
        if self.initial_first and number == 0:
            points[0] = list(self.initial_point(ctx))
        return [{"point": point, "done": 0, "paused": None} for point in points]

    def trained(self, ctx: Context, trial: Trial, number: int, steps: int) -> tuple[Judged, Trial]:
        """A trial at ``steps`` inner steps on the episodes of round ``number``."""
        found = self.judged(
            ctx, trial["point"], ctx.training_episodes(number),
            steps=steps, done=trial["done"], paused=trial["paused"],
        )  # fmt: skip
        after = {"done": steps, "paused": found.end} if self.resume else {}
        return found, {**trial, **after}

    def answered(self, ctx: Context, state: State, found: Sequence[Judged], steps: int) -> State:
        """The state with what was found after ``steps`` inner steps: a longer training than all
        before replaces the answer, one as long competes with it."""
        longest = state.memory["longest"]
        if steps < longest:
            return state
        if steps > longest and any(one.loss < math.inf for one in found):
            state = replace(state, memory={**state.memory, "longest": steps, "best": math.inf})
        return self.recommend(ctx, state, found) if steps == state.memory["longest"] else state


@dataclass(frozen=True)
class Brackets(Rungs):
    """Rungs that are worked through one after another: a step is a rung of all that are in it."""

    def rungs(self, bracket: int) -> list[tuple[int, int]]:
        """(trainings, inner steps) of each rung of a bracket, counted from 0."""
        raise NotImplementedError

    def init(self, ctx: Context) -> State:
        """No bracket begun."""
        state = super().init(ctx)
        memory = {**state.memory, "bracket": 0, "rung": 0, "trials": []}
        return replace(state, memory=memory)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Train what is in the rung; the best of it are in the next one."""
        memory = state.memory
        bracket, rung = memory["bracket"], memory["rung"]
        rungs = self.rungs(bracket)
        n, steps = rungs[rung]
        trials = memory["trials"] or self.drawn(ctx, bracket, n)
        done = [self.trained(ctx, trial, bracket, steps) for trial in trials]
        found = [one for one, _ in done]
        order = sorted(range(len(done)), key=lambda i: found[i].loss)
        kept = rungs[rung + 1][0] if rung + 1 < len(rungs) else 0
        rest = [done[i][1] for i in order[:kept] if found[i].loss < math.inf]
        at = {"bracket": bracket, "rung": rung + 1} if rest else {"bracket": bracket + 1, "rung": 0}
        state = replace(state, memory={**memory, **at, "trials": rest})
        return self.answered(ctx, state, found, steps), {**losses_log(found), "steps": float(steps)}


def lengths(longest: int, eta: int, rungs: int) -> list[int]:
    """Inner steps of each rung: ``longest`` in the last, one in eta of that (rounded down) below.

    Raises ValueError where the first would have none.
    """
    steps, out = longest, [longest]
    for _ in range(rungs - 1):
        steps //= eta
        if steps < 1:
            small = eta.bit_length() * (rungs - 1) < 200
            need = eta ** (rungs - 1) if small else f"{eta}^{rungs - 1}"
            raise ValueError(
                f"inner_steps is {longest}: {rungs} rungs with eta = {eta} need at least {need}"
            )
        out.append(steps)
    return out[::-1]
