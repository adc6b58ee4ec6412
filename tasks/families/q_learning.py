"""Q-learning with a replay memory, and n-step Q-learning on windows, for any learner of values.

Mnih et al.: Human-level control through deep reinforcement learning, Nature 2015; Mnih et al.:
Asynchronous methods for deep reinforcement learning, ICML 2016. With TAGI as the learner: Nguyen,
Goulet: Analytically Tractable Bayesian Deep Q-Learning, arXiv 2106.11086, 2021; rules and constants
of the authors' code (CivML-PolyMtl/OpenTAGI). An observed value of the action taken is

    y = r + gamma mu',   s_y = gamma^2 v' + sigma_v^2,

mu' and v' being the moments of the next state's chosen value, both 0 where it is terminal. Over n
steps: y = sum_k gamma^k r_k + gamma^n mu', s_y = gamma^2n v' + sigma_v^2. Where an episode is only
cut short by its limit of steps, the next state still counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from ..models.adam_network import Adam, AdamNetwork
from ..models.dense import Array
from ..models.tagi import TAGI, Belief

Random = np.random.Generator
Held = TypeVar("Held", bound=tuple[Any, ...])


class Learner(ABC, Generic[Held]):
    """Values of actions: how they are explored, looked ahead to, and learned. ``Held`` is a named
    tuple of arrays: all that it knows."""

    @abstractmethod
    def start(self, rng: Random) -> Held:
        """What it knows at first."""

    @abstractmethod
    def values(self, held: Held, seen: Array) -> Array:
        """Of every action, for observations [n, numbers]: [n, actions]."""

    @abstractmethod
    def explore(self, held: Held, seen: Array, rng: Random, steps: int) -> int:
        """The action to try in one state, after so many steps of the environment."""

    @abstractmethod
    def ahead(self, held: Held, seen: Array, rng: Random) -> tuple[Array, Array]:
        """Mean and variance of the value to go on from in states [n]; [n] each."""

    @abstractmethod
    def learn(
        self, held: Held, seen: Array, actions: Array, y: Array, var: Array, steps: int
    ) -> tuple[Held, int]:
        """One update by the values y of actions, whole numbers, with variances, [n] each; and how
        many variances ended at their floor."""

    def greedy(self, held: Held, seen: Array, rng: Random) -> int:
        """The best action in one state as far as is known."""
        return int(self.values(held, seen[None])[0].argmax())


@dataclass(frozen=True)
class TagiValues(Learner[Belief]):
    """TAGI: explores by sampling values (Thompson sampling), without an exploration rate."""

    network: TAGI
    gain: float
    sigma: float
    """sigma_v at first."""
    decay: float
    least: float
    every: int
    """sigma_v is multiplied by ``decay`` every so many steps, down to ``least``."""

    def start(self, rng: Random) -> Belief:
        """The prior."""
        return self.network.prior(rng, self.gain)

    def values(self, held: Belief, seen: Array) -> Array:
        """Means."""
        return self.network.forward(held, seen)[-1].mean

    def explore(self, held: Belief, seen: Array, rng: Random, steps: int) -> int:
        """The largest of sampled values."""
        top = self.network.forward(held, seen[None])[-1]
        return int(sampled(top.mean, top.var, rng)[0].argmax())

    def ahead(self, held: Belief, seen: Array, rng: Random) -> tuple[Array, Array]:
        """Moments of the action whose sampled value is the largest."""
        top = self.network.forward(held, seen)[-1]
        rows, chosen = np.arange(len(seen)), sampled(top.mean, top.var, rng).argmax(1)
        return top.mean[rows, chosen], top.var[rows, chosen]

    def learn(
        self, held: Belief, seen: Array, actions: Array, y: Array, var: Array, steps: int
    ) -> tuple[Belief, int]:
        """Condition on y, observed with ``var`` and sigma_v^2."""
        moments = self.network.forward(held, seen)
        taken = np.equal.outer(actions, np.arange(moments[-1].mean.shape[1])).astype(float)
        noise = (var + self.sigma_at(steps) ** 2)[:, None]
        return self.network.update(held, moments, y[:, None], noise, taken)

    def sigma_at(self, steps: int) -> float:
        """sigma_v after so many steps of the environment."""
        return max(self.sigma * self.decay ** (steps // self.every), min(self.sigma, self.least))


def sampled(mean: Array, var: Array, rng: Random) -> Array:
    """Draws of independent Gaussians with these moments."""
    return mean + np.sqrt(var) * rng.standard_normal(mean.shape)


@dataclass(frozen=True)
class AdamValues(Learner[Adam]):
    """A network under Adam on the mean squared error, exploring by a rate that falls linearly."""

    network: AdamNetwork
    rate: float
    last: float
    """The exploration rate falls from 1 to this, ..."""
    over: int
    """... over so many steps of the environment."""

    def start(self, rng: Random) -> Adam:
        """Drawn weights."""
        return self.network.start(rng)

    def values(self, held: Adam, seen: Array) -> Array:
        """Outputs."""
        return self.network.forward(held.weights, seen)[-1]

    def explore(self, held: Adam, seen: Array, rng: Random, steps: int) -> int:
        """The best action, or with the exploration rate any."""
        rate = 1 + (self.last - 1) * min(1.0, steps / self.over)
        if rng.random() < rate:
            return int(rng.integers(self.network.dense.sizes[-1]))
        return self.greedy(held, seen, rng)

    def ahead(self, held: Adam, seen: Array, rng: Random) -> tuple[Array, Array]:
        """The largest value; it has no variance."""
        best = self.values(held, seen).max(1)
        return best, np.zeros_like(best)

    def learn(
        self, held: Adam, seen: Array, actions: Array, y: Array, var: Array, steps: int
    ) -> tuple[Adam, int]:
        """A step of Adam."""
        units = self.network.forward(held.weights, seen)
        at = np.arange(len(y)), actions.astype(int)
        slope = np.zeros_like(units[-1])
        slope[at] = 2 * (units[-1][at] - y) / len(y)
        g = self.network.gradient(held.weights, units, slope)
        return self.network.moved(held, g, self.rate), 0


@dataclass(frozen=True)
class RandomValues(Learner[tuple[()]]):
    """Any action, always: what no learning gives."""

    actions: int

    def start(self, rng: Random) -> tuple[()]:
        """Nothing."""
        return ()

    def values(self, held: tuple[()], seen: Array) -> Array:
        """All alike."""
        return np.zeros((len(seen), self.actions))

    def explore(self, held: tuple[()], seen: Array, rng: Random, steps: int) -> int:
        """Any."""
        return int(rng.integers(self.actions))

    def greedy(self, held: tuple[()], seen: Array, rng: Random) -> int:
        """Any."""
        return int(rng.integers(self.actions))

    def ahead(self, held: tuple[()], seen: Array, rng: Random) -> tuple[Array, Array]:
        """Nothing."""
        return np.zeros(len(seen)), np.zeros(len(seen))

    def learn(
        self, held: tuple[()], seen: Array, actions: Array, y: Array, var: Array, steps: int
    ) -> tuple[tuple[()], int]:
        """Nothing."""
        return held, 0


@dataclass(frozen=True)
class Rules:
    """What Q-learning is told beside its learner."""

    algorithm: Literal["replay", "n_step"]
    discount: float
    batch: int
    memory: int
    """Transitions that are kept: those of the replay memory, or those of a window."""
    horizon: int
    """Steps of n-step returns at most."""
    target_every: int
    limit: int
    """Steps of an episode at most."""


@dataclass
class Standing:
    """All that is known between two episodes; ``memory`` is written in place."""

    held: Any
    target: Any
    """What ``held`` was when values were last copied."""
    memory: Array
    """[transitions, 2 numbers + 4]: observation, next one, action, reward, whether the next state
    is not terminal, whether the episode ends."""
    stored: int = 0
    """Transitions ever stored."""
    steps: int = 0
    episodes: int = 0
    floored: int = 0
    returns: Array = field(default_factory=lambda: np.zeros(100))
    """Of the last 100 episodes, a ring."""


def n_step(
    reward: Array, ended: Array, mean: Array, var: Array, discount: float, horizon: int
) -> tuple[Array, Array]:
    """Returns and their variances [n] of the transitions of a window, each over ``horizon`` steps
    or until its episode or the window ends; ``mean``, ``var``: of the state after each, 0 where
    that is terminal."""
    n = len(reward)
    y, s, open_ = np.zeros(n), np.zeros(n), np.ones(n, dtype=bool)
    for k in range(min(horizon, n)):
        at = np.minimum(np.arange(n) + k, n - 1)
        stop = open_ & ((ended[at] > 0) | (at == n - 1) | (k == horizon - 1))
        y += open_ * discount**k * reward[at] + stop * discount ** (k + 1) * mean[at]
        s += stop * discount ** (2 * k + 2) * var[at]
        open_ &= ~stop
    return y, s


def observed(
    at: Standing, rules: Rules, learner: Learner[Any], rows: Array, rng: Random
) -> tuple[Array, Array, Array, Array]:
    """Observations, actions, values y and their variances of transitions."""
    n = (rows.shape[1] - 4) // 2
    action, reward, alive, ended = rows[:, 2 * n :].T
    mean, var = learner.ahead(at.target, rows[:, n : 2 * n], rng)
    horizon = rules.horizon if rules.algorithm == "n_step" else 1
    if horizon == 1:
        ahead = rules.discount * alive
        return rows[:, :n], action, reward + ahead * mean, ahead * ahead * var
    y, s = n_step(reward, ended, alive * mean, alive * var, rules.discount, horizon)
    return rows[:, :n], action, y, s


def learn(at: Standing, rules: Rules, learner: Learner[Any], rng: Random) -> int:
    """The updates that are due after a step of the environment, and how many they are."""
    if rules.algorithm == "replay":
        n = min(at.stored, rules.memory)
        if n < rules.batch:
            return 0
        known = observed(at, rules, learner, at.memory[rng.integers(n, size=rules.batch)], rng)
        parts = [np.arange(rules.batch)]
    elif at.stored % rules.memory:
        return 0
    else:
        known = observed(at, rules, learner, at.memory, rng)
        order, cuts = rng.permutation(rules.memory), range(rules.batch, rules.memory, rules.batch)
        parts = np.split(order, list(cuts))
    for part in parts:
        seen, actions, y, var = (x[part] for x in known)
        at.held, low = learner.learn(at.held, seen, actions, y, var, at.steps)
        at.floored += low
    return len(parts)


def play(at: Standing, rules: Rules, learner: Learner[Any], env: Any, rng: Random) -> int:
    """One episode of the environment with learning, which changes ``at``; the number of updates."""
    seen, total, updates = reset(env, rng), 0.0, 0
    for t in range(rules.limit):
        action = learner.explore(at.held, seen, rng, at.steps)
        after, reward, terminal, _, _ = env.step(action)
        ends = terminal or t + 1 == rules.limit
        after = np.asarray(after, dtype=float)
        row = at.memory[at.stored % rules.memory]
        row[:] = *seen, *after, action, reward, not terminal, ends
        at.stored, at.steps, total = at.stored + 1, at.steps + 1, total + float(reward)
        updates += learn(at, rules, learner, rng)
        if at.steps % rules.target_every == 0:
            at.target = at.held
        if ends:
            break
        seen = after
    at.returns[at.episodes % len(at.returns)] = total
    at.episodes += 1
    return updates


def judged(held: Any, rules: Rules, learner: Learner[Any], env: Any, rng: Random) -> float:
    """The return of one episode without learning and exploration."""
    seen, total = reset(env, rng), 0.0
    for _ in range(rules.limit):
        after, reward, terminal, _, _ = env.step(learner.greedy(held, seen, rng))
        total, seen = total + float(reward), np.asarray(after, dtype=float)
        if terminal:
            break
    return total


def reset(env: Any, rng: Random) -> Array:
    """The first observation of an episode."""
    return np.asarray(env.reset(seed=int(rng.integers(2**31)))[0], dtype=float)


def copied(at: Standing) -> Standing:
    """With arrays of its own where :func:`play` writes in place."""
    return replace(at, memory=at.memory.copy(), returns=at.returns.copy())
