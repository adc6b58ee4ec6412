"""Denoising of photographs: losses by plain loops, bounds by dense matrices, known counts."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import needs
from oracles import F64, context, differences

from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, tasks
from metabench.hypergradients.inexact.inner_solve import to_accuracy

needs("skimage")
foe = importlib.import_module("metabench.tasks.foe_denoise")
scikit_image = importlib.import_module("metabench.tasks.data.scikit_image")
CPU = torch.device("cpu")
SMALL = {"size": 6, "n_train": 2, "n_test": 3}
NAMES = {"tv_denoise": {}, "foe_denoise": {"filters": 3, "filter_size": 2}}


def few(name, **more):
    return tasks.get(name)(**{**SMALL, **NAMES[name], **more}).build(Seeds.of(0), CPU)


def lam_of(problem, gen, spread=1.0):
    """The first lam, moved at random."""
    return {
        k: v + spread * torch.randn(v.shape, generator=gen, dtype=F64)
        for k, v in problem.init_outer().items()
    }


def by_loops(name, lam, x):
    """R(lam, x), term by term."""
    n, total = len(x), 0.0
    if name == "tv_denoise":
        scale = math.exp(lam["log_smoothing"])
        for i in range(n):
            for j in range(n):
                for a, b in ((i + 1, j), (i, j + 1)):
                    if a < n and b < n:
                        total += math.hypot(float(x[a, b] - x[i, j]), scale)
        return 0.5 * math.exp(lam["log_weight"]) * total
    for c, w, b in zip(lam["filters"], lam["log_weights"], lam["log_smoothing"], strict=True):
        side = len(c)
        for i in range(n - side + 1):
            for j in range(n - side + 1):
                met = float((c * x[i : i + side, j : j + side]).sum())
                total += math.exp(w) * math.hypot(met, math.exp(b))
    return 0.5 * math.exp(lam["strength"]) * total


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name):
    problem, gen = few(name), torch.Generator().manual_seed(1)
    lam, episode = lam_of(problem, gen), problem.episode("train", 0)
    x = torch.rand((6, 6), generator=gen, dtype=F64)
    far = float((x - episode.inner["noisy"]).square().sum())
    found = problem.inner_loss(lam, {"image": x}, episode.inner)
    assert float(found) == pytest.approx(0.5 * far + by_loops(name, lam, x), rel=1e-12)
    g = differences(lambda t: problem.inner_loss(lam, t, episode.inner), {"image": x})["image"]
    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(problem.inner_loss(lam, {"image": leaf}, episode.inner), leaf)
    torch.testing.assert_close(exact, g, rtol=1e-6, atol=1e-8)
    error = float((x - episode.outer["clean"]).square().sum())
    assert float(problem.outer_loss(lam, {"image": x}, episode.outer)) == 0.5 * error
    told = problem.metrics(lam, {"image": x}, episode)
    assert told["psnr"] == pytest.approx(-10 * math.log10(error / 36))
    assert told["loss"] == 0.5 * error


def second(problem, lam, x, y):
    """H [n, n] and J [n, lam's numbers] at an image, by nested differentiation."""

    def gradient(lam, v):
        loss = lambda t: problem.inner_loss(lam, {"image": t.view_as(x)}, {"noisy": y})  # noqa: E731
        return torch.func.grad(loss)(v)

    v = x.flatten()
    mixed = torch.func.jacrev(gradient)(lam, v)
    h = torch.func.jacrev(gradient, argnums=1)(lam, v)
    return h, torch.cat([mixed[k].reshape(len(v), -1) for k in lam], 1)


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 2.0]),
    step=st.sampled_from([1e-4, 1e-2, 1.0]),
    contrast=st.sampled_from([0.0, 0.02, 1.0]),
)
def test_bounds_hold_for_dense_matrices(name, seed, spread, step, contrast):
    """Curvature, |J|, and how both change between an image and an inner minimiser."""
    problem, gen = few(name), torch.Generator().manual_seed(seed)
    lam, y = lam_of(problem, gen, spread), problem.episode("train", 0).inner["noisy"]
    bounds = problem.moduli(lam)
    assert bounds.certified and bounds.mu == 1
    x = 0.5 + contrast * torch.rand((6, 6), generator=gen, dtype=F64)
    solved = to_accuracy(
        context(problem.task), lam, {"image": x}, Episode({"noisy": y}, {}, 0), norm=1e-9
    ).theta["image"]
    assert float(solved.norm()) <= float(y.norm()) + 1e-9
    near = solved + step * torch.randn((6, 6), generator=gen, dtype=F64)
    slack = 1 + 1e-9
    (h0, j0), (h1, j1) = (second(problem, lam, at, y) for at in (solved, near))
    for h, j, at in ((h0, j0, solved), (h1, j1, near)):
        values = torch.linalg.eigvalsh(h)
        assert bounds.mu <= float(values[0]) * slack and float(values[-1]) <= bounds.smooth * slack
        assert norm(j) <= bounds.mixed({"image": at}) * slack
    away = float((near - solved).norm())
    assert norm(h1 - h0) <= bounds.hessian_lipschitz * away * slack + 1e-9
    assert norm(j1 - j0) <= bounds.mixed_lipschitz * away * slack + 1e-9


