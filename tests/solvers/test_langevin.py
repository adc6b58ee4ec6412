"""The inner solver langevin: its step, its stationary law, and noise that is data."""

import math

import pytest
import torch
from oracles import F64, LinearEpisodes, SmallNet, context, differences, given, hypergradient

from metabench.conformance.harness import Harness, snapshot, unchanged
from metabench.contract.method import inner_loop
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, solvers, tasks

Langevin = solvers.get("langevin")
OFFERS = (*GRADIENTS, "lam_is_initialisation", "head", "episodes")


def start():
    gen = torch.Generator().manual_seed(0)
    return {k: torch.randn(n, generator=gen, dtype=F64) for k, n in (("a", 3), ("b", 2))}


def draws():
    gen = torch.Generator().manual_seed(1)
    return {k: torch.randn(n, generator=gen, dtype=F64) for k, n in (("a", 3), ("b", 2))}


def test_a_step():
    solver = Langevin(temperature=0.3, noise=2.0)
    theta, g, xi = start(), {k: v**3 for k, v in start().items()}, draws()
    held = [v.clone() for x in (theta, g, xi) for v in x.values()]
    size = 2.0 * math.sqrt(2 * 0.07 * 0.3)
    for lr in (0.07, torch.tensor(0.07, dtype=F64), {k: torch.full_like(v, 0.07)
                                                     for k, v in theta.items()}):  # fmt: skip
        new, memory = solver.update(theta, g, {}, lr, xi)
        assert memory == {}
        for k, v in new.items():
            expected = theta[k] - 0.07 * g[k] + size * xi[k]
            torch.testing.assert_close(v, expected, rtol=1e-12, atol=1e-12)
    after = [v for x in (theta, g, xi) for v in x.values()]
    assert all(torch.equal(x, y) for x, y in zip(held, after, strict=True))
    assert solver.sampled_temperature == pytest.approx(1.2)


@pytest.mark.parametrize("solver", [Langevin(temperature=0.0), Langevin(noise=0.0)])
def test_without_noise_it_is_gradient_descent(solver):
    theta, g = start(), {k: v**3 for k, v in start().items()}
    new, _ = solver.update(theta, g, {}, 0.07, draws())
    plain, _ = solvers.get("sgd")().update(theta, g, {}, 0.07)
    assert all(torch.equal(new[k], plain[k]) for k in theta)


def test_a_parameter_without_a_step_size_stays():
    theta = start()
    rates = {"b": torch.tensor([0.1, 0.0], dtype=F64)}
    new, _ = Langevin(temperature=1.0).update(theta, start(), {}, rates, draws())
    assert torch.equal(new["a"], theta["a"]) and new["b"][1] == theta["b"][1]
    assert new["b"][0] != theta["b"][0]


def test_noise_must_be_given():
    with pytest.raises(ValueError, match=r"hand it ctx\.noise"):
        Langevin().update(start(), start(), {}, 0.1)


def test_differentiable_in_all_that_comes_in():
    solver, theta = Langevin(temperature=0.5), start()
    flat = {"lr": torch.tensor([0.1, 0.2, 0.3], dtype=F64)}
    for part, params in (("theta", theta), ("grad", {k: v**3 for k, v in theta.items()}),
                         ("noise", draws())):  # fmt: skip
        flat |= {f"{part}/{k}": v for k, v in params.items()}

    def f(flat):
        def part(name):
            return {k: flat[f"{name}/{k}"] for k in "ab"}

        lr = {"a": flat["lr"], "b": flat["lr"][:2]}
        new, _ = solver.update(part("theta"), part("grad"), {}, lr, part("noise"))
        return sum((v**3).sum() for v in new.values())

    leaves = {k: v.clone().requires_grad_() for k, v in flat.items()}
    found = torch.autograd.grad(f(leaves), list(leaves.values()))
    for g, expected in zip(found, differences(f, flat, h=1e-4).values(), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-7, atol=1e-7)


def test_a_step_size_of_zero_has_a_finite_derivative():
    lr = torch.zeros((), dtype=F64, requires_grad=True)
    new, _ = Langevin(temperature=1.0).update(start(), start(), {}, lr, draws())
    (g,) = torch.autograd.grad(sum(v.sum() for v in new.values()), lr)
    assert bool(torch.isfinite(g))
    assert all(torch.equal(new[k], v) for k, v in start().items())


# The stationary law, on as many independent chains as theta has entries.


