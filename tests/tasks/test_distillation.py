"""distillation: ten images make any linear classifier, and learned ones beat means of classes."""

from __future__ import annotations

import pytest
import torch
from oracles import F64, after_training, context, differences, given, hypergradient
from torch.nn import functional as F

from metabench.contract.method import inner_loop
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.registry import methods, tasks
from metabench.run.runner import run_cell
from metabench.suites import loading
from metabench.tasks.distillation import Distillation, DistillationProblem

CPU = torch.device("cpu")


def problem(
    side: int = 4, n: int = 300, noise: float = 0.3, **settings: object
) -> DistillationProblem:
    """On made-up images: a pattern a class, and noise."""
    gen = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 1, side, side, generator=gen)
    y = torch.arange(n) % 10
    x = (patterns[y] + noise * torch.randn(n, 1, side, side, generator=gen)).clamp(0, 1)
    task = Distillation(
        n_train=200, n_valid=60, n_test=100, dtype="float64", **{"batch": 200, **settings}
    )
    return DistillationProblem(task, Seeds.of(0), CPU, {"train": (x, y), "test": (x, y)})


def trained(ctx, lam, steps, lr):
    episode = ctx.problem.episode("train", 0)
    start = ctx.problem.init_inner(lam, episode)
    return inner_loop(ctx, lam, start, episode, steps=steps, lr=lr)[0], episode


def test_ten_images_and_one_step_make_any_linear_classifier():
    """x_k = (10 / eta) (W_k - mean W): the same probabilities as W."""
    ctx = given(problem(), "outer_gradient")
    w = torch.randn(10, 16, generator=torch.Generator().manual_seed(3), dtype=F64)
    eta = 0.3
    lam = {"images": (10 / eta * (w - w.mean(0))).reshape(1, 10, 1, 4, 4)}
    theta, episode = trained(ctx, lam, 1, eta)
    x = episode.outer["x"].flatten(1)
    found = ctx.problem.logits(theta, episode.outer["x"]).softmax(1)
    assert torch.allclose(found, F.linear(x, w).softmax(1), atol=1e-13)


def fitted(x, y):
    """W [10, features] of logistic regression without bias."""
    w = torch.zeros(10, x.shape[1], dtype=F64, requires_grad=True)
    rule = torch.optim.LBFGS([w], max_iter=2000, tolerance_grad=1e-11, tolerance_change=0,
                             line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        rule.zero_grad()
        value = F.cross_entropy(F.linear(x, w), y)
        value.backward()
        return value

    rule.step(closure)
    return w.detach()


def test_the_best_images_are_logistic_regression():
    """At the maximum likelihood classifier the hypergradient is 0; elsewhere it is not.

    With so much noise that the classes overlap: else there would be no finite maximum."""
    ctx = given(
        problem(noise=3.0), "outer_gradient", "second_order", "lam_in_inner_loss", "episodes"
    )
    outer = ctx.problem.parts["train"]
    best = fitted(outer["x"].flatten(1), outer["y"])
    lam = {"images": (10 * (best - best.mean(0))).reshape(1, 10, 1, 4, 4)}
    settings = {"inner_steps": 1, "inner_lr": 1.0}
    at_best = hypergradient(ctx, "bilevel", lam=lam, **settings)["images"]
    at_half = hypergradient(ctx, "bilevel", lam={"images": lam["images"] / 2}, **settings)["images"]
    assert float(at_best.norm()) < 1e-6 * float(at_half.norm()) and float(at_half.norm()) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"per_class": 2, "batches": 2, "rates": 1, "l2": 0.1}])
def test_first_images_of_logistic_regression_make_that_classifier(settings):
    ctx = given(problem(noise=3.0, first="logistic", **settings), "outer_gradient")
    theta, episode = trained(ctx, ctx.problem.init_outer(), 1, 1.0)
    x, y = episode.outer["x"].flatten(1), episode.outer["y"]
    best = F.linear(x, fitted(x, y))
    found = ctx.problem.logits(theta, episode.outer["x"])
    assert torch.allclose(found.softmax(1), best.softmax(1), atol=1e-3)
    least, loss = F.cross_entropy(best, y), F.cross_entropy(found, y)
    assert float(least) <= float(loss) <= float(least) + 1e-5
    with pytest.raises(ValueError, match="first logistic is for network linear, not for mlp"):
        Distillation(first="logistic", network="mlp")


@pytest.mark.slow
def test_ten_images_learn_mnist_as_logistic_regression_does():
    """Another program, on all 60,000 images and with pixels on another scale: accuracy 0.9246,
    cross-entropy 0.2396 on training and 0.2784 on test images, after as many iterations. Neither
    is at the minimum: training loss is what they have lowered, test accuracy hardly moves."""
    ctx = context(tasks.get("distillation")(
        first="logistic", n_train=59_999, n_valid=1, batch=59_999
    ))  # fmt: skip
    theta, episode = trained(ctx, ctx.problem.init_outer(), 1, 1.0)
    train = ctx.problem.metrics({}, theta, episode)
    test = ctx.problem.metrics({}, theta, ctx.problem.episode("test", 0))
    assert 0.2 < train["loss"] < 0.2396
    assert test["loss"] == pytest.approx(0.2784, abs=1e-2)
    assert test["accuracy"] == pytest.approx(0.9246, abs=2e-3)


