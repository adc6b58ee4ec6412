"""Evolution strategies: every pair's part in closed form on linear dynamics, costs, restarts."""

import pytest
import torch
from oracles import F64, context

from metabench.contract.seeds import generator
from metabench.core.capabilities import why_not
from metabench.core.errors import Diverged
from metabench.core.registry import methods, tasks

ES = methods.get("es")
QUADRATIC = tasks.get("quadratic")
A, B, C, LAM, W0, RHO = 2.0, 1.5, 0.7, 0.4, -1.0, 0.1
STILL = {"inner_lr": RHO, "outer_lr": 1e-300, "outer_solver": "sgd"}
"""lam stays: the estimates are of one loss."""


def end(steps):
    """w after ``steps`` on the check problem at lam."""
    return B * LAM + (1 - RHO * A) ** steps * (W0 - B * LAM)


def influence(of, until):
    """dw_until / dlam through step ``of`` (from 0) alone."""
    return RHO * A * B * (1 - RHO * A) ** (until - 1 - of)


def draws(ctx, address, pairs, sigma):
    """eps of every pair [pairs]."""
    each = [generator(ctx.seeds.method, "es", address, i) for i in range(pairs)]
    return sigma * torch.stack([torch.randn(1, generator=g, dtype=F64)[0] for g in each])


def gradients(method, steps, ctx=None):
    """The norm of the estimate at every outer step, with its sign (lam is one number)."""
    ctx = context(QUADRATIC()) if ctx is None else ctx
    state, found = method.init(ctx), []
    for ctx.step in range(steps):
        before = state
        state, log = method.step(ctx, state)
        found.append(log["hypergradient_norm"])
        assert torch.equal(state.lam["lam"], before.lam["lam"])
    return torch.tensor(found, dtype=F64), ctx


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_a_whole_training_gives_the_unrolled_gradient_times_the_square_of_the_draw(sigma):
    """-0.51630608373 eps^2 / sigma^2 at any sigma: its mean is the gradient."""
    found, ctx = gradients(ES(**STILL, estimator="full", inner_steps=7, pairs=3, sigma=sigma), 4)
    eps = torch.stack([draws(ctx, k, 3, sigma) for k in range(4)])
    expected = 0.51630608373 * (eps / sigma).square().mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_truncation_sees_the_segment_alone():
    """b (w_7 - c) rho a = -0.130663296 at segment 7 of one step."""
    found, ctx = gradients(
        ES(**STILL, estimator="truncated", inner_steps=7, segment=1, pairs=2), 7
    )  # fmt: skip
    expected = 0.130663296 * (draws(ctx, 6, 2, 0.1) / 0.1).square().mean()
    torch.testing.assert_close(found[6], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", ["sum", "last"])
def test_persistent_particles_add_up_their_draws(objective):
    """gap_t = 2 (w_t - c) sum_tau J_tau eps_tau; its part is xi_t gap_t / (2 sigma^2), less that of
    the segment before where the last loss alone counts."""
    sigma, pairs, steps = 0.1, 3, 7
    method = ES(
        **STILL, estimator="persistent", inner_steps=steps, segment=1, pairs=pairs, sigma=sigma,
        objective=objective,
    )  # fmt: skip
    found, ctx = gradients(method, steps)
    eps = torch.stack([draws(ctx, t, pairs, sigma) for t in range(steps)])
    before = torch.zeros(pairs, dtype=F64)
    for t in range(1, steps + 1):
        moved = sum(influence(tau, t) * eps[tau] for tau in range(t))
        part = eps[:t].sum(0) * 2 * (end(t) - C) * moved / (2 * sigma**2)
        expected = (part - before if objective == "last" else part).mean().abs()
        torch.testing.assert_close(found[t - 1], expected, rtol=1e-8, atol=1e-12)
        before = part


def test_the_expectation_of_persistent_parts_is_the_whole_gradient():
    """E[xi_t sum_tau J_tau eps_tau] = sigma^2 sum_tau J_tau: what truncation loses is there."""
    method = ES(
        **STILL, estimator="persistent", inner_steps=7, segment=1, pairs=200, objective="sum"
    )  # fmt: skip
    found, _ = gradients(method, 7)
    # One pair has variance 0.584: seven deviations lie between this mean and truncation's 0.13.
    assert float(found[6]) == pytest.approx(0.51630608373, abs=0.17)
    whole = (end(7) - C) * sum(influence(tau, 7) for tau in range(7))
    assert whole == pytest.approx(-0.51630608373, abs=1e-10)
    assert (end(7) - C) * influence(6, 7) == pytest.approx(-0.130663296, abs=1e-9)


def test_single_keeps_one_draw_through_a_training_and_draws_anew_after_it():
    sigma = 0.1
    method = ES(
        **STILL, estimator="single", inner_steps=4, segment=2, pairs=2, sigma=sigma,
        objective="sum",
    )  # fmt: skip
    found, ctx = gradients(method, 4)
    for step, (training, t) in enumerate([(0, 2), (0, 4), (1, 2), (1, 4)]):
        eps = draws(ctx, training, 2, sigma)
        whole = (end(t) - C) * sum(influence(tau, t) for tau in range(t))
        expected = abs(whole) * (eps / sigma).square().mean()
        torch.testing.assert_close(found[step], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("set_", "gradients_", "values"),
    [
        ({"estimator": "full", "inner_steps": 6}, 2 * 3 * 6, 2 * 3),
        ({"estimator": "persistent", "inner_steps": 6, "segment": 4}, 2 * 3 * 6, 2 * 2 * 3),
        ({"estimator": "truncated", "inner_steps": 6, "segment": 6}, 7 * 6, 7),
    ],
)
def test_every_particle_is_charged(set_, gradients_, values):
    method = ES(**STILL, pairs=3, **set_)
    _, ctx = gradients(method, 2 if set_.get("segment") == 4 else 1)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.function_evaluations) == (gradients_, values)
    assert (counts.hvps, counts.outer_gradients) == (0, 0)


def test_a_step_size_is_learned_which_implicit_methods_cannot_see():
    ctx = context(tasks.get("step_size")())
    method = ES(estimator="single", inner_steps=4, segment=2, pairs=4, outer_lr=0.05)
    state = method.init(ctx)
    first = abs(float(state.lam["rate"].log()) - float(torch.tensor(ctx.problem.best).log()))
    for ctx.step in range(80):
        state, _ = method.step(ctx, state)
    last = abs(float(state.lam["rate"].log()) - float(torch.tensor(ctx.problem.best).log()))
    assert last < 0.5 * first
    assert why_not(tasks.get("step_size")(), methods.get("ift")()) is not None


def test_a_carried_theta_is_that_of_a_training_at_lam():
    ctx = context(QUADRATIC(carried=True))
    method = ES(**STILL, inner_steps=4, segment=2, pairs=1)
    state = method.init(ctx)
    seen = []
    for ctx.step in range(3):
        state, _ = method.step(ctx, state)
        seen.append(float(state.theta["w"]))
    assert seen == pytest.approx([end(2), end(4), end(4)], abs=1e-12)


def test_where_every_pair_runs_away_the_run_ends():
    ctx = context(QUADRATIC())
    method = ES(estimator="full", inner_steps=400, inner_lr=1e3)
    with pytest.raises(Diverged, match="a training ran away"):
        method.step(ctx, method.init(ctx))


def test_choices_alone_have_no_gradient():
    assert "continuous scalar" in why_not(tasks.get("rag_squad")(), ES())
