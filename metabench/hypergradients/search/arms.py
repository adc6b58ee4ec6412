"""A small lam as arms to pull: equally spaced values and categories, and what bandits share.

A pull is a round of one point: its reward is minus the loss. Every arm is one point of the grid of
:func:`axis`; a method remembers how often each was pulled and the sum of its rewards, and

    index_a = Q_a + alpha sqrt(ln t / N_a),     Q_a = sum of rewards / N_a,  t = sum of N

is UCB1 (Auer, Cesa-Bianchi, Fischer, Machine Learning 47, 2002) with a free alpha.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.context import Context
from metabench.contract.method import State, Steps
from metabench.contract.problem import Params
from metabench.hypergradients.search.gradient_free import REGRET, Judged, Search, counted, kinds

MOST = 10_000
"""Arms of a flat bandit; of a larger grid so many points, drawn by the seed."""

PULLS, REWARD = "pulls", "reward"
"""In a bandit's memory, float64: of each arm how often it was pulled, and the sum of its
rewards."""

Axes = tuple[tuple[float, ...], ...]
"""Of each scalar of lam its values, in the unit interval."""


def axis(n: int, points: int) -> tuple[float, ...]:
    """Values of one scalar in the unit interval: the middle of each of n categories, or
    ``points`` from 0 to 1."""
    if n or points == 1:
        n = n or 1
        return tuple((i + 0.5) / n for i in range(n))
    return tuple(i / (points - 1) for i in range(points))


@lru_cache(maxsize=4)
def nodes(axes: Axes, seed: str | None) -> list[tuple[float, ...]]:
    """All points, in the order of ``seed``; None: neighbours follow each other, back and forth."""
    if seed is not None:
        out = list(itertools.product(*axes))
        random.Random(seed).shuffle(out)
        return out
    out = [()]
    for one in axes:
        turns = (one, one[::-1])
        out = [(*x, u) for i, x in enumerate(out) for u in turns[i % 2]]
    return out


def twice(point: Sequence[float], axes: Sequence[Sequence[float]], counts: Sequence[bool]) -> bool:
    """Whether another point of the grid is the same lam: what does not count has its first value
    in one of them."""
    return any(u != one[0] for u, one, on in zip(point, axes, counts, strict=True) if not on)


@lru_cache(maxsize=4)
def drawn(axes: Axes, seed: str) -> list[tuple[float, ...]]:
    """All points in the order of ``seed``; of more than ``MOST`` so many at random."""
    if math.prod(map(len, axes)) <= MOST:
        return nodes(axes, seed)
    draw = random.Random(seed)
    return list(dict.fromkeys(tuple(draw.choice(one) for one in axes) for _ in range(MOST)))


def pick(pulls: Tensor, reward: Tensor, alpha: float) -> int:
    """The first arm [n] that was never pulled, or the one with the largest UCB index."""
    untried = (pulls == 0).nonzero()
    return int(untried[0] if len(untried) else indices(pulls, reward, alpha).argmax())


def indices(pulls: Tensor, reward: Tensor, alpha: float) -> Tensor:
    """The UCB index of each arm [n]; every one was pulled."""
    return reward / pulls + alpha * (pulls.sum().log() / pulls).sqrt()


@dataclass(frozen=True)
class Bandit(Search):
    """Settings of every bandit, and how it forgets."""

    points: Annotated[int, Field(ge=2)] = 5
    """Values of each continuous scalar, both bounds among them; categories are taken as they
    are."""
    forget_at: Steps | None = None
    """The outer step before which all that was learned is forgotten, as where what is judged is
    known to change; None: never."""

    revisits: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """Bounds; and no carried theta, as none is remembered of each arm."""
        return super().needs | {"episodes"}

    def axes(self, kinds: Sequence[int]) -> Axes:
        """The values of each scalar."""
        return tuple(axis(n, self.points) for n in kinds)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A pull. What is counted of arms, and with it the cumulative loss, starts anew after
        forgetting; regret is of the whole run."""
        if ctx.step == self.forget_at:
            kept = {k: v for k, v in state.memory.items() if k == REGRET}
            state = replace(state, memory={"best": math.inf, **kept})
        return super().step(ctx, state)

    def entered(
        self, ctx: Context, state: State, found: Sequence[Judged]
    ) -> tuple[State, dict[str, float]]:
        """Pulls and rewards are the account."""
        spent = -float(state.memory[REWARD].sum())
        return state, {"cumulative_loss": spent} if spent < math.inf else {}


@dataclass(frozen=True)
class FlatBandit(Bandit):
    """Every combination is an arm of its own; one whose training ran away has lost for good, as its
    sum is -inf. A subclass gives :meth:`choose`."""

    def choose(self, ctx: Context, pulls: Tensor, reward: Tensor) -> int:
        """The arm to pull, by how often each was pulled and the sum of its rewards [n]."""
        raise NotImplementedError

    def arms(self, ctx: Context, kinds: Sequence[int]) -> Sequence[tuple[float, ...]]:
        """The points that are arms, in an order of the seed's own."""
        axes = self.axes(kinds)
        arms = drawn(axes, f"{ctx.seeds.method}/arms")
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        if any(hyper.only_if for hyper in hypers):
            arms = [x for x in arms if not twice(x, axes, counted(x, hypers, like))] or arms[:1]
        return arms

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """The arm that :meth:`choose` names."""
        arms = self.arms(ctx, kinds)
        return arms[self.choose(ctx, *account(state, len(arms)))]

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """The pull, added."""
        (one,) = found
        arms = self.arms(ctx, kinds(ctx.problem.hypers, ctx.problem.init_outer()))
        pulls, reward = account(state, len(arms))
        at = arms.index(tuple(one.point))
        return {**state.memory, PULLS: added(pulls, at, 1.0), REWARD: added(reward, at, -one.loss)}

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """The arm with the largest mean reward."""
        best = self.ranked(ctx, state)[0]
        return replace(state, lam=self.lam(ctx, best))

    def ranking(self, ctx: Context, state: State) -> Sequence[Params]:
        """Every arm that was pulled, by its mean reward; equals in the order of the arms."""
        return [self.lam(ctx, point) for point in self.ranked(ctx, state)]

    def ranked(self, ctx: Context, state: State) -> list[tuple[float, ...]]:
        """Their points."""
        arms = self.arms(ctx, kinds(ctx.problem.hypers, ctx.problem.init_outer()))
        pulls, reward = account(state, len(arms))
        order = (reward / pulls).nan_to_num(-math.inf).argsort(descending=True, stable=True)
        return [arms[i] for i in order[: int((pulls > 0).sum())].tolist()]


def account(state: State, n: int) -> tuple[Tensor, Tensor]:
    """Pulls and sums of rewards of n arms so far."""
    none = torch.zeros(n, dtype=torch.float64)
    return state.memory.get(PULLS, none), state.memory.get(REWARD, none)


def added(values: Tensor, at: int, more: float) -> Tensor:
    """``values`` [n] with ``more`` added at one place; a new tensor."""
    out = values.clone()
    out[at] += more
    return out
