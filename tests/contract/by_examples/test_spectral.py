"""Spectral risks: exact weights, the conditions of their optimality, and their derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import F64

from metabench.contract.by_examples.spectral import SortedWeights, Spectrum, spectrum, weights

KINDS = {"superquantile": (0.5, 0.25, 0.6), "extremile": (2.0, 1.5), "esrm": (1.0, 0.5)}


def of(kind, level, nu=1.0):
    return spectrum(kind, torch.tensor(level, dtype=F64), torch.tensor(nu, dtype=F64))


def given_sigma(sigma, nu):
    """A spectrum that is known for its own size only."""
    mass = torch.tensor([0.0, *np.cumsum(sigma)], dtype=F64)
    return Spectrum(lambda t: mass, torch.tensor(nu, dtype=F64))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((0.0, 1.0), (0.25, 0.75)), ((0.0, 0.2), (0.45, 0.55)), ((1.0, 0.0), (0.75, 0.25))],
)
def test_two_losses(losses, expected):
    """q_2 = 1/2 + min(sigma_2 - 1/2, (l_2 - l_1) / (4 nu))."""
    q = given_sigma((0.25, 0.75), 1.0).weights(torch.tensor(losses, dtype=F64))
    torch.testing.assert_close(q, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-15)
    q = weights(np.array(losses), np.array([0.25, 0.75]), 2.0)
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("kind", "level", "n", "expected"),
    [
        ("superquantile", 0.5, 4, (0, 0, 0.5, 0.5)),
        ("superquantile", 0.6, 4, (0, 0, 0.375, 0.625)),  # a weight in part
        ("extremile", 2.0, 4, (0.0625, 0.1875, 0.3125, 0.4375)),
        ("esrm", 1.0, 4, (0.1652961767, 0.2122444921, 0.2725273224, 0.3499320088)),
        ("extremile", 1.0, 3, (1 / 3, 1 / 3, 1 / 3)),
        ("superquantile", 0.0, 2, (0.5, 0.5)),
    ],
)
def test_spectra(kind, level, n, expected):
    sigma = of(kind, level).sigma(n)
    torch.testing.assert_close(sigma, torch.tensor(expected, dtype=F64), rtol=0, atol=5e-11)


LOSSES = arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 50, width=32))
CHOICES = st.sampled_from([(k, level) for k, levels in KINDS.items() for level in levels])


@settings(deadline=None, max_examples=80)
@given(losses=LOSSES, choice=CHOICES, nu=st.floats(0.01, 10))
def test_weights_solve_their_quadratic_programme(losses, choice, nu):
    """Feasible, and no vertex of P(sigma) is better along the gradient: necessary and sufficient
    for a concave function on a convex hull."""
    risk, n = of(*choice, nu), len(losses)
    sigma = risk.sigma(n).numpy()
    q = risk.weights(torch.from_numpy(losses)).numpy()
    scale = 1 + losses.max() / (n * nu)
    assert abs(q.sum() - 1) <= 1e-12 * n * scale
    tails = np.sort(q)[::-1].cumsum() - sigma[::-1].cumsum()
    assert tails.max() <= 1e-12 * n * scale  # majorised by sigma
    slope = losses - n * nu * (q - 1 / n)
    best = np.sort(slope) @ sigma  # of all vertices
    assert best - slope @ q <= 1e-10 * (1 + losses.max())
    np.testing.assert_allclose(weights(losses, sigma, n * nu), q, rtol=0, atol=1e-12 * scale)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), choice=CHOICES, nu=st.floats(0.1, 10))
def test_losses_replaced_one_by_one(data, choice, nu):
    losses = data.draw(LOSSES)
    n = len(losses)
    sigma = of(*choice).sigma(n).numpy()
    held = SortedWeights(losses, sigma, n * nu)
    for _ in range(4):
        i, new = data.draw(st.integers(0, n - 1)), data.draw(st.floats(0, 50, width=32))
        held.replace(losses[i], new)
        losses[i] = new
        np.testing.assert_array_equal(held.sorted, np.sort(losses))
    expected = weights(losses, sigma, n * nu)
    found = [held.of(loss) for loss in losses]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * (1 + 50 / nu))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_to_second_order(kind):
    """Of the risk in losses, level and nu, where no block changes."""
    gen = torch.Generator().manual_seed(0)
    losses = (3 * torch.rand(9, generator=gen, dtype=F64)).requires_grad_()
    level = torch.tensor(KINDS[kind][0] + 0.03, dtype=F64, requires_grad=True)
    nu = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def risk(losses, level, nu):
        return spectrum(kind, level, nu).risk(losses)

    assert torch.autograd.gradcheck(risk, (losses, level, nu), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(risk, (losses, level, nu), eps=1e-6, atol=1e-6)
    (g,) = torch.autograd.grad(risk(losses, level, nu), losses)
    q = spectrum(kind, level, nu).weights(losses)
    torch.testing.assert_close(g, q.detach(), rtol=0, atol=1e-14)  # Danskin


def test_the_derivative_of_the_weights_averages_within_blocks():
    """dq = (I - P) dl / (n nu), P the mean over each block; a block of one does not move."""
    risk = given_sigma((0.0, 0.1, 0.2, 0.7), 1.0)
    losses = torch.tensor([0.1, 5.0, 0.2, 0.3], dtype=F64)
    (jacobian,) = torch.autograd.functional.jacobian(lambda x: (risk.weights(x),), losses)
    small = torch.tensor([0, 2, 3])
    block = (torch.eye(3, dtype=F64) - 1 / 3) / 4
    torch.testing.assert_close(jacobian[small][:, small], block, rtol=0, atol=1e-15)
    assert not jacobian[1].any() and not jacobian[:, 1].any()


def test_functional_derivatives_and_vmap():
    risk, gen = of("extremile", 2.0), torch.Generator().manual_seed(1)
    losses = torch.rand(3, 6, generator=gen, dtype=F64)
    each = torch.stack([torch.func.grad(risk.risk)(row) for row in losses])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(risk.risk))(losses), each)
    direction = torch.rand(6, generator=gen, dtype=F64)
    _, slope = torch.func.jvp(risk.risk, (losses[0],), (direction,))
    torch.testing.assert_close(slope, each[0] @ direction)