@pytest.mark.parametrize(
    ("name", "least"), [("tv_denoise", (0.7, 0.9, 0.6, 0.2)), ("foe_denoise", (0.7, 0.8, 0.1, 0.3))]
)
def test_bounds_are_nearly_reached(name, least):
    """Somewhere: where differences are about as large as the smoothing, towards what bends most."""
    more = {} if name == "tv_denoise" else {"filters": 1}
    problem, gen = few(name, size=4, **more), torch.Generator().manual_seed(0)
    y, most = problem.noisy[0], torch.zeros(4)
    for _ in range(100):
        lam = lam_of(problem, gen)
        bounds, scale = problem.moduli(lam), float(lam["log_smoothing"].exp().mean())
        spread = 10 ** (2 * torch.rand(1, generator=gen, dtype=F64) - 1)
        x = scale * spread * torch.randn((4, 4), generator=gen, dtype=F64)
        h, j = second(problem, lam, x, y)
        values, vectors = torch.linalg.eigh(h)
        d = 1e-3 * scale
        h1, j1 = second(problem, lam, x + d * vectors[:, -1].view(4, 4), y)
        found = [
            (float(values[-1]) - 1) / (bounds.smooth - 1), norm(j) / bounds.mixed({"image": x}),
            norm(j1 - j) / d / bounds.mixed_lipschitz, norm(h1 - h) / d / bounds.hessian_lipschitz,
        ]  # fmt: skip
        most = most.maximum(torch.tensor(found))
    assert all(low < high < 1 for low, high in zip(least, most.tolist(), strict=True)), most


def test_the_response_of_filters_is_theirs_as_matrices():
    filters = torch.randn((4, 3, 3), generator=torch.Generator().manual_seed(0), dtype=F64)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=F64)
    total, n = torch.zeros((400, 400), dtype=F64), 20
    for w, c in zip(weights, filters, strict=True):
        rows = torch.func.jacrev(
            lambda v, c=c: torch.nn.functional.conv2d(v.view(1, 1, n, n), c[None, None]).flatten()
        )(torch.zeros(n * n, dtype=F64))
        total += w * rows.T @ rows
    largest = float(torch.linalg.eigvalsh(total)[-1])
    assert 0.9 * foe.most_response(weights, filters) < largest < foe.most_response(weights, filters)


def test_images_are_apart_and_by_seed():
    problem, other = few("tv_denoise"), tasks.get("tv_denoise")(**SMALL).build(Seeds.of(1), CPU)
    assert [problem.count(s) for s in ("train", "valid", "test")] == [2, 2, 3]
    assert problem.episodes_per_step == 2
    train = [problem.episode("train", i) for i in range(4)]
    assert torch.equal(train[0].inner["noisy"], train[2].inner["noisy"])
    assert torch.equal(train[1].outer["clean"], problem.episode("valid", 1).outer["clean"])
    test = [problem.episode("test", i).outer["clean"] for i in range(3)]
    every = [t.outer["clean"] for t in train[:2]] + test
    assert all(float((a - b).norm()) > 0.1 for i, a in enumerate(every) for b in every[:i])
    assert not torch.equal(train[0].inner["noisy"], other.episode("train", 0).inner["noisy"])
    large = few("tv_denoise", size=64, noise=0.2)
    assert float((large.noisy - large.clean).std()) == pytest.approx(0.2, rel=0.01)


