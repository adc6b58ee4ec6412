"""TAGI against exact conditioning of Gaussians, Monte Carlo, and a Kalman filter."""

from __future__ import annotations

import numpy as np
import pytest

from metabench.tasks.models.dense import Dense
from metabench.tasks.models.tagi import TAGI, Belief

ONE = TAGI(Dense((1, 1)), cap=None)
SINGLE = Belief(np.array([0.5, 0.0]), np.array([0.25, 0.1]))


def near(found, expected, digits=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=digits)


def row(*values):
    return np.array([values], dtype=float)


def updated(net, belief, x, y, var, seen=None):
    moments = net.forward(belief, x)
    return net.update(belief, moments, y, var, np.ones_like(y) if seen is None else seen)


def test_one_weight_and_a_bias():
    """z = w a + b, w ~ N(0.5, 0.25), b ~ N(0, 0.1), a = 2, y = 3, s_y = 0.5."""
    moments = ONE.forward(SINGLE, row(2))
    near(moments[-1].mean, [[1.0]])
    near(moments[-1].var, [[1.1]])
    found, low = ONE.update(SINGLE, moments, row(3), row(0.5), row(1))
    near(found.mean, [1.125, 0.125])
    near(found.var, [0.09375, 0.09375])
    assert low == 0

    h, prior = np.array([2.0, 1.0]), np.diag(SINGLE.var)  # exact marginals, by conditioning
    gain = prior @ h / (h @ prior @ h + 0.5)
    near(found.mean, SINGLE.mean + gain * (3 - h @ SINGLE.mean))
    near(found.var, np.diag(prior - np.outer(gain, h @ prior)))


def test_an_input_with_a_variance():
    near(ONE.forward(SINGLE, row(2), row(0.3))[-1].var, [[1.25]])


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (1.0, (1.3955931148, 2.2137628178, 0.6914624613)),
        (0.0, (0.7978845608, 1.3633802276, 0.5)),
    ],
)
def test_exact_moments_of_a_relu(mean, expected):
    """s = 2; and Monte Carlo with its own errors of about 2e-3."""
    found = [
        float(x) for x in TAGI(Dense((1, 1)), "exact").activated(np.array(mean), np.array(4.0))
    ]
    near(found, expected, 1e-10)
    z = mean + 2 * np.random.default_rng(0).standard_normal(1_000_000)
    near(found[:2], [np.maximum(z, 0).mean(), np.maximum(z, 0).var()], 0.01)
    a = np.maximum(z, 0)
    near(found[2], ((a - a.mean()) * (z - mean)).mean() / 4, 0.01)  # J v_z is the covariance


def test_a_linearised_relu():
    found = TAGI(Dense((1, 1))).activated(row(-1, 2), row(4, 4))
    assert [x.tolist() for x in found] == [[[0.0, 2.0]], [[0.0, 4.0]], [[0.0, 1.0]]]


def test_two_weights():
    """a = (1, 2), w ~ N(0, I), no bias, y = 3, s_y = 1."""
    net = TAGI(Dense((2, 1)), cap=None)
    found, _ = updated(
        net, Belief(np.zeros(3), np.array([1.0, 1.0, 0.0])), row(1, 2), row(3), row(1)
    )
    near(found.mean, [0.5, 1.0, 0.0])
    near(found.var, [5 / 6, 1 / 3, 0.0])


def test_a_hidden_layer_by_loops():
    """What eqs. 6 and 7 say of each number: mean + cov (y - mu) / s, variance - cov^2 / s."""
    net = TAGI(Dense((2, 3, 1)), cap=None, floor=0.0)
    belief = net.prior(np.random.default_rng(1), 1.0)
    x, y, noise = np.array([0.7, -0.4]), 1.3, 0.25
    moments = net.forward(belief, x[None])
    found, _ = net.update(belief, moments, row(y), row(noise), row(1))
    (w1, b1), (w2, _) = net.dense.layers(belief.mean)
    (v1, c1), (v2, c2) = net.dense.layers(belief.var)
    z, v = x @ w1 + b1, (x * x) @ v1 + c1
    slope, a = (z > 0).astype(float), np.maximum(z, 0)
    total = ((v2 + w2**2)[:, 0] * slope * v + v2[:, 0] * a * a).sum() + c2[0] + noise
    near(moments[-1].var[0, 0] + noise, total)
    cov = np.concatenate([
        (v1 * x[:, None] * slope * w2[:, 0]).ravel(), c1 * slope * w2[:, 0], v2[:, 0] * a, c2,
    ])  # fmt: skip
    near(found.mean, belief.mean + cov * (y - moments[-1].mean[0, 0]) / total)
    near(found.var, belief.var - cov**2 / total)


