"""The constants of an optimiser as lam: what trains theta, what judges it, what counts when."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import context, differences
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, solvers
from metabench.hypergradients.search.gradient_free import place, train
from metabench.tasks.optimiser_constants import OptimiserConstants, OptimiserConstantsProblem
from metabench.tasks.step_size import StepSize

CPU = torch.device("cpu")


def few(**settings):
    """The problem on 60 and 30 invented images of 4x4 pixels."""
    gen = torch.Generator().manual_seed(0)
    images = {
        split: (torch.rand(n, 1, 4, 4, generator=gen), torch.arange(n) % 10)
        for split, n in (("train", 60), ("test", 30))
    }
    sizes = {"n_train": 20, "n_valid": 30, "n_test": 25, "batch": 5, "shrink": 1, "hidden": 3}
    task = OptimiserConstants(**{**sizes, "dtype": "float64", **settings})
    ctx = context(StepSize())
    ctx.problem = OptimiserConstantsProblem(task, Seeds.of(0), CPU, images)
    return ctx


def test_parts_are_apart_and_the_test_split_alone_sees_test_images():
    problem = few().problem
    assert {k: len(v["y"]) for k, v in problem.parts.items()} == {
        "train": 20, "valid": 30, "test": 25, "selection": 10,
    }  # fmt: skip
    rows = [tuple(x.flatten().tolist()) for part in problem.parts.values() for x in part["x"]]
    assert len(set(rows)) == 85
    for split, part in {"train": "valid", **{k: k for k in ("valid", "test", "selection")}}.items():
        assert problem.episode(split, 3).outer["x"] is problem.parts[part]["x"]


def test_every_episode_is_a_training_of_its_own():
    problem = few().problem
    one, same, other = (problem.episode("train", i) for i in (0, 0, 1))
    assert torch.equal(one.batch(4)["x"], same.batch(4)["x"])
    assert not torch.equal(one.batch(4)["x"], other.batch(4)["x"])
    assert not torch.equal(one.batch(4)["x"], one.batch(5)["x"])
    lam = problem.init_outer()
    a, b, c = (problem.init_inner(lam, e) for e in (one, same, other))
    assert torch.equal(a["head.weight"], b["head.weight"])
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_the_inner_gradient_has_the_decay_of_the_weights():
    ctx = few()
    problem, lam = ctx.problem, ctx.problem.init_outer()
    lam["decay"] = torch.tensor(0.3, dtype=torch.float64)
    episode = problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    g = ctx.inner_grad(lam, theta, episode.batch(0), create_graph=False)
    expected = differences(lambda t: problem.inner_loss(lam, t, episode.batch(0)), theta)
    torch.testing.assert_close(g, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("chosen", ["sgd", "momentum", "adam"])
def test_lam_is_what_trains(chosen):
    """Against torch.optim, which shares no code; weights decay by way of the loss."""
    ctx = few(tune="optimiser")
    problem, index = ctx.problem, ["sgd", "momentum", "adam"].index(chosen)
    lam = {**problem.init_outer(), "optimiser": torch.tensor(float(index), dtype=torch.float64)}
    lam |= {"rate": lam["rate"] * 0.5, "momentum": lam["momentum"] * 0.8, "decay": lam["rate"]}
    episodes = [problem.episode("train", 0)]
    value, end = train(ctx, lam, episodes, steps=4, lr=99.0)

    theta = {k: v.requires_grad_() for k, v in problem.init_inner(lam, episodes[0]).items()}
    rate, decay, momentum = 0.05, 0.1, 0.72
    groups = [
        {"params": [v for k, v in theta.items() if k.endswith(part)], "weight_decay": d}
        for part, d in (("weight", decay), ("bias", 0.0))
    ]
    optimiser = {
        "sgd": lambda: torch.optim.SGD(groups, rate),
        "momentum": lambda: torch.optim.SGD(groups, rate, momentum=momentum),
        "adam": lambda: torch.optim.Adam(groups, rate),
    }[chosen]()
    for step in range(4):
        batch = episodes[0].batch(step)
        optimiser.zero_grad()
        hidden = F.linear(batch["x"].flatten(1), theta["layer0.weight"], theta["layer0.bias"])
        scores = F.linear(hidden.relu(), theta["head.weight"], theta["head.bias"])
        F.cross_entropy(scores, batch["y"]).backward()
        optimiser.step()
    there = autodiff.detach(theta)
    torch.testing.assert_close(end[0]["theta"], there, rtol=1e-10, atol=1e-12)
    assert value == pytest.approx(float(problem.outer_loss(lam, there, episodes[0].outer)))


def test_the_momentum_counts_only_for_momentum():
    problem = few(tune="optimiser").problem
    first = problem.init_outer()
    for optimiser, counts in ((0.1, False), (0.5, True), (0.9, False)):
        lam = place([0.5, 0.5, optimiser, 0.2], problem.hypers, first)
        assert (float(lam["momentum"]) != float(first["momentum"])) == counts
        assert float(lam["rate"]) == pytest.approx(math.sqrt(1e-4 * 10))


def test_gradient_methods_are_refused_with_the_reason():
    task = OptimiserConstants()
    said = why_not(task, methods.get("bilevel")(), solvers.get("sgd")())
    assert said == "lam sets the inner solver: it is searched for, not differentiated"
    assert why_not(task, methods.get("random")()) is None
