"""Hypernetworks against best responses that are known in closed form, in float64."""

import pytest
import torch
from oracles import F64, context, given

from metabench.contract.problem import Hyper
from metabench.core.capabilities import why_not
from metabench.core.costs import Counts
from metabench.core.registry import methods, solvers, tasks
from metabench.hypergradients.best_response import Moment
from metabench.tasks.families.no_data import NoData

Hypernet = methods.get("hypernet")
Quadratic, Shrinkage = tasks.get("quadratic"), tasks.get("shrinkage")
EVERYWHERE = ("global", "local", "simplified")


def close(found, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=F64).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def moment(method, ctx):
    state = method.init(ctx)
    u = state.memory["u"]
    at = Moment(ctx, method.coordinates(ctx), u, method.deviations(state.memory), episode(ctx))
    return at, state.memory["response"]


def episode(ctx):
    return ctx.problem.episode("train", 0)


def run(method, ctx, steps):
    state = method.init(ctx)
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
    return state, log


# A quadratic inner problem: its best response B lam is affine, and a linear hypernetwork is exact.


@pytest.mark.parametrize("dim", [1, 3])
def test_the_affine_best_response_is_the_minimum_of_training_and_its_hypergradient_is_exact(dim):
    ctx, method = context(Quadratic(dim=dim)), Hypernet()
    at, phi = moment(method, ctx)
    phi = {"value/w": torch.zeros(dim, dtype=F64), "slope/w": ctx.problem.B}
    best = {k: v.clone().requires_grad_() for k, v in phi.items()}
    for noise in torch.randn(4, dim, generator=torch.Generator().manual_seed(0), dtype=F64):
        loss = method.loss(at, best, noise, at.episode.batch(0))
        for g in torch.autograd.grad(loss, list(best.values())):
            close(g, torch.zeros_like(g))
    _, g = method.tune(at, phi, {"u": at.u})
    close(g["u"], ctx.problem.exact_hypergradient(at.coordinates.lam(at.u)))
    if dim == 1:
        close(g["u"], -0.15)


@pytest.mark.parametrize("training", ["global", "local"])
@pytest.mark.parametrize("network", ["linear", "factorised"])
def test_training_finds_the_exact_hypergradient_by_itself(training, network):
    method = Hypernet(
        training=training, network=network, scale=0.5, inner_steps=700, inner_lr=0.1, warmup=1,
        units=1 if network == "factorised" else None, start=0.5,
    )  # fmt: skip
    ctx = context(Quadratic())
    state, log = method.step(ctx, method.init(ctx))
    assert log == {} and float(state.lam["lam"]) == 0.4
    close(method.adapt(ctx, state, episode(ctx))["w"], 0.6)
    at, _ = moment(method, ctx)
    loss, g = method.tune(at, state.memory["response"], {"u": at.u})
    close(g["u"], -0.15, 1e-9)
    close(loss, 0.5 * 0.1**2)


def test_looking_at_one_lam_alone_finds_the_minimiser_and_no_slope():
    """Simplified training at a lam that stays leaves one direction of (B, b) as it started."""
    method = Hypernet(training="simplified", inner_steps=500, inner_lr=0.1, warmup=1)
    ctx = context(Quadratic())
    before = method.init(ctx).memory["response"]
    state, _ = method.step(ctx, method.init(ctx))
    phi = state.memory["response"]
    close(method.adapt(ctx, state, episode(ctx))["w"], 0.6)
    across = [float(p["slope/w"] - 0.4 * p["value/w"]) for p in (before, phi)]
    assert across[0] == pytest.approx(across[1], abs=1e-12)
    assert abs(float(phi["slope/w"]) - 1.5) > 0.5


@pytest.mark.parametrize("training", EVERYWHERE)
def test_every_training_reaches_the_best_lam_of_a_quadratic(training):
    method = Hypernet(training=training, inner_steps=4, inner_lr=0.1, scale=0.5)
    ctx = context(Quadratic(carried=True))
    state, log = run(method, ctx, 150)
    assert log["outer_loss"] < 1e-4
    assert float(ctx.problem.outer_loss({}, state.theta, {})) < 1e-4
    if training != "simplified":
        assert float(state.lam["lam"]) == pytest.approx(0.7 / 1.5, abs=1e-2)