def test_settings_that_contradict():
    with pytest.raises(ValueError, match="n_train 9 and n_test 6 are more than the 12"):
        tasks.get("tv_denoise")(n_train=9)
    with pytest.raises(ValueError, match="filter_size 7 is more than the image's size 5"):
        tasks.get("foe_denoise")(size=5, filter_size=7)
    scaled = tasks.get("foe_denoise")(size=8).build(Seeds.of(0), CPU).init_outer()
    assert sum(v.numel() for v in scaled.values()) == 89
    paper = tasks.get("foe_denoise")(size=8, filters=48, filter_size=7).build(Seeds.of(0), CPU)
    assert sum(v.numel() for v in paper.init_outer().values()) == 2449
    assert float(paper.first.mean((1, 2)).abs().max()) < 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_does_not_depend_on_the_rule(name):
    task = tasks.get(name)(**{**SMALL, **NAMES[name], "size": 8})
    ctx = context(task)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 1)
    start = ctx.problem.init_inner(lam, episode)
    found = [
        to_accuracy(ctx, lam, start, episode, norm=1e-9, rule=rule)
        for rule in ("lbfgs", "fista", "gd")
    ]
    assert all(f.reached and f.certified for f in found)
    for f in found[1:]:
        torch.testing.assert_close(f.theta, found[0].theta, rtol=0, atol=2e-9)


def exact_loss(ctx, lam):
    """The mean outer loss at inner minimisers, to the tenth digit."""
    problem, total = ctx.problem, 0.0
    for i in range(problem.episodes_per_step):
        episode = problem.episode("train", i)
        start = problem.init_inner(lam, episode)
        with ctx.uncounted():
            found = to_accuracy(ctx, lam, start, episode, norm=1e-11)
        total += float(problem.outer_loss(lam, found.theta, episode.outer))
    return total / problem.episodes_per_step


@pytest.mark.parametrize("name", NAMES)
def test_hypergradients_are_differences_of_the_exact_loss(name):
    """And every step that MAID accepts makes it less, from a coarse start."""
    ctx = context(tasks.get(name)(**{**SMALL, **NAMES[name]}))
    exact = methods.get("maid")(controller="fixed", first_accuracy=1e-10)
    lam = ctx.problem.init_outer()
    found = [
        exact.hypergradient(ctx, lam, None, ctx.problem.episode("train", i)).grad for i in range(2)
    ]
    expected = differences(lambda p: torch.tensor(exact_loss(ctx, p), dtype=F64), lam, h=1e-4)
    for k, g in expected.items():
        torch.testing.assert_close((found[0][k] + found[1][k]) / 2, g, rtol=1e-5, atol=1e-6)
    method = methods.get("maid")(first_accuracy=1.0, first_step=0.3)
    state, before, accepted = method.init(ctx), exact_loss(ctx, lam), 0.0
    for ctx.step in range(4):
        state, log = method.step(ctx, state)
        after = exact_loss(ctx, state.lam)
        assert log["certified"] and (after < before or not log["accepted"])
        before, accepted = after, accepted + log["accepted"]
    assert accepted >= 3


@pytest.mark.slow
def test_the_known_counts_and_losses_of_twelve_photographs():
    """As another program has it: images of 64x64, noise of seed 0 at (-2, -4.5).

    Which photographs and how they were made small is not said there: so 2 % for the best loss.
    """
    ctx = context(tasks.get("tv_denoise")())
    problem = ctx.problem
    clean = scikit_image.load(64)
    gen = torch.Generator().manual_seed(0)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=gen, dtype=F64)
    lam = {k: torch.tensor(v, dtype=F64) for k, v in (("log_weight", -2), ("log_smoothing", -4.5))}
    episodes = [
        Episode({"noisy": y}, {"clean": x}, i)
        for i, (x, y) in enumerate(zip(clean, noisy, strict=True))
    ]
    most, at = {}, {}
    for rule in ("fista", "gd"):
        for size in (1e-1, 1e-3):
            starts = [problem.init_inner(lam, e) for e in episodes]
            found = [
                to_accuracy(ctx, lam, t, e, norm=size, rule=rule)
                for t, e in zip(starts, episodes, strict=True)
            ]
            most[rule, size] = max(f.steps for f in found)
            at = [problem.metrics(lam, f.theta, e) for f, e in zip(found, episodes, strict=True)]
    mean = {k: sum(m[k] for m in at) / len(at) for k in at[0]}
    known = {("fista", 1e-1): 40, ("fista", 1e-3): 73, ("gd", 1e-1): 171, ("gd", 1e-3): 387}
    assert most == {k: pytest.approx(v, rel=0.02) for k, v in known.items()}
    unfiltered = float((noisy - clean).square().sum()) / 24
    assert unfiltered == pytest.approx(20.62, abs=0.005)
    assert mean["psnr_noisy"] == pytest.approx(19.97, abs=0.005)
    assert mean["loss"] == pytest.approx(4.796, rel=0.02)
    assert mean["psnr"] == pytest.approx(26.85, abs=0.05)
