"""Prototypical networks: a case by hand, both forms of the softmax, differences, more ways."""

import pytest
import torch
from oracles import F64, context, differences, given

from metabench.contract.method import State
from metabench.contract.problem import Episode, Problem
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

ProtoNet, Glyphs = methods.get("protonet"), tasks.get("glyphs")
SMALL = {"ways": 3, "shots": 2, "queries": 3, "filters": 2, "meta_batch": 2, "dtype": "float64"}
BODY = {**SMALL, "formulation": "representation"}


class Scaled(Problem):
    """Features lam x of numbers x: support 0, 2 of class 0 and 4 of class 1, query 2 of class 0."""

    def init_outer(self):
        return {"scale": torch.ones(1, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros(2, 1, dtype=F64), "b": torch.zeros(2, dtype=F64)}

    def embed(self, lam, batch):
        return lam["scale"] * batch["x"]

    def inner_loss(self, lam, theta, batch):
        raise AssertionError("there is no inner loss")

    def outer_loss(self, lam, theta, batch):
        logits = self.embed(lam, batch) @ theta["w"].T + theta["b"]
        return torch.nn.functional.cross_entropy(logits, batch["y"])

    def episode(self, split, index):
        def batch(x, y):
            return {"x": torch.tensor(x, dtype=F64)[:, None], "y": torch.tensor(y)}

        return Episode(batch([0.0, 2.0, 4.0], [0, 0, 1]), batch([2.0], [0]), index)


def test_the_case_by_hand():
    """Prototypes 1 and 4, distances 1 and 4: p = 1 / (1 + e^-3)."""
    ctx = given(Scaled(), "episodes", "embedding")
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    found = ProtoNet().hypergradient(ctx, lam, None, episode)
    assert found.theta["w"].tolist() == [[2.0], [8.0]]
    assert found.theta["b"].tolist() == [-1.0, -16.0]
    assert float(found.value) == pytest.approx(0.04858735157, abs=1e-11)
    assert float((-found.value).exp()) == pytest.approx(0.95257412682, abs=1e-11)
    # log(1 + exp(-3 s^2)) at s = 1
    slope = -6 * (1 - 0.95257412682)
    assert float(found.grad["scale"]) == pytest.approx(slope, abs=1e-10)


def test_on_images_it_is_the_softmax_of_distances_and_its_slope():
    ctx = context(Glyphs(**BODY, downsample="pool"))
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 0)

    def loss(p):
        z, x = (problem.embed(p, b) for b in (episode.batch(0), episode.outer))
        c = torch.stack([z[episode.batch(0)["y"] == k].mean(0) for k in range(3)])
        distances = (x[:, None] - c).square().sum(-1)
        return torch.nn.functional.cross_entropy(-distances, episode.outer["y"])

    found = ProtoNet().hypergradient(ctx, lam, None, episode)
    assert float(found.value) == pytest.approx(float(loss(lam)), rel=1e-12)
    some = {"norm4.weight": lam["norm4.weight"]}
    expected = differences(lambda p: loss({**lam, **p}), some)["norm4.weight"]
    torch.testing.assert_close(found.grad["norm4.weight"], expected, rtol=1e-6, atol=1e-8)


def test_it_trains_with_more_ways_than_it_is_tested_with():
    ctx = context(Glyphs(**BODY, train_ways=7))
    method = ProtoNet(outer_lr=1e-2)
    state = method.init(ctx)
    found = method.hypergradient(ctx, state.lam, None, ctx.problem.episode("train", 0))
    assert found.theta["head.weight"].shape == (7, ctx.problem.net.feature_size)
    assert len(ctx.problem.episode("train", 0).outer["y"]) == 7 * 3
    episode = ctx.problem.episode("test", 0)
    theta = method.adapt(ctx, State(state.lam), episode)
    assert theta["head.weight"].shape == (3, ctx.problem.net.feature_size)
    assert set(ctx.problem.metrics(state.lam, theta, episode)) == set(ctx.problem.task.metrics)


def test_a_few_steps_bring_the_query_loss_of_test_episodes_down():
    ctx = context(Glyphs(**{**BODY, "filters": 8, "dtype": "float32"}, train_ways=10))
    method = ProtoNet(outer_lr=1e-2)
    state = method.init(ctx)

    def judged(state):
        losses = []
        for i in range(20):
            episode = ctx.problem.episode("test", i)
            theta = method.adapt(ctx, state, episode)
            losses.append(ctx.problem.metrics(state.lam, theta, episode)["loss"])
        return sum(losses) / len(losses)

    before = judged(state)
    for ctx.step in range(15):
        state, _ = method.step(ctx, state)
    assert judged(state) < 0.8 * before


def test_costs_and_holes():
    ctx = context(Glyphs(**BODY))
    ProtoNet().hypergradient(ctx, ctx.problem.init_outer(), None, ctx.problem.episode("train", 0))
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.outer_gradients, counts.hvps) == (1, 1, 0)
    assert "'representation' it makes features alone" in why_not(Glyphs(), ProtoNet())
    assert "may lack classes" in why_not(Glyphs(**BODY, inner_batch=4), ProtoNet())
    with pytest.raises(SettingError, match="it takes no inner steps"):
        settings.build(ProtoNet, {"inner_steps": 3}, "method protonet")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train_ways": 9}, 'train_ways = 9 needs formulation = "representation"'),
        ({"train_ways": 1, "formulation": "representation"}, "setting train_ways cannot be 1"),
    ],
)
def test_impossible_numbers_of_ways_are_refused(own, said):
    with pytest.raises(SettingError, match=said):
        settings.build(Glyphs, own, "task glyphs")


def test_more_training_ways_than_classes_are_refused():
    with pytest.raises(SettingError, match=r"train_ways = 5000, but the train split has \d+"):
        context(Glyphs(**BODY, train_ways=5000))
