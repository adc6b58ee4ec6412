"""AutoRAG-HP: a bandit that picks a hyperparameter, and one for each that picks its value.

Fu, Qin, Yang, Wang, Zhang, Lin, Chen, Zhang, Rajmohan, Zhang: AutoRAG-HP: Automatic Online
Hyper-Parameter Tuning for Retrieval-Augmented Generation, Findings of EMNLP 2024, arXiv 2406.19251
(no code is public). One trial:

    m <- argmax over hyperparameters of  Q_m  + alpha_high sqrt(ln t   / N_m)      untried first
    v <- argmax over values of m of      Q_mv + alpha_low  sqrt(ln N_m / N_mv)     untried first
    run with v in the place of m's value, all others as they were; R = reward
    Q and N of m, and of (m, v), take R in; the next trial starts from here

so that sum of N_m = t, and sum over v of N_mv = N_m. alpha_high = alpha_low = 1 is the paper's
default; it finds 1.5 and 0.5 best overall. A reward is minus the loss.

The text leaves open, and settings choose: the first configuration (``begin``); whether values that
stayed in place take R in too (``credit``; a sentence says that "arms pulled earlier" do); how
combinations are ranked, most of which are never run (``score``). Values and hyperparameters are
tried first in their own order. A trial whose training ran away has the worst reward of the others
so far: an infinite one would end all trials of its hyperparameter, good values among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.method import Context, State
from metabench.contract.problem import Params
from metabench.contract.seeds import generator
from metabench.core.registry import method
from metabench.hypergradients.search.arms import (
    PULLS,
    REWARD,
    Axes,
    Bandit,
    account,
    added,
    drawn,
    pick,
)
from metabench.hypergradients.search.gradient_free import Judged, Search, kinds

CURRENT, LOW_PULLS, LOW_REWARD = "current", "low_pulls", "low_reward"
"""In the memory beside ``PULLS`` and ``REWARD`` of the hyperparameters: the number of each one's
value, and of each one's values pulls and sums of rewards, float64."""
LOST, LOW_LOST, WORST = "lost", "low_lost", "worst"
"""How many of these pulls have run away, whose rewards are not in the sums, and the least reward of
all others (infinite before the first)."""


