"""Pre-training on all classes and a head an episode: by hand, by differences, and what it costs."""

import pytest
import torch
from oracles import F64, context, differences, given

from metabench.contract.method import State
from metabench.contract.problem import Episode, Problem
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks

LinearProbe, Glyphs = methods.get("linear_probe"), tasks.get("glyphs")
BODY = {
    "ways": 3, "shots": 2, "queries": 3, "filters": 2, "meta_batch": 2, "dtype": "float64",
    "formulation": "representation", "downsample": "pool",
}  # fmt: skip


class Scaled(Problem):
    """Features lam x of numbers x; base classes 0, 1, 2, of which a batch has 1 and -3."""

    base_classes = 3

    def init_outer(self):
        return {"scale": torch.full((1,), 2.0, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros(2, 1, dtype=F64), "b": torch.zeros(2, dtype=F64)}

    def embed(self, lam, batch):
        return lam["scale"] * batch["x"]

    def inner_loss(self, lam, theta, batch):
        logits = self.embed(lam, batch) @ theta["w"].T + theta["b"]
        return torch.nn.functional.cross_entropy(logits, batch["y"])

    outer_loss = inner_loss

    def base_batch(self, step, size):
        return {"x": torch.tensor([[1.0], [-3.0]], dtype=F64), "y": torch.tensor([0, 2])}

    def episode(self, split, index):
        batch = {"x": torch.tensor([[1.0], [5.0]], dtype=F64), "y": torch.tensor([0, 1])}
        return Episode(batch, batch, index)


def stepped(method, ctx, state):
    new, log = method.step(ctx, state)
    ctx.step += 1
    return new, log


def test_the_first_steps_by_hand():
    """From a head of zeros p = 1/3, z = 2, -6; the gradient in W is mean (p - y) z, in lam 0."""
    ctx = given(Scaled(), "episodes", "embedding", "base_classes", "inner_loss")
    method = LinearProbe(outer_solver="sgd", outer_lr=0.5)
    state, log = stepped(method, ctx, method.init(ctx))
    assert log["outer_loss"] == pytest.approx(1.0986122886681098, abs=1e-14)
    p, z = torch.full((2, 3), 1 / 3, dtype=F64), torch.tensor([[2.0], [-6.0]], dtype=F64)
    y = torch.tensor([[1.0, 0, 0], [0, 0, 1]], dtype=F64)
    weight, bias = state.learned["base.weight"], state.learned["base.bias"]
    torch.testing.assert_close(weight, -0.5 * (p - y).T @ z / 2, rtol=0, atol=1e-14)
    torch.testing.assert_close(bias, -0.5 * (p - y).mean(0), rtol=0, atol=1e-14)
    assert float(state.lam["scale"]) == 2.0

    def loss(lam):
        logits = lam["scale"] * torch.tensor([[1.0], [-3.0]], dtype=F64) @ weight.T + bias
        return torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]))

    expected = 2.0 - 0.5 * float(differences(loss, state.lam)["scale"])
    again, _ = stepped(method, ctx, state)
    assert float(again.lam["scale"]) == pytest.approx(expected, abs=1e-9)
    assert ctx.meter.counts.inner_gradients == 2 and ctx.meter.counts.outer_gradients == 0


def test_a_head_of_an_episode_is_trained_by_plain_steps():
    ctx = given(Scaled(), "episodes", "embedding", "base_classes", "inner_loss")
    lam = ctx.problem.init_outer()
    theta = LinearProbe(inner_steps=1, inner_lr=0.1).adapt(
        ctx, State(lam), ctx.problem.episode("test", 0)
    )
    # z = 2, 10: the gradient of class 0 is mean (-1/2 2, 1/2 10) = 2
    assert theta["w"].tolist() == [[pytest.approx(-0.2)], [pytest.approx(0.2)]]
    assert theta["b"].tolist() == [0.0, 0.0]
    steps = LinearProbe(inner_steps=1, test_steps=7)
    assert ctx.problem.episode("test", 0).batch(6) is not None
    more = steps.adapt(ctx, State(lam), ctx.problem.episode("test", 0))
    assert float(more["w"][1]) != pytest.approx(0.2)


def test_base_batches_are_labelled_images_of_the_training_split():
    problem = context(Glyphs(**BODY)).problem
    batch = problem.base_batch(3, 40)
    assert batch["x"].shape == (40, 1, 28, 28) and batch["y"].shape == (40,)
    source = problem.splits["train"]
    assert problem.base_classes == len(source)
    for x, y in zip(batch["x"], batch["y"], strict=True):
        drawings = source.images[y].to(x) / 255
        assert any(torch.equal(x, one) for one in drawings)
    assert torch.equal(batch["x"], problem.base_batch(3, 40)["x"])
    assert not torch.equal(batch["y"], problem.base_batch(4, 40)["y"])


def test_the_loss_of_one_batch_falls_and_costs_one_gradient_a_step(monkeypatch):
    ctx = context(Glyphs(**{**BODY, "filters": 8, "dtype": "float32"}))
    batch = ctx.problem.base_batch(0, 64)
    monkeypatch.setattr(ctx.problem, "base_batch", lambda step, size: batch)
    method = LinearProbe(outer_lr=1e-2, batch=64, inner_steps=5)
    state = method.init(ctx)
    assert state.learned["base.weight"].shape == (ctx.problem.base_classes, 8)
    losses = []
    for _ in range(25):
        state, log = stepped(method, ctx, state)
        losses.append(log["outer_loss"])
    assert losses[-1] < losses[0] - 1.0
    assert ctx.meter.counts.inner_gradients == 25
    theta = method.adapt(ctx, state, ctx.problem.episode("test", 0))
    assert theta["head.weight"].shape == (3, 8)


def test_holes():
    assert why_not(Glyphs(**BODY), LinearProbe()) is None
    assert "makes features alone" in why_not(Glyphs(), LinearProbe())
