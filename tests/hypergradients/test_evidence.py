"""The log evidence against an exact case, dense algebra, and its bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import F64
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.declared import Evidence
from metabench.contract.problem import Problem
from metabench.hypergradients.evidence import (
    jacobian,
    log_det,
    log_evidence,
    log_likelihood,
    predictions,
    pulled_back,
    root,
)

FORMS = ("ntk", "ggn", "block", "kfac", "diagonal")


class Linear(Problem):
    """Bayesian linear regression in closed form: noise variance 1/2, precision e^lam, first 2."""

    example_count = 3
    x = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=F64)
    y = torch.tensor([1, -1, 0.5], dtype=F64)

    def init_outer(self):
        return {"log_precision": torch.tensor(math.log(2.0), dtype=F64)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros(2, dtype=F64)}

    def predict(self, lam, theta, batch):
        return batch["x"] @ theta["w"]

    def inner_loss(self, lam, theta, batch):
        squares = (self.predict(lam, theta, batch) - batch["y"]).square().sum()
        return squares + 0.5 * lam["log_precision"].exp() * theta["w"].square().sum()

    outer_loss = inner_loss

    def take(self, indices, generator=None):
        return {"x": self.x[indices], "y": self.y[indices]}

    def evidence(self, lam):
        one = torch.ones((), dtype=F64)
        return Evidence({"w": lam["log_precision"].exp() * one}, 0.5 * one)

    def episode(self, split, index):
        raise NotImplementedError

    def solved(self, lam):
        p = lam["log_precision"].exp() * torch.eye(2, dtype=F64) + 2 * self.x.T @ self.x
        return {"w": torch.linalg.solve(p, 2 * self.x.T @ self.y)}

    def exact(self, lam):
        """log N(y; 0, X X' / delta + 1/2 I)."""
        eye = torch.eye(3, dtype=F64)
        prior = self.x @ self.x.T * (-lam["log_precision"]).exp()
        law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), prior + 0.5 * eye)
        return law.log_prob(self.y)


class Net(Problem):
    """Seven examples of three classes, a tanh layer of four units; inputs are scaled by e^lam, and
    every layer has its precision."""

    example_count = 7
    noise = None

    def __init__(self, seed=0):
        gen = torch.Generator().manual_seed(seed)
        self.x = torch.randn(7, 2, generator=gen, dtype=F64)
        self.y = torch.arange(7) % 3
        shapes = {"a.weight": (4, 2), "a.bias": (4,), "b.weight": (3, 4), "b.bias": (3,)}
        self.theta = {k: 0.8 * torch.randn(s, generator=gen, dtype=F64) for k, s in shapes.items()}

    def init_outer(self):
        first = {"log_precision": torch.tensor([0.3, -0.4], dtype=F64)}
        return first | {"log_scale": torch.tensor(0.2, dtype=F64)}

    def init_inner(self, lam, episode):
        return dict(self.theta)

    def predict(self, lam, theta, batch):
        x = batch["x"] * lam["log_scale"].exp()
        x = F.linear(x, theta["a.weight"], theta["a.bias"]).tanh()
        return F.linear(x, theta["b.weight"], theta["b.bias"])

    def inner_loss(self, lam, theta, batch):
        raise NotImplementedError

    outer_loss = inner_loss

    def take(self, indices, generator=None):
        return {"x": self.x[indices], "y": self.y[indices]}

    def evidence(self, lam):
        each = lam["log_precision"].exp()
        return Evidence({k: each[int(k[0] == "b")] for k in self.theta}, self.noise)

    def episode(self, split, index):
        raise NotImplementedError


def whole(problem):
    return problem.take(torch.arange(problem.example_count))


def estimate(problem, lam, theta, batch, **more):
    return log_evidence(problem, problem.evidence(lam), lam, theta, batch, **more)


def rows_of(problem, lam, theta, batch):
    """[n, C, *shape] by name, divided by sqrt(precision)."""
    at = problem.evidence(lam)
    f = predictions(problem, lam, theta, batch)
    found = pulled_back(problem, lam, theta, batch, root(f, at.noise))
    return {k: v * at.precision[k].rsqrt() for k, v in found.items()}


def joined(rows):
    return {k: v.flatten(0, 1) for k, v in rows.items()}


def some(rows, i):
    return {k: v[i].flatten(0, 1) for k, v in rows.items()}


def volume(rows, form="ntk"):
    return float(log_det(rows, form))


