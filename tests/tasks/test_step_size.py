"""The step size of gradient descent on a parabola: every loss and the best lam are known."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import context

from metabench.core.capabilities import why_not
from metabench.core.registry import methods
from metabench.hypergradients.search.gradient_free import train
from metabench.tasks.step_size import StepSize


def test_a_parabola_is_left_at_its_bottom_by_the_best_step_size():
    """(1 - h beta)^T, by hand; a step size beyond 2 / h is infinitely bad in the end."""
    ctx = context(StepSize(curvature=4.0, spread=0.0))
    loss = {
        rate: train(ctx, {"rate": torch.tensor(rate, dtype=torch.float64)},
                    ctx.training_episodes(), steps=3, lr=1.0)[0]
        for rate in (0.1, 0.25, 0.5)
    }  # fmt: skip
    assert loss[0.25] == 0.0 and loss[0.5] == pytest.approx(2.0)
    assert loss[0.1] == pytest.approx(2 * (1 - 0.4) ** 6, abs=1e-15)
    assert ctx.problem.metrics(
        {"rate": torch.tensor(0.5)}, {"w": torch.tensor(1.0)}, ctx.training_episodes()[0]
    ) == pytest.approx({"log_error": math.log(2), "loss": 2.0})
    with pytest.raises(ValueError, match="low is 2: it must be below high, 1"):
        StepSize(low=2.0, high=1.0)


def test_the_first_step_size_is_the_middle_of_the_bounds():
    problem = context(StepSize(low=0.01, high=1.0)).problem
    assert float(problem.init_outer()["rate"]) == pytest.approx(0.1)


def test_gradient_methods_are_refused_with_the_reason():
    said = why_not(StepSize(), methods.get("ift")())
    assert said == "lam sets the inner solver: it is searched for, not differentiated"
