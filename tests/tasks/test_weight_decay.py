"""One decay a weight on a few images: parts, losses, hypergradients, the comparison of inverses."""

import importlib

import pytest
import torch
from oracles import F64, given, hypergradient

from metabench.contract.method import State
from metabench.contract.problem import GRADIENTS
from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

WeightDecay = tasks.get("weight_decay")
Problem = importlib.import_module("metabench.tasks.weight_decay").WeightDecayProblem
GEN = torch.Generator().manual_seed(0)
IMAGES = {
    split: (torch.rand(n, 1, 8, 8, generator=GEN), torch.arange(n) % 10)
    for split, n in (("train", 60), ("test", 30))
}
SMALL = {"n_train": 20, "n_valid": 20, "n_test": 30, "shrink": 4, "hidden": 3, "dtype": "float64"}


def made(**set_):
    return Problem(WeightDecay(**{**SMALL, **set_}), Seeds.of(0), torch.device("cpu"), IMAGES)


def context(**set_):
    return given(made(**set_), *GRADIENTS, "lam_in_inner_loss")


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_parts_are_apart_and_drawn_from_the_seed():
    problem = made(shrink=1)
    sizes = {k: tuple(p["x"].shape) for k, p in problem.parts.items()}
    assert sizes == {"train": (20, 64), "valid": (20, 64), "test": (30, 64), "selection": (20, 64)}
    rows = {tuple(x.tolist()) for k in sizes for x in problem.parts[k]["x"] if k != "test"}
    assert len(rows) == 60
    again = made(shrink=1).parts["train"]
    assert torch.equal(problem.parts["train"]["x"], again["x"])
    for x, y in zip(again["x"], again["y"], strict=True):
        i = (IMAGES["train"][0].flatten(1).double() == x).all(1).nonzero().item()
        assert IMAGES["train"][1][i] == y


def test_too_many_images():
    with pytest.raises(SettingError, match=r"n_train \+ n_valid is 61; mnist has 60"):
        made(n_train=41)
    with pytest.raises(SettingError, match="n_test is 31; mnist has 30"):
        made(n_test=31)
    with pytest.raises(ValueError, match="two sizes"):
        WeightDecay(dataset="cifar10")


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_losses(network):
    problem = made(network=network)
    lam, theta = problem.init_outer(), problem.init_inner({}, None)
    assert sum(v.numel() for v in lam.values()) == sum(v.numel() for v in theta.values())
    batch = problem.parts["train"]
    own = problem.module(batch["x"])
    fit = torch.nn.functional.cross_entropy(own, batch["y"])
    decay = torch.exp(torch.tensor(-4.0, dtype=F64)) / 2
    penalty = decay * sum(v.square().sum() for v in theta.values())
    close(problem.inner_loss(lam, theta, batch), (fit + penalty).detach())
    valid = problem.parts["valid"]
    fit = torch.nn.functional.cross_entropy(problem.module(valid["x"]), valid["y"])
    close(problem.outer_loss(lam, theta, valid), fit.detach())


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_exact_inverse_and_conjugate_gradient_are_the_tasks_own(network):
    ctx = context(network=network, trained=30, first_log_decay=-1.0)
    theta = ctx.problem.init_inner({}, None)
    true = ctx.problem.exact_hypergradient(theta)
    flat = torch.cat([v.reshape(-1) for v in theta.values()])
    for set_ in ({"inverse": "exact"}, {"inverse": "cg", "terms": 120}):
        found = hypergradient(ctx, "ift", theta=theta, inner_steps=0, **set_)
        close(torch.cat([v.reshape(-1) for v in found.values()]), true, 1e-9)
    assert len(flat) == len(true)


def test_trained_weights_are_plain_steps():
    problem, start = made(trained=3), made()
    theta = start.init_inner({}, None)
    for _ in range(3):
        leaf = {k: v.clone().requires_grad_() for k, v in theta.items()}
        loss = start.inner_loss(start.init_outer(), leaf, start.parts["train"])
        g = torch.autograd.grad(loss, list(leaf.values()))
        theta = {k: v - 0.1 * d for (k, v), d in zip(theta.items(), g, strict=True)}
    for k, v in problem.init_inner({}, None).items():
        close(v, theta[k])


def judged(ctx, **set_):
    """The metrics after one outer step, as a suite takes it."""
    method = methods.get("ift")(inner_steps=0, outer_solver="sgd", outer_lr=1.0, **set_)
    state, _ = method.step(ctx, method.init(ctx))
    return ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("valid", 0))


def test_the_comparison_of_inverses():
    ctx = context(trained=300, against_exact=True, first_log_decay=-1.0)
    exact, cg = judged(ctx, inverse="exact"), judged(ctx, inverse="cg", terms=100)
    for found in (exact, cg):
        assert found["cosine"] == pytest.approx(1, abs=1e-9)
        assert found["distance"] == pytest.approx(0, abs=1e-8)
    series = [judged(ctx, terms=k, alpha=0.5) for k in (0, 5, 20)]
    cosines, distances = ([s[k] for s in series] for k in ("cosine", "distance"))
    assert cosines == sorted(cosines) and distances == sorted(distances)[::-1]
    assert cosines[0] < cosines[2] < 1 and distances[0] > distances[2] > 0


def test_a_lam_that_has_not_moved_has_no_direction():
    problem = made(against_exact=True)
    found = problem.metrics(
        problem.init_outer(), problem.init_inner({}, None), problem.episode("valid", 0)
    )
    assert found["cosine"] == 0.0 and found["distance"] == pytest.approx(1.0)


def test_metrics_of_every_part():
    problem = made()
    theta = problem.init_inner({}, None)
    found = problem.metrics(problem.init_outer(), theta, problem.episode("test", 0))
    assert found["accuracy"] == found["test_accuracy"] and found["loss"] == found["test_loss"]
    assert "cosine" not in found and 0 <= found["valid_accuracy"] <= 1


def test_a_decay_a_weight_overfits_the_validation_images():
    ctx = context(network="linear", shrink=1)
    method = methods.get("ift")(
        inner_steps=10, inner_lr=0.1, terms=10, outer_lr=0.1, outer_solver="adam"
    )
    state: State = method.init(ctx)

    def loss(state):
        return ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("valid", 0))["loss"]

    before = loss(state)
    for step in range(30):
        ctx.step = step
        state, _ = method.step(ctx, state)
    plain = methods.get("fixed")(inner_steps=10, inner_lr=0.1)
    other = plain.init(ctx)
    for step in range(30):
        ctx.step = step
        other, _ = plain.step(ctx, other)
    assert loss(state) < min(before, loss(other))