def test_the_ratios_8_10_and_12():
    problem = Linear()
    lam = problem.init_outer()
    theta = problem.solved(lam)
    torch.testing.assert_close(theta["w"], torch.tensor([0.625, -0.375], dtype=F64))
    rows = rows_of(problem, lam, theta, whole(problem))
    for form in ("ntk", "ggn"):
        assert math.exp(volume(joined(rows), form)) == pytest.approx(8, abs=1e-12)
    two_blocks = volume(some(rows, [0, 2])) + volume(some(rows, [1]))
    assert math.exp(two_blocks) == pytest.approx(10, abs=1e-12)
    alone = sum(volume(some(rows, [i])) for i in range(3))
    assert math.exp(alone) == pytest.approx(12, abs=1e-12)
    assert volume(joined(rows), "diagonal") == pytest.approx(2.197224577, abs=1e-9)


def test_the_mean_over_the_three_pairs_is_ln_10():
    problem = Linear()
    lam = problem.init_outer()
    rows = rows_of(problem, lam, problem.solved(lam), whole(problem))
    pairs = [1.5 * volume(some(rows, list(p))) for p in itertools.combinations(range(3), 2)]
    assert sum(pairs) / 3 == pytest.approx(math.log(10), abs=1e-12)


def test_the_log_evidence_by_hand_and_its_bound():
    problem = Linear()
    lam = problem.init_outer()
    theta, at = problem.solved(lam), problem.evidence(lam)
    assert float(problem.exact(lam)) == pytest.approx(-3.8818155996, abs=1e-10)
    for form in ("ntk", "ggn", "block"):
        found = estimate(problem, lam, theta, whole(problem), form=form)
        assert float(found) == pytest.approx(-3.8818155996, abs=1e-10)
    fit = log_likelihood(problem.x @ theta["w"][:, None], problem.y, at.noise)
    split = fit - 0.5 * (2 * theta["w"].square().sum() + math.log(12))
    assert float(split) == pytest.approx(-4.0845481537, abs=1e-10)
    # The same of batches of one: estimates of a bound are right on average.
    alone = [estimate(problem, lam, theta, problem.take(torch.tensor([i]))) for i in range(3)]
    assert float(sum(alone)) / 3 == pytest.approx(-4.0845481537, abs=1e-10)


def test_at_the_minimiser_the_slope_at_fixed_theta_is_that_of_the_exact_evidence():
    problem = Linear()
    lam = autodiff.leaf(problem.init_outer())
    (exact,) = torch.autograd.grad(problem.exact(lam), lam["log_precision"])
    theta = autodiff.detach(problem.solved(lam))
    found = estimate(problem, lam, theta, whole(problem))
    (slope,) = torch.autograd.grad(found, lam["log_precision"])
    torch.testing.assert_close(slope, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [None, 0.4])
