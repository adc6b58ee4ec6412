"""20 Newsgroups: parts, bounds, and the known curve of the outer loss over the decay."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from optional import needs
from oracles import F64, context, differences, given
from torch.nn import functional as F

from metabench.contract.seeds import Seeds
from metabench.datasets import locate
from metabench.hypergradients.inexact.inner_solve import to_accuracy
from metabench.methods.hoag import HOAG
from metabench.tasks.data.newsgroups import Posts
from metabench.tasks.newsgroups import TOPICS, Newsgroups, NewsgroupsProblem

CPU = torch.device("cpu")


def few(**settings):
    """The problem on 60 invented posts of 12 words."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.6, (60, 12)) + np.eye(60, 12)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    posts = Posts(scipy.sparse.csr_array(x), np.arange(60) % 20, np.arange(60) % 3 == 0)
    return NewsgroupsProblem(Newsgroups(**settings), Seeds.of(0), CPU, posts), x


@pytest.fixture
def real():
    locate.find("newsgroups20")


def test_parts_are_apart_and_the_published_ones_share_the_later_posts():
    three, _ = few()
    sizes = {split: len(part["y"]) for split, part in three.parts.items()}
    assert sizes == {"train": 40, "valid": 10, "test": 10}
    published, _ = few(posts="as published")
    assert len(published.parts["valid"]["y"]) == 20
    assert torch.equal(published.parts["valid"]["values"], published.parts["test"]["values"])
    assert len(few(n_train=25)[0].parts["train"]["y"]) == 25


@pytest.mark.parametrize(
    ("classes", "decays"), [(2, "one"), (2, "word"), (20, "one"), (20, "class"), (20, "word")]
)
def test_losses_derivatives_and_bounds(classes, decays):
    problem, x = few(classes=classes, decays=decays)
    lam = {"log_decay": torch.linspace(-2, 0.5, problem.decays, dtype=F64)}
    episode = problem.episode("train", 0)
    w = torch.randn(problem.shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    rows = torch.from_numpy(x[np.arange(60) % 3 != 0])
    topics = torch.arange(60)[torch.arange(60) % 3 != 0] % 20
    if classes == 2:
        sign = torch.where(topics < 10, -1.0, 1.0).double()
        loss = torch.log1p(torch.exp(-sign * (rows @ w))).sum()
    else:
        loss = F.cross_entropy(rows @ w, topics, reduction="sum")
    decay = lam["log_decay"].exp()
    each = decay[:, None] if decays == "word" and classes == 20 else decay
    expected = loss + 0.5 * (each * w * w).sum()
    torch.testing.assert_close(problem.inner_loss(lam, {"w": w}, episode.inner), expected)

    g = differences(lambda t: problem.inner_loss(lam, t, episode.inner), {"w": w})["w"]
    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(problem.inner_loss(lam, {"w": leaf}, episode.inner), leaf)
    torch.testing.assert_close(found, g, rtol=1e-7, atol=1e-8)

    hessian = torch.func.hessian(lambda v: problem.inner_loss(lam, {"w": v}, episode.inner))(w)
    values = torch.linalg.eigvalsh(hessian.reshape(w.numel(), w.numel()))
    bounds = problem.moduli(lam)
    assert bounds.certified and bounds.mu <= values[0] + 1e-12 and values[-1] <= bounds.smooth

    if classes == TOPICS:  # of softmax the conformance kit checks these, on multinomial
        return

    def in_both(v, p):
        return torch.func.grad(lambda t: problem.inner_loss({"log_decay": p}, {"w": t}, x))(v)

    x, p = episode.inner, lam["log_decay"]
    mixed = torch.func.jacrev(in_both, argnums=1)(w, p).reshape(w.numel(), -1)
    norm = float(torch.linalg.matrix_norm(mixed, 2))
    assert bounds.mixed({"w": w}) == pytest.approx(norm, rel=1e-10)
    there = torch.func.hessian(lambda v: problem.inner_loss(lam, {"w": v}, x))(w + 0.3)
    change = torch.linalg.matrix_norm((there - hessian).reshape(w.numel(), w.numel()), 2)
    assert float(change) <= bounds.hessian_lipschitz * 0.3 * w.numel() ** 0.5
    outer = torch.func.hessian(lambda v: problem.outer_loss(lam, {"w": v}, episode.outer))(w)
    largest = torch.linalg.matrix_norm(outer.reshape(w.numel(), w.numel()), 2)
    assert float(largest) <= bounds.outer_smooth


def test_a_decay_a_class_needs_classes():
    with pytest.raises(ValueError, match="a decay a class needs 20"):
        Newsgroups(decays="class")


TRUTH = {-2.0: 2569.9, -2.5: 2531.9, -3.0: 2543.9, -4.0: 2729.5}
"""The outer loss at inner minimisers, found by another program."""


@pytest.mark.slow
def test_the_curve_on_the_real_posts_and_where_hoag_ends(real):
    """HOAG ends within 0.1 of the best log decay, -2.63, and 1e-3 of the best loss, 2530."""
    ctx = context(Newsgroups(posts="as published"))
    problem, episode = ctx.problem, ctx.problem.episode("train", 0)
    theta = problem.init_inner(problem.init_outer(), episode)
    for decay, expected in TRUTH.items():
        lam = {"log_decay": torch.tensor([decay], dtype=F64)}
        found = to_accuracy(ctx, lam, theta, episode, norm=5e-4)
        theta = found.theta
        assert found.reached
        assert float(problem.outer_loss(lam, theta, episode.outer)) == pytest.approx(
            expected, abs=0.06
        )
    method = HOAG()
    ctx.meter.counts.inner_gradients = 0
    state = method.init(ctx)
    for ctx.step in range(20):
        state, log = method.step(ctx, state)
    assert float(state.lam["log_decay"]) == pytest.approx(-2.63, abs=0.02)
    assert log["outer_loss"] == pytest.approx(2530.0, rel=1e-3)
    assert ctx.meter.counts.inner_gradients < 700, "an 11-point warm-started grid takes 1,470"


def test_the_real_parts(real):
    problem = context(Newsgroups(posts="as published")).problem
    assert len(problem.parts["train"]["y"]) == 11471 and len(problem.parts["test"]["y"]) == 7662
    assert problem.shape == (14547,)


@pytest.mark.parametrize("classes", [2, 20])
def test_solves_end_where_scikit_learns_logistic_regression_does(classes):
    needs("sklearn")
    from sklearn.linear_model import LogisticRegression

    problem, x = few(classes=classes)
    lam = {"log_decay": torch.tensor([-1.3], dtype=F64)}
    episode = problem.episode("train", 0)
    ctx = given(problem, *Newsgroups(classes=classes).offers)
    found = to_accuracy(ctx, lam, problem.init_inner(lam, episode), episode, norm=1e-10)
    earlier = np.arange(60) % 3 != 0
    y = np.arange(60) % 20 >= 10 if classes == 2 else np.arange(60) % 20
    theirs = LogisticRegression(
        C=np.exp(1.3), fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=10_000
    ).fit(x[earlier], y[earlier])
    w = theirs.coef_[0] if classes == 2 else theirs.coef_.T
    torch.testing.assert_close(found.theta["w"], torch.from_numpy(w), rtol=1e-6, atol=1e-7)