def test_a_batch_adds_the_innovations_of_its_examples():
    net = TAGI(Dense((2, 4, 2)), "exact", cap=None, floor=-np.inf)
    rng = np.random.default_rng(2)
    belief, x, y = net.prior(rng, 1.0), rng.standard_normal((3, 2)), rng.standard_normal((3, 2))
    both, _ = updated(net, belief, x, y, np.ones((3, 2)))
    each = [updated(net, belief, x[i : i + 1], y[i : i + 1], np.ones((1, 2)))[0] for i in range(3)]
    for k in (0, 1):
        near(both[k], belief[k] + sum(one[k] - belief[k] for one in each))


def test_an_output_that_was_not_observed_teaches_nothing():
    net = TAGI(Dense((2, 3, 2)))
    belief = net.prior(np.random.default_rng(3), 1.0)
    blind, _ = updated(net, belief, row(1, 2), row(9, 9), row(1, 1), row(0, 0))
    assert all(np.array_equal(a, b) for a, b in zip(blind, belief, strict=True))
    first, _ = updated(net, belief, row(1, 2), row(9, 9), row(1, 1), row(1, 0))
    other, _ = updated(net, belief, row(1, 2), row(9, -5), row(1, 1), row(1, 0))
    assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first.mean, belief.mean)


@pytest.mark.parametrize("relu", ["linearised", "exact"])
def test_variances_never_grow_and_never_are_negative(relu):
    """Even where the examples of a batch take away more than there is."""
    net, rng = TAGI(Dense((3, 8, 2)), relu), np.random.default_rng(4)
    belief, lows = net.prior(rng, 5.0), 0
    for _ in range(30):
        x, y = 3 * rng.standard_normal((20, 3)), 5 * rng.standard_normal((20, 2))
        new, low = updated(net, belief, x, y, np.full((20, 2), 0.01))
        assert (new.var <= belief.var).all() and (new.var > 0).all()
        assert (np.abs(new.mean - belief.mean) <= np.sqrt(belief.var) * (1 + 1e-12)).all()
        belief, lows = new, lows + low
    assert lows > 0 and np.isfinite(belief.mean).all()


def test_one_linear_layer_is_a_kalman_filter_projected_to_its_diagonal():
    net, rng = TAGI(Dense((3, 1)), cap=None), np.random.default_rng(5)
    belief = net.prior(rng, 2.0)
    mean, p = belief.mean.copy(), np.diag(belief.var)
    for _ in range(10):
        x, y, noise = rng.standard_normal(3), rng.standard_normal(), 0.3
        belief, _ = updated(net, belief, x[None], row(y), row(noise))
        h = np.append(x, 1.0)
        gain = p @ h / (h @ p @ h + noise)
        mean = mean + gain * (y - h @ mean)
        p = np.diag(np.diag(p - np.outer(gain, h @ p)))
    near(belief.mean, mean)
    near(belief.var, np.diag(p))


def test_the_prior_has_hes_variances_times_the_gain():
    net = TAGI(Dense((4, 500, 2)))
    belief = net.prior(np.random.default_rng(6), 3.0)
    (w1, b1), (w2, b2) = net.dense.layers(belief.var)
    assert np.unique(np.append(w1, b1)) == 0.75 and np.unique(np.append(w2, b2)) == 3 / 500
    assert net.dense.layers(belief.mean)[0][0].var() == pytest.approx(0.75, rel=0.1)
