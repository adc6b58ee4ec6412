"""Bilevel least squares: closed forms against another route, and what ``condition`` is."""

import numpy as np
import pytest
import torch
from oracles import F64, context, differences

from metabench.tasks.least_squares import LeastSquares


def made(**set_):
    return context(LeastSquares(**{"rows": 12, "dim": 3, **set_})).problem


def test_losses_and_the_inner_minimiser():
    problem = made(condition=4.0)
    lam, theta = {"lam": torch.linspace(-1, 2, 3, dtype=F64)}, {"x": torch.ones(3, dtype=F64)}
    a1, a2, a3, b1, b2 = (getattr(problem, k).numpy() for k in ("A1", "A2", "A3", "b1", "b2"))
    gap = a2 @ np.ones(3) + a3 @ lam["lam"].numpy() - b2
    assert float(problem.inner_loss(lam, theta, {})) == pytest.approx(0.5 * gap @ gap, rel=1e-13)
    right = b2 - a3 @ lam["lam"].numpy()
    x = np.linalg.solve(a2.T @ a2, a2.T @ right)
    np.testing.assert_allclose(problem.solve(lam).numpy(), x, rtol=1e-10)
    rest = a1 @ x - b1
    assert problem.exact_loss(lam) == pytest.approx(0.5 * rest @ rest, rel=1e-12)


def test_the_hypergradient_is_the_slope_of_f():
    problem = made()
    lam = {"lam": torch.linspace(-1, 2, 3, dtype=F64)}
    slope = differences(lambda p: torch.tensor(problem.exact_loss(p), dtype=F64), lam, 1e-3)
    torch.testing.assert_close(problem.exact_hypergradient(lam), slope["lam"], rtol=1e-9, atol=1e-9)


def test_the_optimum_is_where_the_hypergradient_is_zero_and_f_least():
    problem = made(noise=0.5)
    assert float(problem.exact_hypergradient(problem.best).abs().max()) < 1e-9
    least, first = problem.losses
    assert least < first
    gen = torch.Generator().manual_seed(0)
    for _ in range(5):
        off = 0.01 * torch.randn(3, generator=gen, dtype=F64)
        assert problem.exact_loss({"lam": problem.best["lam"] + off}) > least


@pytest.mark.parametrize("condition", [1.0, 30.0])
def test_condition_is_that_of_a2_and_its_square_that_of_the_hessian(condition):
    problem = made(condition=condition)
    assert float(torch.linalg.cond(problem.A2)) == pytest.approx(condition, rel=1e-9)
    known = problem.moduli(problem.init_outer())
    assert known.smooth / known.mu == pytest.approx(condition**2, rel=1e-7)
    drawn = made()
    assert known.smooth == pytest.approx(drawn.moduli({}).smooth, rel=1e-12)
    torch.testing.assert_close(problem.A1, drawn.A1)


def test_metrics_are_exact_whatever_theta_is():
    problem = made()
    lam, episode = problem.init_outer(), problem.episode("test", 0)
    found = problem.metrics(lam, {"x": torch.zeros(3, dtype=F64)}, episode)
    assert found["gap"] == 1.0 and found["exact_loss"] == problem.losses[1]
    assert found["inner_error"] == pytest.approx(float(problem.solve(lam).norm()))
    best = problem.metrics(problem.best, {"x": problem.solve(problem.best)}, episode)
    assert best["gap"] == 0.0 and best["inner_error"] == 0.0
    assert best["loss"] == pytest.approx(best["exact_loss"], rel=1e-12)


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="rows is 2 and dim 3"):
        LeastSquares(rows=2, dim=3)
