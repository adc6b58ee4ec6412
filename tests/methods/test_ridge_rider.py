"""Ridge rider: exponents known exactly, the Jacobians of a game, and branches where they belong."""

import math

import numpy as np
import pytest
import torch
from oracles import F64, context

from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, solvers, tasks
from metabench.methods import ridge_rider as rr


def test_exponents_of_a_linear_map_are_the_logs_of_its_factors():
    path = [torch.diag(torch.tensor([2.0, 0.5], dtype=F64))] * 1200  # 2^1200 overflows
    assert rr.spectrum(path).tolist() == pytest.approx([math.log(2), -math.log(2)], abs=1e-14)
    exponent, directions = rr.fastest(path)
    assert float(exponent) == pytest.approx(math.log(2), abs=1e-12)
    assert directions[0].abs().tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_the_exponent_of_the_logistic_map_is_ln_2():
    x, slopes = 0.1234, []
    for _ in range(200_000):
        slopes.append(4 - 8 * x)
        x = 4 * x * (1 - x)
    assert np.log(np.abs(slopes)).mean() == pytest.approx(0.69314532, abs=5e-8)
    path = torch.tensor(slopes[:2000], dtype=F64).view(-1, 1, 1)
    expected = np.log(np.abs(slopes[:2000])).mean()
    assert float(rr.spectrum(path)) == pytest.approx(expected, abs=1e-12)
    assert float(rr.fastest(path)[0]) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(math.log(2), abs=0.01)


def test_the_fastest_direction_is_that_of_the_product():
    gen = torch.Generator().manual_seed(0)
    path = [torch.randn(4, 4, generator=gen, dtype=F64) for _ in range(6)]
    product = torch.linalg.multi_dot(path[::-1])
    exponent, directions = rr.fastest(path)
    assert float(exponent) == pytest.approx(
        math.log(float(torch.linalg.matrix_norm(product, 2))) / 6
    )
    for d, s in zip(directions, torch.linalg.svdvals(product), strict=True):
        assert float(torch.linalg.vector_norm(product @ d)) == pytest.approx(float(s))
    total = float(rr.spectrum(path).sum())
    assert total == pytest.approx(float(product.det().abs().log()) / 6)
    with pytest.raises(ValueError, match="no Jacobian"):
        rr.fastest([])


def game(**settings):
    return context(tasks.get("prisoners")(branches=20, **settings))


def test_jacobians_and_the_slope_of_the_exponent_are_those_of_differences():
    ctx, rider = game(), rr.RidgeRider(inner_lr=0.7, window=3)
    like = ctx.problem.init_outer()
    w = rr.flattened({k: v[:1] for k, v in like.items()})[0]

    def walked(x):
        theta = rr.shaped(x[None], like)
        for _ in range(3):
            g = ctx.problem.field({}, theta, {})
            theta = {k: (theta[k] - 0.7 * g[k]).detach() for k in theta}
        return rr.flattened(theta)[0]

    path = rider.path(ctx, like, w.clone().requires_grad_(True))
    h = 1e-5 * torch.eye(10, dtype=F64)
    columns = [(walked(w + e) - walked(w - e)) / 2e-5 for e in h]
    torch.testing.assert_close(
        path[2] @ path[1] @ path[0], torch.stack(columns, 1), rtol=1e-7, atol=1e-9
    )

    flat = w.clone().requires_grad_(True)
    exponent, _ = rr.fastest(rider.path(ctx, like, flat))
    (found,) = torch.autograd.grad(exponent, flat)

    def largest(x):
        return rr.fastest(rider.path(ctx, like, x.requires_grad_(True)))[0].detach()

    slopes = torch.stack([(largest(w + e) - largest(w - e)) / 2e-5 for e in h])
    torch.testing.assert_close(found, slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("directions", ["eigenvectors", "singular", "random"])
def test_branches_lie_on_both_sides_of_the_start(directions):
    ctx = game()
    rider = rr.RidgeRider(directions=directions, distance=2.0)
    state = rider.init(ctx)
    centre = ctx.problem.init_outer()
    starts = rr.flattened(state.lam).view(10, 2, 10)
    middle = rr.flattened({k: v[:1] for k, v in centre.items()})
    torch.testing.assert_close(starts.mean(1), middle.expand(10, -1))
    apart = torch.linalg.vector_norm(starts[:, 0] - starts[:, 1], dim=1)
    torch.testing.assert_close(apart, torch.full_like(apart, 4.0))


def test_eigenvectors_span_what_the_matrix_keeps():
    gen = torch.Generator().manual_seed(1)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    known = torch.block_diag(torch.tensor([[3.0]], dtype=F64), 2 * turn, torch.eye(1, dtype=F64))
    base = torch.randn(4, 4, generator=gen, dtype=F64)
    j = base @ known @ torch.linalg.inv(base)
    d = rr.eigenvectors(j)
    assert int(torch.linalg.matrix_rank(d)) == 4
    torch.testing.assert_close(j @ d[0], 3 * d[0])  # the largest first, a real one
    torch.testing.assert_close(j @ d[2], d[2])
    pair = d[[1, 3]]  # real and imaginary part of the pair: a plane that j maps to itself
    weights = torch.linalg.lstsq(pair.mT, j @ pair.mT).solution
    torch.testing.assert_close(pair.mT @ weights, j @ pair.mT)


def test_one_number_and_one_branch_are_no_special_case():
    class Doubling:
        def init_outer(self):
            return {"w": torch.full((1, 1), 0.5, dtype=F64)}

    class Ctx:
        problem = Doubling()

        def training_episodes(self):
            return [type("E", (), {"batch": lambda self, t: {}})()]

        def inner_grad(self, lam, theta, batch, hvps=0):
            return {"w": -theta["w"]}

    state = rr.RidgeRider(directions="singular", distance=2.0, inner_lr=1.0).init(Ctx())
    assert state.lam["w"].tolist() in ([[2.5]], [[-1.5]])


def test_an_outer_step_raises_the_exponent():
    ctx = game()
    rider = rr.RidgeRider(ascent=0.05)
    state, found = rider.init(ctx), []
    for _ in range(4):
        state, logs = rider.step(ctx, state)
        found.append(logs["exponent"])
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_it_finds_what_restarts_do_not():
    ctx = game()
    found = {}
    for name, more in (("fixed", {}), ("ridge_rider", {})):
        method = methods.get(name)(inner_steps=300, inner_lr=3.0, **more)
        episode = ctx.problem.episode("test", 0)
        state = method.init(ctx)
        theta = method.adapt(ctx, state, episode)
        found[name] = ctx.problem.metrics(state.lam, theta, episode)
    assert found["fixed"]["solutions"] == 1.0
    assert found["ridge_rider"]["solutions"] == 2.0


def test_what_it_refuses():
    assert why_not(tasks.get("quadratic")(), rr.RidgeRider()) is not None
    assert "plain steps" in rr.RidgeRider().refuses(solvers.get("momentum")())
    ctx = game()
    ctx.problem.init_outer = lambda: {"w": torch.zeros(2, 300, dtype=F64)}
    with pytest.raises(SettingError, match="300 numbers"):
        rr.RidgeRider().init(ctx)
