"""What a run has spent of its budget, and whether it gets on."""

import pytest
import torch

from metabench.contract.method import State
from metabench.core.cell import Budget
from metabench.run.attempts.checkpoint import Boundary
from metabench.run.costs import budgets

NEAR = {"inner_gradients": 0, "hvps": 9}


def at(step: int, **counts: int) -> Boundary:
    return Boundary(State({"lam": torch.zeros(1)}), step=step, counts={**NEAR, **counts})


@pytest.mark.parametrize(
    ("limits", "counts", "advances"),
    [
        ({"inner_gradients": 1000, "hvps": 10}, {"inner_gradients": 1}, True),
        ({"inner_gradients": 1000, "hvps": 10}, {"hvps": 10}, True),
        ({"inner_gradients": 1000, "hvps": 10}, {}, False),
        ({"outer_steps": 1000, "hvps": 10}, {}, True),
        ({"hvps": 10}, {"inner_gradients": 1}, False),
        ({"cost": 10.0, "prices": {"hvps": 0.0, "inner_gradients": 1.0}}, {"hvps": 10}, False),
        ({"seconds": 30.0}, {}, True),
        ({"seconds": 30.0, "hvps": 10}, {}, True),
    ],
)
def test_a_step_gets_on_where_any_limit_comes_nearer(
    limits: dict, counts: dict, advances: bool
) -> None:
    assert budgets.advanced(Budget(**limits), at(4), at(5, **counts)) is advances