# Another best response, 1 / (1 + e^u): a wide enough network learns all of it.


def test_a_global_hypernetwork_and_then_lam_reach_the_optimum_of_a_grid():
    grid = torch.linspace(-6, 6, 1201, dtype=F64)
    best = grid[(torch.sigmoid(-grid) - 0.3).square().argmin()]
    method = Hypernet(
        training="global", alternate=False, warmup=40, inner_steps=10, inner_lr=0.02,
        network="relu", units=20, scale=1.2, samples=4, outer_lr=0.05, start=0.1,
    )  # fmt: skip
    ctx = context(Shrinkage(first_log_penalty=0.0), "adam")
    state, _ = run(method, ctx, 40)
    trained, counted = state.memory["response"], ctx.meter.counts.inner_gradients
    u = torch.linspace(-1.5, 1.5, 11, dtype=F64)
    errors = [abs(float(method.theta(trained, x[None])["w"]) - float(torch.sigmoid(-x))) for x in u]
    assert max(errors) < 0.05
    for _ in range(100):
        state, _ = method.step(ctx, state)
        ctx.step += 1
    assert state.memory["response"] is trained and ctx.meter.counts.inner_gradients == counted
    assert float(state.lam["log_penalty"]) == pytest.approx(float(best), abs=0.2)


# The network, its samples and its costs.


class Weights(NoData):
    """theta of the paper's linear model, and nothing else."""

    device = torch.device("cpu")

    def __init__(self, n):
        self.hypers = (Hyper("decay", (n,), -1.0, 1.0),)

    def init_outer(self):
        return {"decay": torch.zeros(*self.hypers[0].shape)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros(784, 10), "b": torch.zeros(10)}

    def inner_loss(self, lam, theta, batch):
        return sum(v.square().sum() for v in theta.values()) * lam["decay"].exp().sum()

    def outer_loss(self, lam, theta, batch):
        return theta["w"].sum()


@pytest.mark.parametrize(
    ("n", "network", "expected"),
    [(1, "relu", 400_450), (1, "linear", 15_700), (10, "linear", 86_350),
     (7850, "factorised", 164_860)],
)  # fmt: skip
def test_networks_have_as_many_weights_as_in_the_paper(n, network, expected):
    state = Hypernet(network=network).init(given(Weights(n), "best_response"))
    assert sum(v.numel() for v in state.memory["response"].values()) == expected


@pytest.mark.parametrize("training", EVERYWHERE)
def test_samples_lie_where_they_should_and_within_bounds(training):
    method = Hypernet(training=training, scale=0.5, samples=200)
    ctx = given(Weights(1), "best_response", "per_example_lam")
    at, _ = moment(method, ctx)
    at = at._replace(u=torch.tensor([0.9]))
    seen = torch.stack(method.noises(at, {"x": torch.zeros(5)}, 0)) + at.u
    assert seen.shape == (1 if training == "simplified" else 200, 1)
    assert seen.min() >= -1 and seen.max() <= 1
    if training == "simplified":
        assert float(seen) == pytest.approx(0.9)
    else:
        assert (seen == 1).any()
        assert float(seen.median()) == pytest.approx(0.9 if training == "local" else 0.0, abs=0.1)


def test_counts_of_a_step():
    for training, inner in (("global", 6), ("local", 6), ("simplified", 2)):
        ctx = context("quadratic")
        method = Hypernet(training=training, inner_steps=2, samples=3)
        method.step(ctx, method.init(ctx))
        assert ctx.meter.counts == Counts(inner_gradients=inner, outer_gradients=1)


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="no hidden units"):
        Hypernet(units=3)
    for wrong in ({"training": "global"}, {"training": "local", "warmup": 3}):
        with pytest.raises(ValueError, match="needs training = 'global' and a warmup"):
            Hypernet(alternate=False, **wrong)


def test_a_long_lam_needs_a_hidden_layer():
    task = tasks.get("digit_regression")(decays="weight", penalty="squared")
    assert "too many scalars" in why_not(task, Hypernet())
    assert why_not(task, Hypernet(network="factorised")) is None
    noisy = why_not(task, Hypernet(network="relu"), solvers.get("langevin")())
    assert noisy.startswith("a best-response network takes inner steps of its own")
