"""Pre-training on all classes and a head an episode: by hand, by differences, and what it costs.

Baseline++'s heads of cosines against torch's weight normalisation, differentiated by autograd.
"""

import importlib
import math

import pytest
import torch
from oracles import F64, context, differences, given

from metabench.contract.method import State
from metabench.contract.problem import Episode, Problem
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, solvers, tasks
from metabench.core.settings import values

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


probe = importlib.import_module("metabench.methods.linear_probe")
COSINES = {**BODY, "unit_features": True}


def weight_normed(direction, length):
    """A linear layer without bias under torch's weight normalisation, as in Chen's code."""
    layer = torch.nn.Linear(direction.shape[1], len(direction), bias=False, dtype=F64)
    layer = torch.nn.utils.parametrizations.weight_norm(layer, dim=0)
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(length)
        layer.parametrizations.weight.original1.copy_(direction)
    return layer


def parts(layer):
    both = layer.parametrizations.weight
    return both.original1.detach(), both.original0.detach()


@pytest.mark.parametrize(
    ("classes", "scale", "least"), [(5, 2, 0.0707), (200, 2, 1.5358), (4112, 10, 8.5e-6)]
)
def test_with_lengths_of_one_the_loss_has_a_floor(classes, scale, least):
    """log(1 + (C - 1) e^-2s), reached where the right cosine is 1 and all others are -1: with
    lengths of 1, which are learned, so that training may go below."""
    floor = math.log1p((classes - 1) * math.exp(-2 * scale))
    assert floor == pytest.approx(least, rel=1e-2)
    gen, f = torch.Generator().manual_seed(0), 3
    z = torch.nn.functional.normalize(torch.randn(50, f, generator=gen, dtype=F64))
    head = {
        "cosine.direction": 7 * torch.randn(classes, f, generator=gen, dtype=F64),
        "cosine.length": torch.ones(classes, 1, dtype=F64),
    }
    y = torch.randint(classes, (50,), generator=gen)
    weight = probe.as_weight(head)
    losses = torch.nn.functional.cross_entropy(z @ weight.T, y, reduction="none")
    assert float(losses.min()) >= floor
    torch.testing.assert_close(weight.norm(dim=1), torch.full((classes,), float(scale), dtype=F64))
    head["cosine.direction"] = -z[:1].repeat(classes, 1)
    head["cosine.direction"][2] = 0.1 * z[0]
    best = torch.nn.functional.cross_entropy(z[:1] @ probe.as_weight(head).T, torch.tensor([2]))
    assert float(best) == pytest.approx(floor, rel=1e-9)
    head["cosine.length"] *= 1.5
    longer = torch.nn.functional.cross_entropy(z[:1] @ probe.as_weight(head).T, torch.tensor([2]))
    assert float(longer) < 0.5 * floor


def test_training_steps_are_those_of_weight_normalisation():
    """Body, directions and lengths, by plain steps on batches of all classes."""
    ctx = context(Glyphs(**COSINES))
    method = LinearProbe(head="cosine", outer_solver="sgd", outer_lr=0.5, batch=12)
    state = method.init(ctx)
    assert set(state.learned) == {"cosine.direction", "cosine.length"}
    direction, length = state.learned["cosine.direction"], state.learned["cosine.length"]
    torch.testing.assert_close(length, direction.norm(dim=1, keepdim=True))
    assert float(direction.abs().max()) <= direction.shape[1] ** -0.5
    scale = 10.0
    assert len(direction) == ctx.problem.base_classes > 200
    layer = weight_normed(direction, length)
    body = {k: v.clone().requires_grad_() for k, v in state.lam.items()}
    sgd = torch.optim.SGD([*body.values(), *layer.parameters()], 0.5)
    for step in range(3):
        batch = ctx.problem.base_batch(step, 12)
        z = ctx.problem.net.features(body, batch["x"])
        z = z / (z.square().sum(1, keepdim=True) + 1e-10).sqrt()
        sgd.zero_grad()
        loss = torch.nn.functional.cross_entropy(scale * layer(z), batch["y"])
        loss.backward()
        sgd.step()
        state, log = stepped(method, ctx, state)
        assert log["outer_loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
        for found, expected in zip(
            (state.learned["cosine.direction"], state.learned["cosine.length"]),
            parts(layer), strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for k, v in body.items():
            torch.testing.assert_close(state.lam[k], v.detach(), rtol=0, atol=1e-11)
    moved = state.learned["cosine.length"] - length
    assert float(moved.abs().max()) > 1e-2
    assert ctx.meter.counts.inner_gradients == 3


@pytest.mark.parametrize("solver", ["sgd", "momentum"])
def test_a_head_of_cosines_is_trained_by_the_solver_and_is_linear(solver):
    rule = {"sgd": {}, "momentum": {"momentum": 0.9, "weight_decay": 1e-2}}[solver]
    ctx = context(Glyphs(**COSINES), solvers.get(solver)(**rule))
    method = LinearProbe(head="cosine", inner_steps=4, inner_lr=0.2)
    state, episode = method.init(ctx), ctx.problem.episode("test", 3)
    start = state.memory["episode_head"]
    layer = weight_normed(start["cosine.direction"], start["cosine.length"])
    sgd = torch.optim.SGD(layer.parameters(), 0.2, **rule)
    support = episode.batch(0)
    z = ctx.problem.embed(state.lam, support)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z), dtype=F64), rtol=0, atol=1e-6)
    for _ in range(4):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(2.0 * layer(z), support["y"]).backward()
        sgd.step()
    theta = method.adapt(ctx, state, episode)
    assert list(theta) == ["head.weight", "head.bias"] and not theta["head.bias"].any()
    torch.testing.assert_close(
        theta["head.weight"], 2.0 * layer.weight.detach(), rtol=1e-12, atol=0
    )
    direction, length = parts(layer)
    again = probe.as_weight({"cosine.direction": direction, "cosine.length": length})
    torch.testing.assert_close(theta["head.weight"], again, rtol=1e-12, atol=0)
    query = 2.0 * layer(ctx.problem.embed(state.lam, episode.outer)).detach()
    y = episode.outer["y"]
    found = ctx.problem.metrics(state.lam, theta, episode)
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(query, y)))
    assert found["accuracy"] == float((query.argmax(1) == y).double().mean())


def test_holes_of_a_head_of_cosines():
    method = LinearProbe(head="cosine")
    assert why_not(Glyphs(**COSINES), method) is None
    assert "with unit_features = true they have 1" in why_not(Glyphs(**BODY), method)
    assert why_not(Glyphs(), method).count("makes features alone") == 1
    langevin = solvers.get("langevin")()
    assert "without noise" in why_not(Glyphs(**COSINES), method, langevin)
    assert "head" not in values(LinearProbe()) and values(method)["head"] == "cosine"