def test_rows_and_log_det_against_dense_algebra(noise):
    problem = Net()
    problem.noise = None if noise is None else torch.tensor(noise, dtype=F64)
    lam, theta = problem.init_outer(), problem.theta
    at = problem.evidence(lam)
    f, j = jacobian(problem, lam, theta, whole(problem), chunk=2)
    flat = torch.cat([v.flatten(2) for v in j.values()], 2)
    one = {k: v.clone().requires_grad_() for k, v in theta.items()}
    for n, c in ((0, 0), (6, 2)):
        value = problem.predict(lam, one, whole(problem))[n, c]
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(one.values()))])
        torch.testing.assert_close(flat[n, c], expected)
    p = f.softmax(1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    if noise is not None:
        bend = torch.eye(3, dtype=F64).expand(7, 3, 3) / noise
    r = root(f, at.noise)
    torch.testing.assert_close(r.mT @ r, bend)
    prior = torch.cat([at.precision[k].expand_as(v).flatten() for k, v in theta.items()])
    ggn = torch.einsum("ncp,ncd,ndq->pq", flat, bend, flat)
    expected = torch.logdet(torch.diag(prior) + ggn) - prior.log().sum()
    rows = joined(rows_of(problem, lam, theta, whole(problem)))
    for form in ("ntk", "ggn"):
        torch.testing.assert_close(log_det(rows, form), expected)
    diagonal = (1 + ggn.diagonal() / prior).log().sum()
    torch.testing.assert_close(log_det(rows, "diagonal"), diagonal)
    cut = sum(v.numel() for k, v in theta.items() if k[0] == "a")
    parts = [slice(0, cut), slice(cut, None)]
    blocks = sum(
        torch.logdet(torch.diag(prior[i]) + ggn[i, i]) - prior[i].log().sum() for i in parts
    )
    torch.testing.assert_close(log_det(rows, "block"), blocks)


def test_kfac_against_kronecker_products():
    """Sum over rows of g g', mean over rows of the inputs with a 1, their product dense."""
    problem = Net()
    lam, theta = problem.init_outer(), problem.theta
    at, x = problem.evidence(lam), problem.x * math.exp(0.2)
    f = predictions(problem, lam, theta, whole(problem))
    hidden = F.linear(x, theta["a.weight"], theta["a.bias"]).tanh()
    g_head = root(f, None).flatten(0, 1)
    g_first = torch.einsum("ncd,da,na->nca", root(f, None), theta["b.weight"], 1 - hidden.square())
    expected = torch.zeros((), dtype=F64)
    for layer, inputs, g in (("a", x, g_first.flatten(0, 1)), ("b", hidden, g_head)):
        ones = torch.cat([inputs, torch.ones(7, 1, dtype=F64)], 1)
        kron = torch.kron(g.T @ g, ones.T @ ones / 7) / at.precision[f"{layer}.bias"]
        expected += torch.logdet(torch.eye(len(kron), dtype=F64) + kron)
    rows = joined(rows_of(problem, lam, theta, whole(problem)))
    torch.testing.assert_close(log_det(rows, "kfac"), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", ["all", "independent", "one", "one each"])
def test_the_gradient_goes_through_predictions_and_jacobian(form, outputs):
    problem = Net()
    lam, theta = problem.init_outer(), problem.theta

    def value(p):
        gen = torch.Generator().manual_seed(3)
        return estimate(
            problem, p, theta, whole(problem), form=form, outputs=outputs, generator=gen
        )

    _, g = autodiff.grad(value, lam)
    for name, found in g.items():
        for i in range(found.numel()):
            step = torch.zeros_like(found)
            step.view(-1)[i] = 1e-5
            up, down = (value({**lam, name: lam[name] + s * step}) for s in (1, -1))
            slope = (up - down) / 2e-5
            assert float(found.view(-1)[i]) == pytest.approx(float(slope), rel=1e-6, abs=1e-7)


def test_one_output_is_right_on_average():
    """The mean of C log det(block c) over c is the sum of all blocks; both kinds of draw give it
    where every example draws the same."""
    problem = Net()
    lam, theta = problem.init_outer(), problem.theta
    batch = whole(problem)
    expected = float(estimate(problem, lam, theta, batch, outputs="independent"))
    rows = rows_of(problem, lam, theta, batch)
    known = [{k: v[:, c] for k, v in rows.items()} for c in range(3)]
    base = float(estimate(problem, lam, theta, batch)) + 0.5 * volume(joined(rows))
    seen = set()
    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        c = int(torch.randint(3, (1,), generator=torch.Generator().manual_seed(seed)))
        found = estimate(problem, lam, theta, batch, outputs="one", generator=gen)
        assert float(found) == pytest.approx(base - 1.5 * volume(known[c]), abs=1e-12)
        seen.add(c)
    assert seen == {0, 1, 2}
    assert expected == pytest.approx(base - 0.5 * sum(map(volume, known)), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-4, 4), st.booleans())
def test_the_chain_of_bounds(seed, shift, regression):
    """log det: all outputs <= one output on average <= its diagonal; all <= blocks <= diagonal; and
    what batches give on average is more again."""
    problem = Net(seed)
    problem.noise = torch.tensor(0.3, dtype=F64) if regression else None
    lam = problem.init_outer()
    lam["log_precision"] = lam["log_precision"] + shift
    rows = rows_of(problem, lam, problem.theta, whole(problem))
    each = [{k: v[:, c] for k, v in rows.items()} for c in range(3)]
    every, alone = volume(joined(rows)), sum(map(volume, each))
    slack = 1e-9 * (1 + alone)
    assert every <= alone + slack
    assert alone <= sum(volume(one, "diagonal") for one in each) + slack
    block, diagonal = (volume(joined(rows), form) for form in ("block", "diagonal"))
    assert every <= block + slack and block <= diagonal + slack
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    parts = sum(volume(some(rows, part)) for part in order.split(3))
    assert every <= parts + slack


def test_one_output_is_not_always_below_the_diagonal_of_all():
    """Where all outputs share one weight, the diagonal of all is exact and one output is not: the
    order of the two (one output <= diagonal) is what is mostly seen and no theorem."""
    same = {"w": torch.ones(4, 1, dtype=F64)}
    alone = sum(volume({"w": v[None]}) for v in same["w"])
    assert volume(same) == pytest.approx(volume(same, "diagonal")) == pytest.approx(math.log(5))
    assert alone == pytest.approx(4 * math.log(2)) and alone > volume(same, "diagonal")


def test_scaling_the_batchs_ggn_is_another_estimator_and_no_bound():
    """(N / M) log det(I + K_b) is not log det(I + (N / M) K_b): the latter can fall below."""
    problem = Linear()
    lam = problem.init_outer()
    rows = rows_of(problem, lam, problem.solved(lam), whole(problem))
    scaled = [volume({k: math.sqrt(3) * v for k, v in some(rows, [i]).items()}) for i in range(3)]
    assert sum(scaled) / 3 < math.log(8) < math.log(12)
