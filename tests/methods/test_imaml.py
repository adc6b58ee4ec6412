"""iMAML's two forms on a quadratic: the system that is solved, and the inner training."""

import pytest
import torch
from initial_values import OFFERS, InitialValue

from metabench.contract.method import Context
from metabench.contract.seeds import Seeds
from metabench.methods.imaml import IMAML
from metabench.solvers.sgd import SGD


def parts():
    problem = InitialValue()
    ctx = Context(problem, SGD(), Seeds.of(1), OFFERS | {"inner_loss"})
    episode = problem.episode("train", 0)

    def gradient(phi):
        return problem.hessian @ (phi - episode.batch(0)["c"])

    return ctx, problem, problem.init_outer(), episode, "w", gradient, problem.hessian


def outer(problem, lam, name, phi, episode):
    at = phi.clone().requires_grad_()
    return torch.autograd.grad(problem.outer_loss(lam, {name: at}, episode.outer), at)[0]


def test_the_readmes_command_solves_2i_plus_h_over_12():
    """mu = 2, cg_damping = 1, lam_damping = 10; mu = 2 with a damping of 1 alone would be another
    vector."""
    ctx, problem, lam, episode, name, gradient, hessian = parts()
    method = IMAML(
        inner_steps=4, inner_lr=0.05, mu=2.0, terms=10, damping=10.0, identity=1.0, form="code"
    )
    found = method.hypergradient(ctx, lam, None, episode)
    phi = lam[name].clone()
    for _ in range(4):
        phi = phi - 0.05 * gradient(phi)
    phi = phi - 0.05 * 2.0 * (phi - lam[name])
    torch.testing.assert_close(found.theta[name], phi, rtol=1e-12, atol=1e-14)
    eye = torch.eye(3, dtype=torch.float64)
    right = outer(problem, lam, name, phi, episode)
    expected = torch.linalg.solve(2 * eye + hessian / 12, right)
    torch.testing.assert_close(found.grad[name], expected, rtol=1e-9, atol=1e-12)
    other = torch.linalg.solve(eye + hessian / 3, right)
    assert not torch.allclose(expected, other, rtol=0.05)


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_the_texts_form_pulls_in_every_step(damping):
    ctx, problem, lam, episode, name, gradient, hessian = parts()
    method = IMAML(inner_steps=4, inner_lr=0.05, mu=2.0, terms=10, damping=damping)
    found = method.hypergradient(ctx, lam, None, episode)
    phi = lam[name].clone()
    for _ in range(4):
        phi = phi - 0.05 * (gradient(phi) + 2.0 * (phi - lam[name]))
    torch.testing.assert_close(found.theta[name], phi, rtol=1e-12, atol=1e-14)
    system = torch.eye(3, dtype=torch.float64) + hessian / (2.0 + damping)
    expected = torch.linalg.solve(system, outer(problem, lam, name, phi, episode))
    torch.testing.assert_close(found.grad[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["text", "code"])
def test_a_test_episode_has_the_pull_of_the_text_and_none_of_the_code(form):
    ctx, _, lam, episode, name, gradient, _ = parts()
    method = IMAML(inner_steps=3, inner_lr=0.05, mu=2.0, form=form)
    phi = method.adapt(ctx, method.init(ctx), episode)[name]
    by_hand = lam[name].clone()
    for _ in range(3):
        pull = 2.0 * (by_hand - lam[name]) if form == "text" else 0.0
        by_hand = by_hand - 0.05 * (gradient(by_hand) + pull)
    torch.testing.assert_close(phi, by_hand, rtol=1e-12, atol=1e-14)
