"""Reptile with the inner Adam kept, against a loop by hand of the authors' scheme."""

import pytest
import torch
from initial_values import OFFERS, InitialValue

from metabench.contract.method import Context
from metabench.contract.seeds import Seeds
from metabench.core.cell import Budget
from metabench.methods.reptile import Reptile
from metabench.solvers.adam import Adam


def context():
    problem = InitialValue(dim=4, episodes=2)
    budget = Budget(outer_steps=2)
    return Context(problem, Adam(beta1=0.0), Seeds.of(3), OFFERS, budget=budget), problem


def run(ctx, method, steps=2):
    state = method.init(ctx)
    for step in range(steps):
        ctx.step = step
        state, _ = method.step(ctx, state)
    ctx.step = steps
    return state


def by_hand(problem, *, steps, inner, lr, outer, keep):
    """Only the weights are restored between tasks: the square moments and the count go on."""
    theta = problem.start
    square, count = torch.zeros(4, dtype=torch.float64), 0
    for step in range(steps):
        ends = []
        for i in range(2):
            episode = problem.episode("train", 2 * step + i)
            phi = theta.clone()
            if not keep:
                square, count = torch.zeros(4, dtype=torch.float64), 0
            for t in range(inner):
                at = phi.clone().requires_grad_()
                loss = problem.inner_loss({}, {"w": at}, episode.batch(t))
                (g,) = torch.autograd.grad(loss, at)
                count += 1
                square = 0.999 * square + 0.001 * g**2
                phi = phi - lr * g / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            ends.append(phi)
        rate = outer * (1 - step / steps)
        theta = theta + rate * (torch.stack(ends).mean(0) - theta)
    return theta, square, count


@pytest.mark.parametrize("keep", [True, False])
def test_two_tasks_and_two_steps_are_the_authors(keep):
    ctx, problem = context()
    method = Reptile(inner_steps=3, inner_lr=0.05, outer_lr=0.5, keep_moments=keep)
    state = run(ctx, method)
    theta, square, count = by_hand(problem, steps=2, inner=3, lr=0.05, outer=0.5, keep=keep)
    (found,) = state.lam.values()
    torch.testing.assert_close(found, theta, rtol=1e-12, atol=1e-14)
    if keep:
        (kept,) = state.memory["inner"]["square"].values()
        torch.testing.assert_close(kept, square, rtol=1e-12, atol=1e-16)
        assert int(state.memory["inner"]["count"]["steps"]) == count == 12
    else:
        assert "inner" not in state.memory


def test_a_test_episode_starts_from_trainings_moments_and_changes_none():
    ctx, problem = context()
    method = Reptile(inner_steps=3, inner_lr=0.05, outer_lr=0.5, keep_moments=True, test_steps=2)
    state = run(ctx, method)
    episode = problem.episode("test", 0)
    first, again = method.adapt(ctx, state, episode), method.adapt(ctx, state, episode)
    (name,) = first
    assert torch.equal(first[name], again[name])
    anew = Reptile(inner_steps=3, inner_lr=0.05, outer_lr=0.5, test_steps=2)
    assert not torch.allclose(first[name], anew.adapt(ctx, state, episode)[name])


def test_ranks_cannot_share_episodes_that_need_each_other():
    from metabench.core.errors import SettingError

    class Two:
        world = 2

    ctx, _ = context()
    method = Reptile(keep_moments=True)
    state = method.init(ctx)
    ctx.group = Two()
    with pytest.raises(SettingError, match="--ranks 1"):
        method.hypergradients(ctx, state, [])
