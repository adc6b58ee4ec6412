"""CAVIA: the scalar case by hand, and a context in a network by differences."""

import pytest
import torch
from oracles import F64, after_training, context, differences, given, hypergradient

from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

CAVIA, Glyphs = methods.get("cavia"), tasks.get("glyphs")
OFFERS = (*GRADIENTS, "context", "inner_loss", "lam_in_inner_loss")
SMALL = {
    "ways": 2, "shots": 2, "queries": 3, "filters": 2, "meta_batch": 2, "dtype": "float64",
    "formulation": "context", "context": 3, "downsample": "pool",
}  # fmt: skip


class Line(Problem):
    """f = s phi, (f - 1)^2 inside and outside: one step of size 1 leads to phi = 2 s."""

    def __init__(self, s: float = 0.5) -> None:
        self.s = s

    def init_outer(self):
        return {"s": torch.tensor(self.s, dtype=F64)}

    def init_inner(self, lam, episode):
        return {"context": torch.zeros((), dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        return (lam["s"] * theta["context"] - 1).square()

    outer_loss = inner_loss

    def episode(self, split, index):
        return Episode({}, {}, index)


@pytest.mark.parametrize(("order", "slope"), [("second", -2.0), ("first", -1.0)])
def test_the_scalar_case_by_hand(order, slope):
    ctx = given(Line(), *OFFERS)
    method = CAVIA(inner_steps=1, order=order)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    found = method.hypergradient(ctx, lam, None, episode)
    assert float(found.theta["context"]) == pytest.approx(1.0, abs=1e-14)
    assert float(found.value) == pytest.approx(0.25, abs=1e-14)
    assert float(found.grad["s"]) == pytest.approx(slope, abs=1e-13)


def test_the_optimum_of_the_scalar_case():
    ctx = given(Line(), *OFFERS)
    method = CAVIA(inner_steps=1, outer_solver="sgd", outer_lr=0.05)
    state = method.init(ctx)
    for ctx.step in range(200):
        state, _ = method.step(ctx, state)
    assert float(state.lam["s"]) == pytest.approx(0.5**0.5, abs=1e-7)


def test_a_context_of_zero_leaves_the_network_as_it_is():
    one, other = (context(Glyphs(**{**SMALL, "formulation": f})) for f in ("context", "init"))
    lam, weights = one.problem.init_outer(), other.problem.init_outer()
    episode = one.problem.episode("train", 0)
    theta = one.problem.init_inner(lam, episode)
    assert {k: v.shape for k, v in theta.items()} == {"context": (3,)} and not theta[
        "context"
    ].any()
    assert lam["film.weight"].shape == (4, 3) and set(weights) < set(lam)
    values = [float(one.problem.inner_loss(lam, theta, episode.batch(0)))]
    values.append(float(other.problem.inner_loss(weights, weights, episode.batch(0))))
    assert values[0] == values[1]


def test_the_modulation_is_after_batch_norm(monkeypatch):
    """(1 + gamma) x + beta of what the third batch norm gives, map by map."""
    ctx = context(Glyphs(**SMALL))
    problem, lam = ctx.problem, ctx.problem.init_outer()
    episode = problem.episode("train", 0)
    lam = {**lam, "film.bias": torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=F64)}
    theta = {"context": torch.tensor([0.5, -1.0, 2.0], dtype=F64)}
    found = problem.logits(lam, theta, episode.outer)
    gamma, beta = (lam["film.weight"] @ theta["context"] + lam["film.bias"]).chunk(2)
    x = episode.outer["x"]
    for i in range(1, 5):
        x = torch.nn.functional.conv2d(x, lam[f"conv{i}.weight"], padding=1)
        x = torch.nn.functional.batch_norm(
            x, None, None, lam[f"norm{i}.weight"], lam[f"norm{i}.bias"], training=True
        )
        if i == 3:
            x = (1 + gamma.view(-1, 1, 1)) * x + beta.view(-1, 1, 1)
        x = torch.nn.functional.max_pool2d(x, 2).relu()
    x = x.mean(dim=(2, 3)) if problem.net.mean else x.flatten(1)
    expected = x @ lam["head.weight"].T + lam["head.bias"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_it_is_the_slope_through_the_steps_and_what_bilevel_gives():
    ctx = context(Glyphs(**SMALL))
    method = CAVIA(inner_lr=0.3)
    lam = ctx.problem.init_outer()
    found = hypergradient(ctx, "cavia", inner_lr=0.3)
    f = after_training(method, ctx)
    some = {k: lam[k] for k in ("film.weight", "film.bias", "head.bias", "norm3.bias")}
    expected = differences(lambda p: f({**lam, **p}), some, 1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    other = hypergradient(ctx, "bilevel", inner_steps=2, inner_lr=0.3)
    assert all(torch.equal(found[k], other[k]) for k in lam)


def test_holes_and_refusals():
    assert why_not(Glyphs(**SMALL), CAVIA()) is None
    assert "modulates a network" in why_not(Glyphs(), CAVIA())
    assert why_not(Glyphs(**SMALL), settings.build(methods.get("maml"), {}, "maml")) == (
        "theta is context parameters here (formulation = 'context'), which start at zero"
    )
    with pytest.raises(SettingError, match='network = "resnet12" has none'):
        settings.build(
            tasks.get("cifar_fs"), {"network": "resnet12", "formulation": "context"}, "cifar_fs"
        )
