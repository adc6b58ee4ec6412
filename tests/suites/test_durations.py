"""What a cell will take, by what others took."""

from dataclasses import replace
from typing import Any

import pytest

from metabench.core.cell import Cell, make_cell
from metabench.store.record import Record
from metabench.suites.durations import Estimates

BUDGET: dict[str, Any] = {
    "cost": 3000.0,
    "prices": {"inner_gradients": 1.0},
    "eval_every_cost": 150.0,
    "valid_episodes": 1,
    "test_episodes": 1,
}


def cell(inner_steps: int, **budget: Any) -> Cell:
    own = {"method": {"inner_steps": inner_steps}, "budget": {"outer_steps": 10, "eval_every": 5}}
    return replace(make_cell("quadratic", "bilevel", set=own), budget={**BUDGET, **budget})


def record(of: Cell, gradients: float, seconds: float) -> Record:
    cost = {"inner_gradients": gradients, "seconds": seconds, "evaluation_seconds": 0.0}
    return Record(key=of.key, cell=of, status="done", steps=10, cost=cost, metrics={}, attempts=1)


def test_a_run_of_the_same_budget_was_all_its_work() -> None:
    # A search whose next round no longer fitted: far below the cap, and it would be again.
    found = Estimates([record(cell(5), 100.0, 2.0)])
    assert found.of(cell(7)) == (pytest.approx(2.0), 1)


def test_another_budget_is_scaled_by_its_limit() -> None:
    found = Estimates([record(cell(5), 3000.0, 2.0)])
    assert found.of(cell(7, cost=6000.0)) == (pytest.approx(4.0), 1)


def looking(cost: dict[str, float], **budget: Any) -> Cell:
    """A cell of three steps that is looked at at equal costs, with no limit of cost."""
    own = {"outer_steps": 3, "eval_every_cost": 10.0, "prices": cost, "valid_episodes": 2}
    return make_cell("quadratic", "bilevel", set={"budget": {**own, "test_episodes": 4, **budget}})


def test_looks_at_equal_costs_need_no_limit_of_cost() -> None:
    known = looking({"inner_gradients": 1.0, "hvps": 2.0})
    cost = {"inner_gradients": 50.0, "hvps": 5.0, "seconds": 3.0, "evaluation_seconds": 9.0}
    found = Estimates([replace(record(known, 0, 0), steps=3, cost=cost)])
    # 60 inner gradients are 6 looks, and 7 with the first: 7 of 2 episodes and 4 at the end.
    assert found.of(known) == (pytest.approx(12.0), 1)
    # Twice the steps and twice the looks: 13 of 2 episodes and 4, where there were 18.
    assert found.of(replace(known, budget={**known.budget, "outer_steps": 6})) == (
        pytest.approx(6.0 + 9.0 * 30 / 18),
        1,
    )
    # What a count without a price comes to, and how often that is looked at, nobody knows.
    assert found.of(looking({"inner_gradients": 1.0})) == (None, 0)
