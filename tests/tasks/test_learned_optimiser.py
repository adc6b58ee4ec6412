"""learned_optimiser: the gradient by hand, the step by hand, and learning from unseen starts."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, context

from metabench.contract import autodiff
from metabench.contract.method import inner_loop
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks
from metabench.run.evaluation import evaluate

TASK = tasks.get("learned_optimiser")
SMALL = {"n_train": 100, "n_valid": 20, "n_test": 20, "hidden": 3, "units": 4, "shrink": 7}


def moved(problem, episode):
    lam = problem.init_outer()
    gen = torch.Generator().manual_seed(1)
    lam = {k: v + 0.3 * torch.randn(v.shape, generator=gen, dtype=F64) for k, v in lam.items()}
    theta = problem.init_inner(lam, episode)
    return lam, {
        k: v + 0.2 * torch.randn(v.shape, generator=gen, dtype=F64) for k, v in theta.items()
    }


def test_the_gradient_by_hand_is_that_of_the_loss():
    problem = context(TASK(**SMALL, dtype="float64")).problem
    episode = problem.episode("train", 0)
    lam, theta = moved(problem, episode)
    batch = episode.batch(0)
    true = autodiff.grad(lambda t: problem.inner_loss(lam, t, batch), theta)[1]
    for name, g in problem.gradient(theta, batch).items():
        assert torch.allclose(g, true[f"w.{name}"], atol=1e-14), name


def test_the_first_rule_is_momentum_of_a_fixed_length():
    """Written as an optimiser, two steps."""
    ctx = context(TASK(**SMALL, dtype="float64", scale=0.1))
    episode = ctx.problem.episode("train", 0)
    lam = ctx.problem.init_outer()
    start = ctx.problem.init_inner(lam, episode)
    found, _ = inner_loop(ctx, lam, start, episode, steps=2, lr=1.0)
    w = {k: v for k, v in start.items() if k.startswith("w.")}
    m = {k: torch.zeros_like(v) for k, v in w.items()}
    for t in range(2):
        g = autodiff.grad(lambda x, t=t: ctx.problem.inner_loss(lam, x, episode.batch(t)), w)[1]
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in w}
        w = {k: w[k] - 0.1 * m[k] / (m[k].square().mean() + 1e-8).sqrt() for k in w}
    for name, value in w.items():
        assert torch.allclose(found[name], value, atol=1e-13), name
        assert torch.allclose(found[f"m1{name[1:]}"], m[name], atol=1e-13)


def test_the_gradient_in_lam_is_that_of_differences():
    ctx = context(TASK(**SMALL, dtype="float64"))
    method = methods.get("bilevel")(inner_steps=3, inner_lr=1.0)
    episode = ctx.problem.episode("train", 0)
    lam, _ = moved(ctx.problem, episode)
    found = method.hypergradient(ctx, lam, None, episode).grad

    def after(p):
        theta = ctx.problem.init_inner(p, episode)
        end, _ = inner_loop(ctx, p, theta, episode, steps=3, lr=1.0)
        return float(ctx.problem.outer_loss(p, end, episode.outer))

    for name, value in found.items():
        direction = torch.zeros_like(lam[name])
        direction.view(-1)[0] = 1e-5
        gap = after({**lam, name: lam[name] + direction}) - after(
            {**lam, name: lam[name] - direction}
        )
        assert float(value.view(-1)[0]) == pytest.approx(gap / 2e-5, abs=1e-7), name


def test_trainings_of_the_test_are_others_and_may_be_wider():
    problem = context(TASK(**SMALL, test_hidden=7)).problem
    one, other = (problem.episode(split, 0) for split in ("train", "valid"))
    assert not torch.equal(one.outer["start.head.weight"], other.outer["start.head.weight"])
    assert not torch.equal(one.batch(0)["x"], other.batch(0)["x"])
    assert problem.init_inner({}, problem.episode("test", 0))["w.head.weight"].shape == (10, 7)


def test_a_learned_rule_beats_the_first_on_unseen_starts():
    task = TASK(n_train=2000, n_valid=100, n_test=500, scale=0.01)
    found = {}
    for name, steps, more in (("bilevel", 40, {"outer_lr": 0.02}), ("fixed", 0, {})):
        ctx = context(task)
        method = methods.get(name)(inner_steps=15, inner_lr=1.0, **more)
        state = method.init(ctx)
        for ctx.step in range(steps):
            state, _ = method.step(ctx, state)
        found[name] = evaluate(ctx, method, state, "test", 10)["loss"].mean
    assert found["bilevel"] < 0.8 * found["fixed"]


def test_methods_that_follow_a_loss_are_refused_with_the_reason():
    said = why_not(TASK(), methods.get("ift")())
    assert said == "lam is the rule that theta moves by: no loss has it"
    assert why_not(TASK(), methods.get("es")()) is None
