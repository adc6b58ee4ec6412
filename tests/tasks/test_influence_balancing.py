"""influence_balancing: truncated derivatives by hand, and which estimators walk the wrong way."""

from __future__ import annotations

import pytest
import torch
from oracles import context, hypergradient

from metabench.core.registry import methods, tasks

TASK = tasks.get("influence_balancing")


def steady(problem, lam: float):
    """Where s stays: (I - A)^-1 lam sign."""
    eye = torch.eye(len(problem.A), dtype=torch.float64)
    return torch.linalg.solve(eye - problem.A, lam * problem.sign)


def test_in_the_end_the_first_number_is_minus_six_lam():
    problem = context(TASK()).problem
    s = steady(problem, 0.5)
    theta, lam = {"s": s}, problem.init_outer()
    assert float(s[0]) == pytest.approx(-3.0, abs=1e-12)
    assert float(problem.inner_loss(lam, theta, {})) == pytest.approx(0, abs=1e-24)
    found = problem.metrics(lam, theta, problem.episode("test", 0))
    assert found == pytest.approx({"gap": 2 / 3, "loss": 8.0, "end_loss": 8.0})
    best = {"lam": torch.tensor(-1 / 6, dtype=torch.float64)}
    assert problem.metrics(best, theta, problem.episode("test", 0))["end_loss"] < 1e-30
    with pytest.raises(ValueError, match="no lam moves the end"):
        TASK(positive=3, negative=3)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, -4.0), (10, -40.0), (20, -65.90), (50, 19.01), (100, 23.99999991)]
)
def test_the_last_steps_alone_have_the_wrong_sign_up_to_twenty(steps, expected):
    """24 is the whole gradient where s stays."""
    ctx = context(TASK(carried=True))
    theta = {"s": steady(ctx.problem, 0.5)}
    found = hypergradient(ctx, "bilevel", theta=theta, inner_steps=steps, inner_lr=1.0)["lam"]
    assert float(found) == pytest.approx(expected, abs=5e-3 if steps in (20, 50) else 1e-8)


def walked(estimator: str, segment: int, training: int, pairs: int, **settings: int) -> float:
    """How far lam goes in one training, with steps so small that all are taken at one lam."""
    ctx = context(TASK(**settings))
    method = methods.get("es")(
        estimator=estimator, segment=segment, inner_steps=training, pairs=pairs, objective="sum",
        inner_lr=1.0, outer_solver="sgd", outer_lr=1e-6,
    )  # fmt: skip
    state = method.init(ctx)
    for ctx.step in range(training // segment):
        state, _ = method.step(ctx, state)
    return (float(state.lam["lam"]) - 0.5) / 1e-6


def expected(segment: int, training: int, own: bool, **settings: int) -> float:
    """Minus the sum of the segments' gradients by the recursion itself; ``own``: of what lam does
    in each segment alone."""
    problem = context(TASK(**settings)).problem
    s, influence, total = torch.ones_like(problem.sign), torch.zeros_like(problem.sign), 0.0
    for step in range(training):
        if own and step % segment == 0:
            influence = torch.zeros_like(influence)
        s = problem.A @ s + 0.5 * problem.sign
        influence = problem.A @ influence + problem.sign
        if (step + 1) % segment == 0:
            total -= float((s[0] - 1) * influence[0])
    return total


@pytest.mark.parametrize("segment", [10, 20])
def test_truncation_walks_up_and_es_single_down(segment):
    up = walked("truncated", segment, 200, 12)
    down = walked("single", segment, 200, 12)
    assert expected(segment, 200, own=True) > 0 > expected(segment, 200, own=False)
    assert up > 0 > down


def test_persistent_particles_walk_down_where_truncation_walks_up():
    """With two places up and three down, where fewer particles will do."""
    few = {"positive": 2, "negative": 3}
    down, up = walked("persistent", 1, 40, 60, **few), walked("truncated", 1, 40, 60, **few)
    assert expected(1, 40, own=True, **few) > 0 > expected(1, 40, own=False, **few)
    assert up == pytest.approx(expected(1, 40, own=True, **few), rel=0.2)
    assert down == pytest.approx(expected(1, 40, own=False, **few), rel=0.5)
