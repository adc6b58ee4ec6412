"""Q-learning on a chain of three states that needs no package, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metabench.tasks.families.q_learning import (
    AdamValues,
    Learner,
    RandomValues,
    Rules,
    Standing,
    TagiValues,
    copied,
    judged,
    n_step,
    observed,
    play,
)
from metabench.tasks.models.adam_network import Adam, AdamNetwork
from metabench.tasks.models.dense import Dense
from metabench.tasks.models.tagi import TAGI, Belief

RULES = Rules("replay", 0.9, batch=2, memory=8, horizon=1, target_every=1, limit=6)


class Chain:
    """Action 1 goes right, 0 left; the third state pays 1 and ends it."""

    def reset(self, seed):
        self.at = 0
        return np.array([0.0]), {}

    def step(self, action):
        self.at = max(0, self.at + (1 if action else -1))
        return np.array([float(self.at)]), float(self.at == 2), self.at == 2, False, {}


class Told(Learner):
    """Always goes right; the next value is 2 with a variance of 0.09; notes what it learns."""

    def __init__(self):
        self.seen = []

    def start(self, rng):
        return 0

    def values(self, held, seen):
        return np.tile([0.0, 1.0], (len(seen), 1))

    def explore(self, held, seen, rng, steps):
        return 1

    def ahead(self, held, seen, rng):
        return np.full(len(seen), 2.0), np.full(len(seen), 0.09)

    def learn(self, held, seen, actions, y, var, steps):
        self.seen.append((held, y, var))
        return held + 1, 0


def standing(held, memory=8):
    return Standing(held, held, np.zeros((memory, 6)))


def transition(reward, alive, ended):
    return [0.0, 1.0, 1.0, reward, alive, ended]


def test_a_target_has_a_value_and_a_variance():
    """gamma 0.9, r = 1, (mu', v') = (2, 0.09), sigma_v = 1; prior (2, 0.5)."""
    rows = np.array([transition(1, 1, 0), transition(1, 0, 1)])
    _, _, y, var = observed(standing(0), RULES, Told(), rows, np.random.default_rng(0))
    np.testing.assert_allclose(y, [2.8, 1.0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(var, [0.0729, 0.0], rtol=0, atol=1e-14)

    learner = TagiValues(TAGI(Dense((1, 1)), cap=None), 1.0, 1.0, 1.0, 0.3, 128)
    prior = Belief(np.array([0.0, 2.0]), np.array([0.0, 0.5]))
    after, _ = learner.learn(prior, np.zeros((1, 1)), np.zeros(1), y[:1], var[:1], 0)
    assert after.mean[1] == pytest.approx(2.2543073304, abs=1e-10)
    assert after.var[1] == pytest.approx(0.3410579185, abs=1e-10)


def test_returns_over_n_steps_end_with_episode_and_window():
    reward, ended = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 0.0])
    mean, var = np.array([10.0, 0.0, 20.0, 30.0]), np.array([1.0, 0.0, 2.0, 3.0])
    g = 0.5
    y, s = n_step(reward, ended, mean, var, g, 128)
    assert y.tolist() == [1 + g * 2, 2, 3 + g * 4 + g**2 * 30, 4 + g * 30]
    assert s.tolist() == [0, 0, g**4 * 3, g**2 * 3]
    one = n_step(reward, ended, mean, var, g, 1)
    assert one[0].tolist() == [6, 2, 13, 19] and one[1].tolist() == [0.25, 0, 0.5, 0.75]


@pytest.mark.parametrize("algorithm", ["replay", "n_step"])
def test_an_episode_is_stored_counted_and_learned_from(algorithm):
    rules = replace(RULES, algorithm=algorithm, memory=8 if algorithm == "replay" else 2, horizon=9)
    at, learner = standing(0, rules.memory), Told()
    updates = play(at, rules, learner, Chain(), np.random.default_rng(0))
    assert (at.steps, at.stored, at.episodes, at.returns[0], updates) == (2, 2, 1, 1.0, 1)
    assert at.memory[:2].tolist() == [[0, 1, 1, 0, 1, 0], [1, 2, 1, 1, 0, 1]]
    ((_, y, var),) = learner.seen
    if algorithm == "n_step":  # 0 + gamma 1 for the first step, each once
        assert sorted(y) == [0.9, 1.0] and var.tolist() == [0, 0]
    else:  # 1.8 from a step that goes on, drawn with replacement
        assert set(y) <= {1.8, 1.0}


def test_an_episode_that_is_cut_short_still_has_a_future():
    rules = replace(RULES, limit=1, batch=1)
    at, learner = standing(0), Told()
    play(at, rules, learner, Chain(), np.random.default_rng(0))
    assert at.memory[0].tolist() == [0, 1, 1, 0, 1, 1]
    assert learner.seen[0][1].tolist() == [1.8]


def test_values_ahead_are_copied_every_so_often():
    at = standing(0)
    play(at, replace(RULES, batch=1, target_every=2), Told(), Chain(), np.random.default_rng(0))
    assert (at.held, at.target) == (2, 2)
    play(at, replace(RULES, batch=1, target_every=3), Told(), Chain(), np.random.default_rng(0))
    assert (at.held, at.target) == (4, 3)


def test_a_copy_is_not_written_to():
    at = standing(0)
    other = copied(at)
    play(other, RULES, Told(), Chain(), np.random.default_rng(0))
    assert not at.memory.any() and not at.returns.any() and at.episodes == 0


def test_judging_takes_the_best_action():
    rng = np.random.default_rng(0)
    assert judged(0, RULES, Told(), Chain(), rng) == 1.0
    lost = [judged((), replace(RULES, limit=2), RandomValues(2), Chain(), rng) for _ in range(40)]
    assert 0 < sum(lost) < 40


def test_tagi_explores_what_it_is_not_sure_of():
    """One bias an action: means 0 and 1; the first is the larger of two draws as often as a normal
    of mean 1 and variance 2 is negative."""
    learner = TagiValues(TAGI(Dense((1, 2))), 1.0, 2.0, 0.9999, 0.3, 128)
    rng, seen = np.random.default_rng(0), np.zeros(1)
    unsure = Belief(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    tried = [learner.explore(unsure, seen, rng, 0) for _ in range(2000)]
    assert np.mean(tried) == pytest.approx(0.7602, abs=0.03)
    sure = Belief(unsure.mean, np.zeros(4))
    assert {learner.explore(sure, seen, rng, 0) for _ in range(20)} == {1}
    assert learner.greedy(unsure, seen, rng) == 1
    mean, var = learner.ahead(sure, np.zeros((3, 1)), rng)
    assert mean.tolist() == [1, 1, 1] and var.tolist() == [0, 0, 0]


def test_sigma_falls_to_its_least():
    learner = TagiValues(TAGI(Dense((1, 1))), 1.0, 2.0, 0.9999, 0.3, 128)
    assert [learner.sigma_at(n) for n in (0, 127, 128)] == [2.0, 2.0, 2.0 * 0.9999]
    assert learner.sigma_at(10**9) == 0.3
    assert replace(learner, sigma=0.1).sigma_at(10**9) == 0.1


def test_adam_explores_less_and_less_and_learns_the_action_taken():
    learner = AdamValues(AdamNetwork(Dense((1, 2))), 0.01, 0.0, 100)
    held, rng = Adam(np.array([0.0, 0.0, 0.0, 1.0]), np.zeros(4), np.zeros(4), 0.0), None
    rng = np.random.default_rng(0)
    for steps, share in ((0, 0.5), (50, 0.75), (100, 1.0), (1000, 1.0)):
        tried = [learner.explore(held, np.zeros(1), rng, steps) for _ in range(1000)]
        assert np.mean(tried) == pytest.approx(share, abs=0.05)
    after, _ = learner.learn(held, np.ones((1, 1)), np.zeros(1), np.ones(1), np.zeros(1), 0)
    assert after.weights.tolist() == pytest.approx([0.01, 0.0, 0.01, 1.0])
    assert learner.ahead(held, np.zeros((2, 1)), rng)[0].tolist() == [1.0, 1.0]