@pytest.mark.parametrize(
    "settings",
    [{"rates": 2, "batches": 2, "per_class": 2}, {"network": "mlp", "width": 3, "l2": 0.1}],
)
def test_the_gradient_of_pixels_and_rates_is_that_of_differences(settings):
    ctx = given(
        problem(**settings), "outer_gradient", "second_order", "lam_in_inner_loss", "episodes"
    )
    method = methods.get("bilevel")(inner_steps=4, inner_lr=0.3)
    lam = ctx.problem.init_outer()
    found = hypergradient(ctx, "bilevel", lam=lam, inner_steps=4, inner_lr=0.3)
    true = differences(after_training(method, ctx), lam, 1e-4)
    for name, value in true.items():
        assert torch.allclose(found[name], value, atol=1e-9), name


def test_a_rate_is_a_factor_of_the_step_size_and_the_last_one_stays():
    ctx = given(problem(rates=2), "outer_gradient")
    lam = ctx.problem.init_outer()
    first, plain = lam["images"], {"images": lam["images"]}
    lam = {"images": first, "log_rate": torch.tensor([0.5, -0.7], dtype=F64)}
    theta, _ = trained(ctx, lam, 3, 0.2)
    ctx = given(problem(), "outer_gradient")
    episode = ctx.problem.episode("train", 0)
    by_hand = ctx.problem.init_inner(plain, episode)
    for rate in (0.5, -0.7, -0.7):
        lr = 0.2 * float(torch.tensor(rate, dtype=F64).exp())
        by_hand, _ = inner_loop(ctx, plain, by_hand, episode, steps=1, lr=lr)
    assert torch.allclose(theta["head.weight"], by_hand["head.weight"], atol=1e-14)


def test_batches_take_turns():
    one = problem(batches=3)
    lam, theta = one.init_outer(), {"head.weight": torch.eye(10, 16, dtype=F64)}
    losses = [float(one.inner_loss(lam, theta, one.episode("train", 0).batch(t))) for t in range(4)]
    assert losses[0] == losses[3] and len(set(losses)) == 3


def test_networks_differ_from_episode_to_episode_where_they_are_random():
    fixed, other = problem(network="mlp"), problem(network="mlp", start="random")
    for one, same in ((fixed, True), (other, False)):
        starts = [one.init_inner({}, one.episode("test", i))["head.weight"] for i in range(2)]
        assert torch.equal(*starts) == same
    assert fixed.count("test") == 1 and other.count("test") is None
    with pytest.raises(ValueError, match="set start to fixed"):
        Distillation(start="random")


def test_first_images_are_real_ones_or_means():
    one = problem(first="real", per_class=2)
    x, real = one.init_outer()["images"][0], one.parts["train"]
    for image, label in zip(x, one.labels, strict=True):
        assert any(torch.equal(image, r) for r in real["x"][real["y"] == label])
    means = problem(first="mean").init_outer()["images"][0]
    assert torch.allclose(means[7], real["x"][real["y"] == 7].mean(0))
    assert float(real["x"].mean()) == pytest.approx(0, abs=1e-12)
    assert float(real["x"].std(correction=0)) == pytest.approx(1, abs=1e-12)


def test_lenet_has_the_papers_shape():
    one = problem(network="lenet", side=28, n=300)
    theta = one.init_inner({}, one.episode("test", 0))
    assert sum(v.numel() for v in theta.values()) == 61706
    assert one.logits(theta, one.parts["test"]["x"][:3]).shape == (3, 10)
    with pytest.raises(ValueError, match="too small for network lenet"):
        problem(network="lenet", side=8)


def test_learned_images_beat_means_of_classes():
    """On small MNIST digits, one step of a linear model."""
    task = tasks.get("distillation")(shrink=4, n_train=2000, n_valid=500, n_test=1000, first="mean")
    ctx = context(task)
    method = methods.get("bilevel")(inner_steps=1, inner_lr=1.0, outer_lr=0.1)
    state = method.init(ctx)
    accuracies = []
    for ctx.step in range(61):
        if ctx.step in (0, 60):
            episode = ctx.problem.episode("test", 0)
            theta = method.adapt(ctx, state, episode)
            accuracies.append(ctx.problem.metrics(state.lam, theta, episode)["accuracy"])
        state, _ = method.step(ctx, state)
    assert accuracies[0] < 0.72 < 0.82 < accuracies[1]


def test_methods_that_start_at_lam_are_refused_with_the_reason():
    said = why_not(tasks.get("distillation")(), methods.get("maml")())
    assert said == "lam is what theta is trained on, not where it starts"


@pytest.mark.slow
def test_every_cell_of_the_suite_runs_and_the_images_of_logistic_regression_are_best():
    cells = [c for c in loading.load("distillation").cells("smoke") if c.skip is None]
    context(cells[0].parts[0])  # skips where the images are missing
    found = {(c.row, c.column): run_cell(c.cell, device="cpu", workers=1) for c in cells}
    assert {at: r.reason for at, r in found.items() if r.status != "done"} == {}
    scores = {at: r.metrics["test"]["accuracy"].mean for at, r in found.items()}
    one_step = {row: score for (row, column), score in scores.items() if column == "softmax"}
    assert set(one_step) == {"reverse", "real", "mean", "exact"}
    assert max(one_step, key=lambda row: one_step[row]) == "exact"
