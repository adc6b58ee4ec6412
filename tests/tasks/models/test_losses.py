"""Families of losses: closed forms, limits, and what their derivatives are."""

import importlib

import pytest
import torch
from oracles import F64

losses = importlib.import_module("metabench.tasks.models.losses")
GEN = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 10, generator=GEN, dtype=F64)
LABELS = torch.randint(10, (12,), generator=GEN)
PLACES = torch.arange(12)


def classes(form, q=0.0):
    return losses.of_classes(form, n=12, classes=10, q=q)


def numbers(form, **more):
    set_ = {"power": 2.0, "delta": 1.0, "smoothing": 0.0, "bound": None, **more}
    return losses.of_numbers(form, n=12, **set_)


def first(learned):
    return learned.first(torch.Generator().manual_seed(1))


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def slopes(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@pytest.mark.parametrize("q", [0.0, 1e-5, 0.3, 0.7, 1.0])
def test_generalised_cross_entropy_between_its_ends(q):
    learned = classes("gce", q)
    p = LOGITS.softmax(1).gather(1, LABELS[:, None]).squeeze(1)
    expected = -p.log() if q == 0 else (1 - p**q) / q
    close(learned.loss(first(learned), LOGITS, LABELS, PLACES), expected, 1e-9)
    close(slopes(lambda z: learned.loss(first(learned), z, LABELS, PLACES), LOGITS),
          (p**q)[:, None] * slopes(lambda z: losses.cross_entropy(z, LABELS), LOGITS))  # fmt: skip


def test_growth_and_its_slope_where_the_series_ends():
    for z in (-1e-3, -0.999e-3, 0.0, 1e-3, -2.0):
        at = torch.tensor(z, dtype=F64, requires_grad=True)
        value = losses.growth(at)
        slope = torch.autograd.grad(value, at)[0]
        terms = [(1.0, 0.5), (z / 2, z / 3), (z**2 / 6, z**2 / 8), (z**3 / 24, z**3 / 30)]
        if z > -1:
            close(value.detach(), torch.tensor(sum(a for a, _ in terms), dtype=F64), 1e-13)
            close(slope, torch.tensor(sum(b for _, b in terms), dtype=F64), 1e-11)
        else:
            close(value.detach(), torch.tensor(z, dtype=F64).expm1() / z)


def test_taylor_is_its_polynomial():
    y, p = torch.tensor([1.0, 0.0, 0.4], dtype=F64), torch.tensor([0.2, 0.9, -0.3], dtype=F64)
    t = [0.1, -0.2, 0.5, -1.5, 0.7, 2.0, -0.4, 0.9]
    lam = {"centre": torch.tensor(t[:2], dtype=F64), "coefficient": torch.tensor(t[2:], dtype=F64)}
    a, b = y - t[0], p - t[1]
    expected = -(
        t[2] * b + t[3] * b**2 / 2 + t[4] * b**3 / 6
        + t[5] * a * b + t[6] * a * b**2 / 2 + t[7] * a**2 * b / 2
    )  # fmt: skip
    close(losses.taylor(lam, y, p), expected)


def test_taylor_starts_as_squared_error_less_what_no_weight_sees():
    learned = classes("taylor")
    target = torch.nn.functional.one_hot(LABELS, 10).to(F64)
    brier = (LOGITS.softmax(1) - target).square().sum(1)
    close(learned.loss(first(learned), LOGITS, LABELS, PLACES), brier - 1)
    learned, p, y = numbers("taylor"), LOGITS[:, 0], LOGITS[:, 1]
    close(learned.loss(first(learned), p, y, PLACES), (p - y) ** 2 - y**2)


def test_a_bounded_polynomial_stays_bounded():
    learned = numbers("taylor", bound=2.0)
    lam = {"centre": torch.zeros(2, dtype=F64), "coefficient": torch.ones(6, dtype=F64)}
    far = torch.tensor([-1e6, 1e6], dtype=F64)
    assert float(learned.loss(lam, far, far, PLACES[:2]).abs().max()) < 50


def test_powers_and_huber():
    p, y = LOGITS[:, 0], LOGITS[:, 1]
    e = (p - y).abs()
    close(numbers("power").loss({"power": torch.tensor(1.3, dtype=F64)}, p, y, PLACES), e**1.3)
    smooth = numbers("power", smoothing=0.2).loss({"power": torch.tensor(1.0, dtype=F64)}, p, y, 0)
    close(smooth, (e**2 + 0.04).sqrt())
    huber = numbers("huber", delta=0.5)
    assert first(huber)["log_delta"].exp() == pytest.approx(0.5)
    # In the middle squared error, far away a line of slope 2 delta.
    x = torch.tensor([1e-3, 100.0], dtype=F64)
    g = slopes(lambda z: huber.loss(first(huber), z, torch.zeros_like(z), 0), x)
    close(g, torch.tensor([2e-3, 1.0], dtype=F64), 1e-4)


def test_a_transition_matrix_corrects_the_likelihood():
    """-log sum_k p_k T_ky; with T one-hot rows it is cross-entropy."""
    learned = classes("transition")
    lam = {"transition": torch.randn(10, 10, generator=GEN, dtype=F64)}
    t = lam["transition"].softmax(1)
    expected = -(LOGITS.softmax(1) @ t)[PLACES, LABELS].log()
    close(learned.loss(lam, LOGITS, LABELS, PLACES), expected)
    sure = {"transition": 1e3 * torch.eye(10, dtype=F64)}
    close(learned.loss(sure, LOGITS, LABELS, PLACES), losses.cross_entropy(LOGITS, LABELS))
    start = first(learned)["transition"].softmax(1)
    close(start.diag(), torch.full((10,), 0.9, dtype=F64))


def test_a_weight_net_weighs_slopes_and_its_loss_is_their_integral():
    learned = classes("weight_net")
    lam = first(learned)
    ce = losses.cross_entropy(LOGITS, LABELS)
    v = losses.weight(lam, ce)
    assert v.shape == (12,) and float(v.min()) > 0 and float(v.max()) < 1
    g = slopes(lambda z: learned.loss(lam, z, LABELS, PLACES), LOGITS)
    close(g, v[:, None] * slopes(lambda z: losses.cross_entropy(z, LABELS), LOGITS), 1e-12)
    steps = torch.linspace(0, 1, 100001, dtype=F64)
    fine = torch.trapezoid(losses.weight(lam, ce[:, None] * steps), dx=1e-5) * ce
    close(learned.loss(lam, LOGITS, LABELS, PLACES), fine, 1e-3)


def test_the_second_derivative_of_a_weighed_loss_is_the_slope_of_the_weight():
    lam = first(classes("weight_net"))
    at = torch.linspace(0.3, 4.0, 9, dtype=F64, requires_grad=True)
    g = torch.autograd.grad(losses.weighed(lam, at).sum(), at, create_graph=True)[0]
    curvature = torch.autograd.grad(g.sum(), at)[0]
    close(curvature, slopes(lambda x: losses.weight(lam, x), at.detach()), 1e-12)


def test_a_network_starts_near_the_absolute_error():
    learned = numbers("network")
    lam, zero = first(learned), torch.zeros(5, dtype=F64)
    e = torch.linspace(0, 2, 5, dtype=F64)
    up, down = (learned.loss(lam, s * e, zero, 0) for s in (1, -1))
    for side in (up, down):
        assert bool((side.diff() > 0).all()) and bool((side > 0).all())
    assert lam["loss.first"].shape == (50, 2) and lam["loss.end"].shape == (1, 50)


def test_pulls_are_the_weights_where_examples_are_weighed():
    learned = classes("examples")
    lam = {"logit": torch.linspace(-2, 2, 12, dtype=F64)}
    wrong = PLACES < 3
    found = losses.pulls(
        learned, losses.cross_entropy, lam, LOGITS, LABELS, PLACES, torch.zeros(12) > 1
    )
    assert found["weight_wrong"] == 0.0 and found["weight_right"] == found["effective_step"]
    lam = {"logit": torch.where(wrong, -1.0, 2.0).to(F64)}
    found = losses.pulls(learned, losses.cross_entropy, lam, LOGITS, LABELS, PLACES, wrong)
    sigma = [float(torch.tensor(x, dtype=F64).sigmoid()) for x in (-1, 2)]
    assert (found["weight_wrong"], found["weight_right"]) == pytest.approx(sigma)
    p, y = LOGITS[:, 0], LOGITS[:, 1]
    one = numbers("examples")
    found = losses.pulls(one, losses.squared, lam, p, y, PLACES, wrong)
    assert (found["weight_wrong"], found["weight_right"]) == pytest.approx(sigma)