@method("hier_ucb")
@dataclass(frozen=True)
class HierUCB(Bandit):
    r"""Hierarchical UCB (Fu 2024): which hyperparameter to move, then to which value.

    Formula:
        m_t = \operatorname*{arg\,max}_{m}\; Q_m + \alpha_{\text{high}} \sqrt{\frac{\ln t}{N_m}},
        \qquad v_t = \operatorname*{arg\,max}_{v}\; Q_{m_t v} + \alpha_{\text{low}}
        \sqrt{\frac{\ln N_{m_t}}{N_{m_t v}}}

    Loop:
        m = max(hypers, key=lambda m: Q[m] + alpha_high * sqrt(log(t) / N[m]))  # untried ones first
        v = max(values[m], key=lambda v: Q[m, v] + alpha_low * sqrt(log(N[m]) / N[m, v]))
        lam[m] = v  # all others stay as they were
        reward = -F(lam, train(lam, inner_steps))
        for arm in (m, (m, v)):
            N[arm] = N[arm] + 1
            Q[arm] = Q[arm] + (reward - Q[arm]) / N[arm]
    """

    alpha_high: Annotated[float, Field(ge=0)] = 1.0
    alpha_low: Annotated[float, Field(ge=0)] = 1.0
    begin: Literal["first", "random"] = "first"
    """The first configuration: the first value of each hyperparameter, or values of the seed."""
    credit: Literal["pulled", "all"] = "pulled"
    """"all": the values that stayed in place take the reward in, too."""
    score: Literal["sum", "arm"] = "sum"
    """A combination's: the sum of the mean rewards of its values, or the mean of its own trials
    (those never tried are last)."""

    reconstruction: ClassVar[str] = (
        "the paper does not give the first configuration, what is credited and how combinations "
        "are ranked: settings choose"
    )

    def levels(self, ctx: Context, state: State) -> tuple[Axes, dict[str, Any]]:
        """The values of each hyperparameter, and the memory, which begins with no pull."""
        axes = self.axes(kinds(ctx.problem.hypers, ctx.problem.init_outer()))
        if CURRENT in state.memory:
            return axes, state.memory
        first = [0] * len(axes)
        if self.begin == "random":
            gen = generator(ctx.seeds.method, "hier_ucb", ctx.step)
            first = [int(torch.randint(len(one), (), generator=gen)) for one in axes]
        zeros = [torch.zeros(len(one), dtype=torch.float64) for one in axes]
        pulls, reward = account(state, len(axes))
        fresh = {PULLS: pulls, REWARD: reward, LOW_PULLS: zeros, LOW_REWARD: zeros}
        lost = {LOST: torch.zeros_like(pulls), LOW_LOST: zeros, WORST: math.inf}
        return axes, {**state.memory, CURRENT: first, **fresh, **lost}

    def move(self, memory: dict[str, Any]) -> tuple[int, int]:
        """The hyperparameter to move, and the number of its new value."""
        high, low = rewards(memory)
        m = pick(memory[PULLS], high, self.alpha_high)
        return m, pick(memory[LOW_PULLS][m], low[m], self.alpha_low)

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """The current configuration, moved."""
        axes, memory = self.levels(ctx, state)
        m, v = self.move(memory)
        now = [v if i == m else old for i, old in enumerate(memory[CURRENT])]
        return [one[i] for one, i in zip(axes, now, strict=True)]

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """Both levels take the reward in."""
        _, memory = self.levels(ctx, state)
        m, v = self.move(memory)
        now = [v if i == m else old for i, old in enumerate(memory[CURRENT])]
        loss = found[0].loss
        ran_away = not loss < math.inf
        reward = 0.0 if ran_away else -loss

        def taken(arms: list[Tensor], more: float) -> list[Tensor]:
            return [
                added(arm, now[i], more) if i == m or self.credit == "all" else arm
                for i, arm in enumerate(arms)
            ]

        return {
            **memory,
            CURRENT: now,
            PULLS: added(memory[PULLS], m, 1.0),
            REWARD: added(memory[REWARD], m, reward),
            LOW_PULLS: taken(memory[LOW_PULLS], 1.0),
            LOW_REWARD: taken(memory[LOW_REWARD], reward),
            LOST: added(memory[LOST], m, float(ran_away)),
            LOW_LOST: taken(memory[LOW_LOST], float(ran_away)),
            WORST: memory[WORST] if ran_away else min(memory[WORST], reward),
        }

    def entered(
        self, ctx: Context, state: State, found: Sequence[Judged]
    ) -> tuple[State, dict[str, float]]:
        """With the account of combinations, where that ranks them; no cumulative loss once a trial
        has run away."""
        if self.score == "arm":
            return Search.entered(self, ctx, state, found)
        state, log = Bandit.entered(self, ctx, state, found)
        return state, {} if bool(state.memory[LOST].any()) else log

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """The combination that is ranked first."""
        if self.score == "arm":
            return super().recommend(ctx, state, found)
        axes, _ = self.levels(ctx, state)
        best = [one[int(mean.argmax())] for one, mean in zip(axes, means(state), strict=True)]
        return replace(state, lam=self.lam(ctx, best))

    def ranking(self, ctx: Context, state: State) -> Sequence[Params]:
        """Every combination by its score, equals in an order of the seed's own."""
        if self.score == "arm":
            return super().ranking(ctx, state)
        axes, _ = self.levels(ctx, state)
        worth = [
            dict(zip(one, mean.tolist(), strict=True))
            for one, mean in zip(axes, means(state), strict=True)
        ]

        def score(point: tuple[float, ...]) -> float:
            return float(sum(one[u] for one, u in zip(worth, point, strict=True)))

        points = sorted(drawn(axes, f"{ctx.seeds.method}/arms"), key=score, reverse=True)
        return [self.lam(ctx, point) for point in points]


def rewards(memory: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Sums of rewards of hyperparameters, and of the values of each, with the worst reward so far
    for each pull that has run away; 0 while all have."""
    worst = memory[WORST] if memory[WORST] < math.inf else 0.0
    low = zip(memory[LOW_REWARD], memory[LOW_LOST], strict=True)
    high = memory[REWARD] + worst * memory[LOST]
    return high, [reward + worst * lost for reward, lost in low]


def means(state: State) -> list[Tensor]:
    """The mean reward of each value of each hyperparameter; -inf of one whose every trial has run
    away or that had none, and 0 of all where none had."""
    memory, out = state.memory, []
    sums = rewards(memory)[1]
    for pulls, lost, reward in zip(memory[LOW_PULLS], memory[LOW_LOST], sums, strict=True):
        tried = torch.where(pulls > lost, reward / pulls.clamp(min=1), -math.inf)
        out.append(tried if bool((pulls > 0).any()) else torch.zeros_like(reward))
    return out
