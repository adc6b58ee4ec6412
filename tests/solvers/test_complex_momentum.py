"""Complex momentum: spectral radii of the bilinear game, by eigenvalues and from iterates."""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import F64, context, differences

from metabench.contract import autodiff
from metabench.contract.method import inner_loop
from metabench.core.registry import solvers, tasks

ComplexMomentum = solvers.get("complex_momentum")
RADII = [
    (0.1, 0.0, 0.0, 1.00499),
    (0.1, 0.9, 0.0, 1.19829),
    (0.1, 0.9, 1 / 8, 1.05298),
    (0.1, 0.9, 1 / 4, 0.99118),
    (0.1, 0.9, 1 / 2, 0.99879),
    (0.1, 0.9, 1.0, 1.00007),
    (0.5, 0.7, 1 / 2, 0.97931),
    (0.35, 0.7, 0.28125, 0.90873),
]


def transition(lr, size, phase):
    """R for A = [[0, 1], [-1, 0]]."""
    a, b = size * math.cos(math.pi * phase), size * math.sin(math.pi * phase)
    eye, game = torch.eye(2, dtype=F64), torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    return torch.cat([
        torch.cat([a * eye, -b * eye, -game], 1),
        torch.cat([b * eye, a * eye, 0 * eye], 1),
        torch.cat([lr * a * eye, -lr * b * eye, eye - lr * game], 1),
    ])  # fmt: skip


@pytest.mark.parametrize(("lr", "size", "phase", "radius"), RADII)
def test_spectral_radii_of_the_bilinear_game(lr, size, phase, radius):
    solver = ComplexMomentum(momentum=size, phase=phase)
    ctx = context("bilinear", solver=solver)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    theta = ctx.problem.init_inner(lam, episode)
    state, sizes = solver.init(theta), []
    matrix = transition(lr, size, phase)
    values = torch.linalg.eigvals(matrix).abs()
    assert float(values.max()) == pytest.approx(radius, abs=6e-6)
    flat = torch.cat([*state["real"].values(), *state["imaginary"].values(), *theta.values()])
    for _ in range(1000):
        theta, state = inner_loop(ctx, lam, theta, episode, steps=1, lr=lr, solver_state=state)
        sizes.append(math.sqrt(sum(float(v.square().sum()) for v in theta.values())))
        flat = matrix @ flat
    torch.testing.assert_close(torch.cat([*theta.values()]), flat[-2:], rtol=1e-8, atol=1e-12)
    rate = (max(sizes[-100:]) / max(sizes[-600:-500])) ** (1 / 500)
    assert rate == pytest.approx(radius, abs=2e-3)


@given(st.floats(0, 0.99), st.floats(-1, 1), st.integers(0, 10**6))
def test_it_is_the_recursion_in_complex_numbers(size, phase, seed):
    gen = torch.Generator().manual_seed(seed)
    g = torch.randn(6, generator=gen, dtype=F64).tolist()
    solver, w, mu = ComplexMomentum(momentum=size, phase=phase), 0.3, 0j
    theta = {"w": torch.tensor(w, dtype=F64)}
    state = solver.init(theta)
    for value in g:
        mu = size * cmath.exp(1j * math.pi * phase) * mu - value
        w += (0.1 * mu).real
        theta, state = solver.update(theta, {"w": torch.tensor(value, dtype=F64)}, state, 0.1)
    assert float(theta["w"]) == pytest.approx(w, abs=1e-12)


def test_phase_0_is_momentum():
    one, other = ComplexMomentum(momentum=0.8, phase=0.0), solvers.get("momentum")(momentum=0.8)
    a = b = {"w": torch.tensor([0.3, -1.0], dtype=F64)}
    s, t = one.init(a), other.init(b)
    for _ in range(5):
        a, s = one.update(a, {"w": a["w"] ** 3 + 1}, s, 0.1)
        b, t = other.update(b, {"w": b["w"] ** 3 + 1}, t, 0.1)
    torch.testing.assert_close(a["w"], b["w"], rtol=1e-14, atol=1e-14)


def test_adaptive_is_rmsprop_where_there_is_no_momentum():
    one = ComplexMomentum(momentum=0.0, adaptive=True, beta2=0.9)
    other = solvers.get("adam")(beta1=0.0, beta2=0.9)
    a = b = {"w": torch.tensor([0.3, -1.0], dtype=F64)}
    s, t = one.init(a), other.init(b)
    for _ in range(5):
        a, s = one.update(a, {"w": a["w"] ** 3 + 1}, s, 0.1)
        b, t = other.update(b, {"w": b["w"] ** 3 + 1}, t, 0.1)
    torch.testing.assert_close(a["w"], b["w"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_unrolled_through_a_game(adaptive):
    task = tasks.get("bilinear")(dim=2, adversarial=0.7, condition=3.0)
    ctx = context(task, solver=ComplexMomentum(adaptive=adaptive))
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)

    def f(lam):
        start = ctx.problem.init_inner(lam, episode)
        end, _ = inner_loop(ctx, lam, start, episode, steps=8, lr=0.1, create_graph=True)
        return ctx.problem.outer_loss(lam, end, episode.outer)

    found = autodiff.grad(f, {k: v.clone().requires_grad_() for k, v in lam.items()})[1]["centre"]
    torch.testing.assert_close(found, differences(f, lam)["centre"], rtol=1e-7, atol=1e-8)
