"""Control on gymnasium's environments; the rules themselves are tested without them."""

from __future__ import annotations

import pytest
import torch
from optional import needs
from oracles import context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods
from metabench.tasks.control import Control

needs("gymnasium")

SMALL = {"units": 4, "batch": 4, "memory": 30, "limit": 10, "judged": 2}


def stepped(ctx, theta, episodes):
    for i in episodes:
        theta = ctx.own_step(
            ctx.problem.init_outer(), theta, ctx.problem.episode("train", i).batch(0)
        )
    return theta


def started(**settings):
    ctx = context(Control(**{**SMALL, **settings}))
    lam = ctx.problem.init_outer()
    return ctx, lam, ctx.problem.init_inner(lam, ctx.problem.episode("train", 0))


@pytest.mark.parametrize("learner", ["tagi", "adam"])
def test_steps_of_the_environment_and_updates_are_counted(learner):
    ctx, lam, theta = started(learner=learner)
    end = stepped(ctx, theta, range(3))
    steps = int(end["steps"])
    assert int(end["episodes"]) == 3 and steps <= 30
    assert ctx.meter.counts.function_evaluations == steps == int(end["stored"])
    assert ctx.meter.counts.inner_gradients == steps - 3  # none before a batch is there
    found = ctx.problem.metrics(lam, end, ctx.problem.episode("test", 0))
    assert found["score"] == pytest.approx(steps / 3)  # a step pays 1
    assert found["played"] == 3


def test_windows_are_learned_from_once():
    ctx, _, theta = started(algorithm="n_step", window=8, learner="adam")
    end = stepped(ctx, theta, range(4))
    assert end["memory"].shape == (8, 12)
    assert ctx.meter.counts.inner_gradients == 2 * (int(end["steps"]) // 8)
    assert int(end["step"]) == ctx.meter.counts.inner_gradients


def test_a_learner_without_learning():
    ctx, lam, theta = started(learner="random", limit=200, judged=60)
    found = ctx.problem.metrics(lam, theta, ctx.problem.episode("test", 0))
    assert found["return"] == pytest.approx(22.0, abs=5.0)
    assert found["score"] == found["played"] == 0.0


def test_a_lunar_lander_is_the_same_in_every_new_environment():
    needs("Box2D")
    needs("pygame")
    ctx, _lam, theta = started(environment="lunar_lander", relu="exact", target_every=3)
    one, other = (stepped(ctx, theta, range(2)) for _ in range(2))
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    assert one["memory"].shape == (30, 20) and not torch.equal(one["target.mean"], one["mean"])


@pytest.mark.slow
def test_tagi_learns_the_cart_pole():
    """20 episodes in a row of the most that there is, a random policy having 22 steps."""
    ctx, lam, theta = started(units=64, batch=10, memory=8000, limit=200, sigma_v=8.0, gain=10.0)
    end = stepped(ctx, theta, range(60))
    found = ctx.problem.metrics(lam, end, ctx.problem.episode("test", 0))
    assert found["return"] > 150 and found["floored"] == 0


def test_gradient_methods_are_refused_and_search_is_not():
    for learner in ("tagi", "adam"):
        task = Control(learner=learner)
        assert "steps of its own, without autograd" in why_not(task, methods.get("bilevel")())
        assert why_not(task, methods.get("random")()) is None
    assert why_not(Control(carried=True), methods.get("fixed")()) is None


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="batch is 200: it must be at most window, 128"):
        Control(algorithm="n_step", batch=200)
    with pytest.raises(ValueError, match="batch is 20: it must be at most memory, 10"):
        Control(batch=20, memory=10)
    assert Control().packages == ("gymnasium",)
    assert Control(environment="lunar_lander").packages == ("gymnasium", "Box2D", "pygame")