class ManyChains(Problem):
    """G = sum of a/2 (theta - b lam)^2 over independent chains, a = 2, b = 1.5."""

    def __init__(self, n: int) -> None:
        self.n = n

    def init_outer(self) -> Params:
        return {"lam": torch.tensor(0.4, dtype=F64)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"w": torch.full((self.n,), -1.0, dtype=F64)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return (theta["w"] - 1.5 * lam["lam"]).square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return theta["w"].mean()

    def episode(self, split: str, index: int) -> Episode:
        return Episode({}, {}, index)


@pytest.mark.parametrize("lr", [0.045, 0.4])
def test_stationary_mean_and_variance(lr):
    """Mean b lam, variance T / (a (1 - lr a / 2)): a 1 % error is more than three deviations."""
    n, temperature = 200_000, 0.01
    ctx = given(ManyChains(n), *GRADIENTS, solver=Langevin(temperature=temperature))
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    theta, _ = inner_loop(ctx, lam, ctx.problem.init_inner(lam, episode), episode, steps=160, lr=lr)
    variance = temperature / (2.0 * (1 - lr))
    assert float(theta["w"].mean()) == pytest.approx(0.6, abs=4 * math.sqrt(variance / n))
    assert 4 * math.sqrt(variance / n) < 0.01 * 0.6
    assert float(theta["w"].var()) == pytest.approx(variance, rel=3 * math.sqrt(2 / n))
    assert 3 * math.sqrt(2 / n) < 0.01


# Methods that take steps of their own.


@pytest.mark.parametrize(("name", "task", "set_"), [
    ("imaml", {"formulation": "init"}, {}), ("one_step", {}, {"mixed": "differences"}),
    ("pbgd", {}, {}), ("stn", {}, {}), ("delta_stn", {}, {}),
])  # fmt: skip
def test_methods_with_steps_of_their_own_refuse_noise_when_planned(name, task, set_):
    made, method = tasks.get("quadratic")(**task), methods.get(name)(**set_)
    assert "without noise: langevin adds some" in why_not(made, method, Langevin())
    assert why_not(made, method, solvers.get("momentum")()) is None
    assert why_not(made, method) is None


# Noise is data.


def test_noise_is_addressed_by_seed_episode_and_step():
    ctx = given(SmallNet(), *OFFERS, solver=Langevin())
    like, episodes = ctx.problem.init_outer(), [ctx.problem.episode("train", i) for i in range(2)]
    first = ctx.noise(episodes[0], 3, like)
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in like.items()}
    torch.manual_seed(5)
    assert unchanged(snapshot(first), ctx.noise(episodes[0], 3, like))
    for other in (ctx.noise(episodes[0], 4, like), ctx.noise(episodes[1], 3, like)):
        assert not any(torch.equal(first[k], other[k]) for k in first)
    elsewhere = given(SmallNet(), *OFFERS, solver=Langevin())
    elsewhere.seeds = type(ctx.seeds).of(1)
    assert not unchanged(snapshot(first), elsewhere.noise(episodes[0], 3, like))


def test_what_moves_gets_the_noise_that_it_would_get_among_all():
    ctx = given(SmallNet(), *OFFERS, solver=Langevin(temperature=1.0))
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    head, _ = inner_loop(ctx, lam, lam, episode, steps=1, lr=0.1, only=ctx.problem.head)
    whole, _ = inner_loop(ctx, lam, lam, episode, steps=1, lr=0.1)
    assert torch.equal(head["head.weight"], whole["head.weight"])
    assert torch.equal(head["body.bias"], lam["body.bias"])


def test_inner_loop_goes_on_with_the_noise_of_the_step():
    ctx = given(SmallNet(batches=True), *OFFERS, solver=Langevin(temperature=0.01))
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    whole, _ = inner_loop(ctx, lam, lam, episode, steps=5, lr=0.1)
    half, memory = inner_loop(ctx, lam, lam, episode, steps=2, lr=0.1)
    rest, _ = inner_loop(ctx, lam, half, episode, steps=3, lr=0.1, start=2, solver_state=memory)
    assert unchanged(snapshot(whole), rest)


def test_every_way_of_unrolling_sees_the_same_noise():
    """Recomputed states, checkpoints and forward mode give the derivative of one noisy path."""
    found = [
        hypergradient(
            context("ridge", Langevin(temperature=0.01)), "bilevel",
            inner_steps=9, inner_lr=0.2, **set_,
        )["log_penalty"]
        for set_ in ({"memory": "graph"}, {"memory": "states"}, {"memory": "checkpoints"},
                     {"mode": "forward"})
    ]  # fmt: skip
    quiet = hypergradient(context("ridge"), "bilevel", inner_steps=9, inner_lr=0.2)["log_penalty"]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)
    assert float((found[0] - quiet).norm()) > 1e-3 * float(quiet.norm())


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("chunk", [None, 2])
def test_episodes_all_at_once_see_their_own_noise(batches, chunk):
    method = methods.get("maml")(inner_steps=3, inner_lr=0.1)

    def run(**more):
        problem = SmallNet(batches=batches)
        ctx = given(problem, *OFFERS, solver=Langevin(temperature=0.01), **more)
        return Harness(method, None).run(ctx).lam

    looped, batched = run(), run(engine="vmap", chunk=chunk)
    for k, v in looped.items():
        torch.testing.assert_close(batched[k], v, rtol=1e-10, atol=1e-12)


def test_noise_of_linear_episodes_differs_by_episode():
    ctx = given(LinearEpisodes(), *OFFERS, solver=Langevin(temperature=0.1))
    method = methods.get("maml")(inner_steps=1)
    state = method.init(ctx)
    ends = [method.adapt(ctx, state, ctx.problem.episode("valid", i))["phi"] for i in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
