"""Regression by TAGI and by Adam: what is trained, what judges it, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods
from metabench.hypergradients.search.gradient_free import train
from metabench.tasks.tagi_regression import TagiRegression

SMALL = {"n_train": 6, "n_valid": 5, "n_test": 7, "batch": 3, "units": 4}


def test_parts_and_batches():
    problem = context(TagiRegression(**SMALL)).problem
    episode = problem.episode("train", 0)
    epoch = torch.cat([episode.batch(t)["x"] for t in (0, 1)])
    again = torch.cat([episode.batch(t)["x"] for t in (2, 3)])
    assert not torch.equal(epoch, again) and torch.equal(epoch.sort()[0], again.sort()[0])
    assert [len(problem.episode(s, 0).outer["x"]) for s in ("train", "valid", "test")] == [5, 5, 7]
    assert not set(epoch.tolist()) & set(episode.outer["x"].tolist())


def test_the_likelihood_is_that_of_a_normal():
    ctx = context(TagiRegression(**SMALL))
    problem, lam, episode = ctx.problem, ctx.problem.init_outer(), ctx.problem.episode("test", 0)
    theta = problem.init_inner(lam, episode)
    mean, var = problem.observations(lam, theta, episode.outer)
    assert float(var.min()) > 0.2**2
    expected = torch.distributions.Normal(mean, var.sqrt()).log_prob(episode.outer["y"]).mean()
    found = problem.metrics(lam, theta, episode)
    assert found["log_likelihood"] == pytest.approx(float(expected), abs=1e-12)
    residual = (episode.outer["y"] - mean).square().mean()
    assert found["rmse"] == pytest.approx(math.sqrt(float(residual)))


@pytest.mark.parametrize("learner", ["tagi", "adam"])
def test_training_is_counted_and_gets_better(learner):
    ctx = context(TagiRegression(learner=learner))
    lam, episodes = ctx.problem.init_outer(), ctx.training_episodes()
    before, _ = train(ctx, lam, episodes, steps=0, lr=1.0)
    after, _ = train(ctx, lam, episodes, steps=60, lr=1.0)
    assert after < before - 0.2
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.trainings, counts.function_evaluations) == (60, 2, 2)


def test_a_training_goes_on_from_a_pause():
    ctx = context(TagiRegression(**SMALL))
    lam, episodes = ctx.problem.init_outer(), ctx.training_episodes()
    value, end = train(ctx, lam, episodes, steps=5, lr=1.0)
    _, paused = train(ctx, lam, episodes, steps=2, lr=1.0)
    resumed, there = train(ctx, lam, episodes, steps=5, lr=1.0, done=2, paused=paused)
    assert resumed == value and torch.equal(there[0]["theta"]["var"], end[0]["theta"]["var"])


def test_lam_is_what_the_learner_is_told():
    problem = context(TagiRegression(**SMALL)).problem
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    first = problem.init_inner(lam, episode)
    wide = problem.init_inner({**lam, "gain": lam["gain"] * 4}, episode)
    assert torch.allclose(wide["var"], 4 * first["var"])
    assert torch.allclose(wide["mean"], 2 * first["mean"])
    sure = problem.own_step(lam, first, episode.batch(0)).theta["var"]
    noisy = {**lam, "sigma_v": lam["sigma_v"] * 10}
    assert bool((sure <= problem.own_step(noisy, first, episode.batch(0)).theta["var"]).all())


def test_gradient_methods_are_refused_and_search_is_not():
    task = TagiRegression()
    for name in ("bilevel", "ift", "hoag", "stn", "pbgd", "sgld", "one_step"):
        assert "steps of its own, without autograd" in why_not(task, methods.get(name)())
    for name in ("fixed", "random", "grid", "cehpo", "optuna_tpe", "successive_halving"):
        assert why_not(task, methods.get(name)()) is None


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="batch is 7: it must divide n_train, 30"):
        TagiRegression(batch=7)
    with pytest.raises(ValueError, match=r"gain is 50: it must be in 0\.1 to 10"):
        context(TagiRegression(gain=50.0)).problem.init_outer()
