"""marglik: what it ascends, the batches that it takes, burn-in, and what it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import F64, context

from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import tasks
from metabench.hypergradients.evidence import log_evidence
from metabench.methods.marglik import MargLik
from metabench.tasks.families.images.bayesian_images import BayesianImages


def run(method, ctx, steps):
    state, logs = method.init(ctx), []
    for _ in range(steps):
        state, log = method.step(ctx, state)
        ctx.step += 1
        logs.append(log)
    return state, logs


def exact(problem, lam):
    """Minus the log evidence a row of ridge regression, its rows not scaled: N(y; 0, XPX' + I)."""
    n = problem.example_count
    x, y = (problem.parts["train"][k] * n**0.5 for k in ("x", "y"))
    prior = x @ torch.diag((-lam["log_penalty"]).exp() / n) @ x.T
    eye = torch.eye(n, dtype=F64)
    law = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=F64), prior + eye)
    # marglik sees y / sqrt(n): the density of those is larger.
    return -law.log_prob(y) / n - 0.5 * torch.log(torch.tensor(float(n), dtype=F64))


@pytest.mark.parametrize("form", ["ntk", "ggn"])
def test_its_gradient_at_the_minimiser_is_that_of_the_exact_evidence(form):
    ctx = context("ridge")
    problem, lam = ctx.problem, ctx.problem.init_outer()
    theta = {"w": problem.solve(lam)}
    value, g = MargLik(form=form).ascent(ctx, lam, theta, 0)
    leaf = {"log_penalty": lam["log_penalty"].clone().requires_grad_()}
    known = exact(problem, leaf)
    (slope,) = torch.autograd.grad(known, leaf["log_penalty"])
    assert value == pytest.approx(float(known.detach()), abs=1e-10)
    torch.testing.assert_close(g["log_penalty"], slope, rtol=0, atol=1e-10)


@pytest.mark.parametrize("carried", [False, True])
def test_it_ends_where_the_exact_evidence_is_flat(carried):
    """Ridge regression whose last features are noise: their penalties become larger than any of
    the others."""
    ctx = context(replace(tasks.get("ridge")(features=4, rows=20), carried=carried))
    method = MargLik(inner_steps=40, inner_lr=0.03 if carried else 0.2, lam_steps=5)
    state, logs = run(method, ctx, 60 if carried else 10)
    assert (state.theta is not None) == carried
    assert logs[-1]["outer_loss"] < logs[0]["outer_loss"]
    if carried:
        lam = {"log_penalty": state.lam["log_penalty"].clone().requires_grad_()}
        (slope,) = torch.autograd.grad(exact(ctx.problem, lam), lam["log_penalty"])
        grown = lam["log_penalty"].detach()
        inside = grown < 4.0
        assert float(slope[inside].abs().max()) < 2e-3
        assert float(grown[2:].min()) > float(grown[:2].max())


def test_burn_in_trains_theta_alone():
    ctx = context(replace(tasks.get("ridge")(), carried=True))
    state, logs = run(MargLik(burn_in=2, inner_steps=3), ctx, 2)
    assert logs == [{}, {}] and ctx.meter.counts.outer_gradients == 0
    assert torch.equal(state.lam["log_penalty"], ctx.problem.init_outer()["log_penalty"])
    assert ctx.meter.counts.inner_gradients == 6
    state, log = MargLik(burn_in=2, inner_steps=3, lam_steps=4).step(ctx, state)
    assert not torch.equal(state.lam["log_penalty"], ctx.problem.init_outer()["log_penalty"])
    assert "hypergradient_norm" in log and ctx.meter.counts.outer_gradients == 4


def few(**settings):
    shape = {"n_train": 40, "n_test": 30, "batch": 10, "width": 4, "shrink": 4, "dtype": "float64"}
    return tasks.get("layerwise_prior")(**(shape | settings))


def built(solver="sgd", **settings):
    return context(few(**settings), solver)


@pytest.mark.parametrize(("outputs", "products"), [("all", 10), ("one", 1), ("one each", 1)])
def test_products_with_the_jacobian_are_counted(outputs, products):
    ctx = built("adam")
    run(MargLik(outputs=outputs, batch=5, lam_steps=3, inner_steps=2), ctx, 2)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.outer_gradients) == (4, 6)
    assert counts.hvps == 6 * products


def test_batches_are_fresh_and_grouped_ones_of_one_class():
    ctx = built(validation=0.0)

    def labels(seed, **settings):
        gen = torch.Generator().manual_seed(seed)
        return MargLik(**settings).fresh_batch(ctx, gen)["y"]

    assert len(labels(0, batch=7)) == 7 and len(labels(0, batch=1000)) == 40
    assert len(labels(1, batch=20).unique()) > 1
    seen = [labels(seed, batch=3, grouped=True) for seed in range(12)]
    assert all(len(y.unique()) == 1 and len(y) <= 3 for y in seen)
    assert len({int(y[0]) for y in seen}) > 3
    ridge = context("ridge")
    with pytest.raises(SettingError, match="needs classes"):
        MargLik(grouped=True).fresh_batch(ridge, torch.Generator())


def test_batches_estimate_the_data_term_without_bias():
    """The mean over disjoint batches of the data term is the whole one: what differs is log det."""
    ctx = built(validation=0.0)
    problem, lam = ctx.problem, ctx.problem.init_outer()
    theta, at = problem.init_inner(lam, ctx.problem.episode("train", 0)), problem.evidence(lam)
    parts = torch.arange(40).split(10)
    found = [log_evidence(problem, at, lam, theta, problem.take(i)) for i in parts]
    whole = log_evidence(problem, at, lam, theta, problem.take(torch.arange(40)))
    assert float(sum(found)) / 4 < float(whole), "smaller batches: more log det, less evidence"
    flat = {k: v + 60.0 for k, v in lam.items()}  # no room for any weight: log det is 0
    at = problem.evidence(flat)
    found = [log_evidence(problem, at, flat, theta, problem.take(i)) for i in parts]
    whole = log_evidence(problem, at, flat, theta, problem.take(torch.arange(40)))
    torch.testing.assert_close(sum(found) / 4, whole, rtol=1e-12, atol=0)


def test_who_may_run_it():
    method = MargLik()
    assert why_not(few(), method) is None and why_not(few(validation=0.0), method) is None
    assert "a likelihood and a Gaussian prior" in (why_not(tasks.get("quadratic")(), method) or "")
    assert isinstance(few(), BayesianImages)
