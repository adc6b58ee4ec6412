"""Two GANs: their fields are the players' own gradients, and what training does to them."""

import math

import pytest
import torch
from oracles import F64, context

from metabench.contract import autodiff
from metabench.contract.method import inner_loop
from metabench.core.registry import solvers, tasks


def test_the_dirac_gans_field_is_that_of_its_two_players():
    problem = context("dirac_gan").problem
    lam = {"log_penalty": torch.tensor(-1.0, dtype=F64)}
    x, psi = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.7, -0.4))

    def f(t):
        return -torch.log1p(torch.exp(-t))

    value = f(psi * x) + f(torch.zeros((), dtype=F64))
    (down,) = torch.autograd.grad(value, x, retain_graph=True)
    (up,) = torch.autograd.grad(value - 0.5 * lam["log_penalty"].exp() * psi**2, psi)
    found = problem.field(lam, {"x": x.detach(), "psi": psi.detach()}, {})
    torch.testing.assert_close(found["x"], down)
    torch.testing.assert_close(found["psi"], -up)


@pytest.mark.parametrize(
    ("penalty", "solver", "ends"),
    [
        (-12.0, {"momentum": 0.0}, "outside"),
        (0.0, {"momentum": 0.0}, "inside"),
        (-12.0, {"momentum": 0.9, "phase": 0.0}, "outside"),
        (-12.0, {"momentum": 0.9, "phase": 0.25}, "inside"),
    ],
)
def test_the_dirac_gan_converges_by_a_penalty_or_a_phase(penalty, solver, ends):
    """Mescheder 2018, section 2: no convergence without a penalty; here also the phase's part."""
    ctx = context("dirac_gan", solver=solvers.get("complex_momentum")(**solver))
    lam = {"log_penalty": torch.tensor(penalty, dtype=F64)}
    episode = ctx.problem.episode("train", 0)
    theta = ctx.problem.init_inner(lam, episode)
    end, _ = inner_loop(ctx, lam, theta, episode, steps=300, lr=0.2)
    first, last = (math.hypot(float(t["x"]), float(t["psi"])) for t in (theta, end))
    assert (last > first) if ends == "outside" else (last < 0.2 * first)


def test_the_small_gans_field_is_each_players_gradient_of_its_own_loss():
    problem = context(tasks.get("two_mode_gan")(width=3, batch=5)).problem
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta, batch = problem.init_inner(lam, episode), episode.batch(0)
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    fake = problem.network(leaves, "generator", batch["z"])
    real = batch["real"].clone().requires_grad_()
    judged = problem.network(leaves, "discriminator", real)
    (slope,) = torch.autograd.grad(judged.sum(), real, create_graph=True)
    on_fake = problem.network(leaves, "discriminator", fake).sigmoid()
    judge = -(1 - on_fake).log().mean() - judged.sigmoid().log().mean()
    judge = judge + 0.5 * lam["log_penalty"].exp() * slope.square().mean()
    expected = {}
    for player, loss in (("generator", -on_fake.log().mean()), ("discriminator", judge)):
        own = [k for k in theta if k.startswith(player)]
        g = torch.autograd.grad(loss, [leaves[k] for k in own], retain_graph=True)
        expected |= dict(zip(own, g, strict=True))
    found = problem.field(lam, theta, batch)
    for k, g in expected.items():
        torch.testing.assert_close(found[k], g, msg=lambda m, k=k: f"{k}: {m}")


def test_the_energy_distance_and_the_modes():
    problem = context(tasks.get("two_mode_gan")(held_out=200)).problem
    episode = problem.episode("test", 0)
    theta = dict(problem.start)
    theta["generator.in"] = torch.zeros_like(theta["generator.in"])
    theta["generator.bias"] = torch.full_like(theta["generator.bias"], 10.0)
    theta["generator.out"] = torch.full_like(theta["generator.out"], 2.0 / 16)
    found = problem.metrics(problem.init_outer(), theta, episode)
    assert found["modes"] == 1.0  # all is near 2
    real = episode.outer["real"]
    expected = 2 * (2.0 - real).abs().mean() - (real - real.T).abs().mean()
    assert found["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_the_small_gan_is_differentiable_through_its_training():
    ctx = context(tasks.get("two_mode_gan")(width=3, batch=8, held_out=16))
    episode = ctx.problem.episode("train", 0)

    def f(lam):
        start = ctx.problem.init_inner(lam, episode)
        end, _ = inner_loop(ctx, lam, start, episode, steps=5, lr=0.1, create_graph=True)
        return ctx.problem.outer_loss(lam, end, episode.outer)

    lam = ctx.problem.init_outer()
    g = autodiff.grad(f, {"log_penalty": lam["log_penalty"].clone().requires_grad_()})[1]
    h = 1e-5
    up, down = (f({"log_penalty": lam["log_penalty"] + s * h}) for s in (1, -1))
    torch.testing.assert_close(g["log_penalty"], (up - down) / (2 * h), rtol=1e-6, atol=1e-10)
