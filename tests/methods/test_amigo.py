"""AmIGO and stocBiO: the linear system step by step, on exact and on random batches."""

import pytest
import torch
from oracles import context, hypergradient

from metabench.core.registry import methods, tasks

AmIGO, StocBiO = methods.get("amigo"), methods.get("stocbio")
QUADRATIC = tasks.get("quadratic")


@pytest.mark.parametrize(("steps", "value"), [(1, -0.51), (5, -1.714416), (10, -2.27619583488)])
def test_steps_on_v_from_zero_with_theta_held(steps, value):
    """b (w - c) (1 - (1 - rho a)^M) at w = -1 on the check problem, rho = 0.1."""
    set_ = {"inner_steps": 0, "linear_steps": steps, "inner_lr": 0.1}
    found = hypergradient(context(QUADRATIC()), "amigo", **set_)["lam"]
    assert float(found) == pytest.approx(value, abs=1e-11)


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_stocbio_has_a_term_more_than_products(steps):
    set_ = {"inner_steps": 0, "inner_lr": 0.1}
    ctx = context(QUADRATIC())
    found = hypergradient(ctx, "stocbio", linear_steps=steps, **set_)["lam"]
    series = hypergradient(context(QUADRATIC()), "ift", inverse="neumann", terms=steps, **set_)
    amigo = hypergradient(context(QUADRATIC()), "amigo", linear_steps=steps + 1, **set_)["lam"]
    torch.testing.assert_close(found, series["lam"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found, amigo, rtol=0, atol=1e-12)
    assert ctx.meter.counts.hvps == steps


def test_the_limit_of_the_series_is_the_inverse():
    """Not (H^-1 / sigma - I) v, which the authors' code tends to."""
    ctx = context(QUADRATIC(dim=3))
    p = ctx.problem
    found = hypergradient(
        ctx, "stocbio", inner_steps=300, linear_steps=300, inner_lr=0.3
    )["lam"]  # fmt: skip
    lam = p.init_outer()["lam"]
    torch.testing.assert_close(found, p.B.T @ (p.B @ lam - p.c), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("method", "warm"), [(AmIGO, True), (StocBiO, False)])
def test_v_goes_on_between_outer_steps_of_amigo_alone(method, warm):
    ctx = context(QUADRATIC(dim=3, carried=True))
    method = method(inner_steps=3, linear_steps=2, inner_lr=0.2, outer_lr=1e-9)
    state = method.init(ctx)
    grads = []
    for ctx.step in range(60):
        found = method.hypergradient_from(ctx, state, ctx.training_episodes()[0])
        grads.append(found.grad["lam"])
        state, _ = method.step(ctx, state)
    p = ctx.problem
    exact = p.B.T @ (p.B @ state.lam["lam"] - p.c)
    assert (float((grads[-1] - exact).norm()) < 1e-4) == warm


@pytest.mark.parametrize("warm", [True, False])
def test_both_reach_the_bilevel_optimum(warm):
    ctx = context(QUADRATIC(carried=True))
    method = (AmIGO if warm else StocBiO)(inner_lr=0.1, outer_lr=0.3)
    state = method.init(ctx)
    for ctx.step in range(200):
        state, _ = method.step(ctx, state)
    assert float(state.lam["lam"]) == pytest.approx(0.7 / 1.5, abs=1e-8)


class TestOnMinibatches:
    """Least squares with a batch a step: every product sees another batch."""

    def test_each_product_has_a_batch_of_its_own(self):
        task = tasks.get("loss_regression")(n_train=40, batch=8, width=4, carried=False)
        ctx = context(task)
        seen = []
        episode = ctx.problem.episode("train", 0)
        plain = type(episode).batch

        def batch(self, t):
            seen.append(t)
            return plain(self, t)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(episode), "batch", batch)
            hypergradient(ctx, "amigo", inner_steps=3, linear_steps=4)
        assert seen == list(range(8))


def test_one_pass_of_costs():
    ctx = context(QUADRATIC())
    hypergradient(ctx, "amigo", inner_steps=3, linear_steps=4)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.hvps, counts.mixed_products) == (3 + 4 + 1, 4, 1)
    assert counts.outer_gradients == 1
