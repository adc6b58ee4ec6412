"""Evaluations on the way that are charged: what they cost to the last count, and what is left."""

from pathlib import Path
from typing import Any

import pytest

from metabench.core.cell import Cell, make_cell
from metabench.core.costs import COUNT_NAMES, CUT_LOOK, CUT_STEP, equivalents
from metabench.core.errors import SettingError
from metabench.run.costs import looks
from metabench.run.runner import run_cell
from metabench.store.store import Store

PRICES = {
    "inner_gradients": 1.0, "outer_gradients": 2.0, "hvps": 1.0, "mixed_products": 1.0,
    "function_evaluations": 0.5,
}  # fmt: skip
A_LOOK = 5 + 0.5
"""Ridge has one validation episode: five inner steps and one value."""


def cell(task: dict | None = None, **budget: Any) -> Cell:
    limits = {"valid_episodes": 3, "test_episodes": 2, "charge_looks": True, "prices": PRICES}
    return make_cell(
        "ridge",
        "bilevel",
        set={
            "task": task or {},
            "method": {"inner_steps": 5},
            "budget": limits | budget,
        },
    )


def played(tmp_path: Path, one: Cell, **how: Any) -> tuple[Any, Any]:
    store = Store(tmp_path / one.key)
    record = run_cell(one, store, **how)
    return record, store.curve(record)


def spent(record: Any) -> float:
    """All that was counted, in inner gradients."""
    found = equivalents({n: record.cost[n] for n in COUNT_NAMES}, PRICES)
    assert found is not None
    return found


@pytest.mark.parametrize("how", [{}, {"workers": 3}, {"engine": "vmap"}])
def test_a_look_costs_its_adaptation_and_a_value_an_episode(tmp_path: Path, how: dict) -> None:
    def few_shot(charged: bool | None) -> Cell:
        budget = {"outer_steps": 4, "eval_every": 2, "valid_episodes": 6, "test_episodes": 2}
        budget |= {"charge_looks": charged, "prices": PRICES}
        chosen = {"task": {"meta_batch": 2}, "method": {"inner_steps": 3}, "budget": budget}
        return make_cell("sinusoid", "maml", set=chosen)

    record, curve = played(tmp_path, few_shot(True), **how)
    free, before = played(tmp_path, few_shot(None), **how)
    assert curve["step"] == before["step"] == [0, 2, 4]
    a_look = 6 * (3 + 0.5)
    assert curve["looks/cost"] == [a_look, 2 * a_look, 3 * a_look] and "looks/cost" not in before
    for name, each in (("inner_gradients", 18), ("function_evaluations", 6)):
        more = [a - b for a, b in zip(curve[f"cost/{name}"], before[f"cost/{name}"], strict=True)]
        assert more == [each, 2 * each, 3 * each], name
        assert record.cost[name] == curve[f"cost/{name}"][-1]  # the final evaluations are free
    assert curve["cost/hvps"] == before["cost/hvps"]
    assert curve["valid/loss"] == before["valid/loss"]
    assert record.metrics == free.metrics


def test_a_carried_problem_has_nothing_to_adapt(tmp_path: Path) -> None:
    one = cell({"carried": True}, outer_steps=2, eval_every=1)
    _, curve = played(tmp_path, one)
    assert curve["looks/cost"] == [0.5, 1.0, 1.5]


def test_every_split_that_is_looked_at_is_charged(tmp_path: Path) -> None:
    one = cell(outer_steps=1, eval_every=1, select="best_selection")
    _, curve = played(tmp_path, one)
    assert curve["looks/cost"] == [2 * A_LOOK, 4 * A_LOOK]


def test_the_last_look_is_kept_back_from_the_cap_so_that_it_can_be_paid(tmp_path: Path) -> None:
    free = [played(tmp_path, cell(outer_steps=n, charge_looks=None))[0] for n in (3, 4)]
    three, four = (spent(record) for record in free)
    for cap in (2 * A_LOOK + three, 2 * A_LOOK + four - 0.25):
        record, curve = played(tmp_path, cell(cost=cap, eval_every_cost=1e6))
        assert spent(record) == 2 * A_LOOK + three <= cap
        assert curve["step"] == [0, 3] and record.steps == 3
        assert CUT_LOOK not in record.notes and record.notes[CUT_STEP] == 4


def test_looks_lie_on_the_grid_of_a_cost_that_has_them_in_it(tmp_path: Path) -> None:
    _, curve = played(tmp_path, cell(cost=300.0, eval_every_cost=50.0))
    cost = [
        equivalents({n: curve[f"cost/{n}"][i] for n in COUNT_NAMES}, PRICES)
        for i in range(len(curve["step"]))
    ]
    assert len(cost) >= 6 and all(c is not None and c <= 300 for c in cost)
    # Each but the first and the last comes at the first step beyond a multiple of 50.
    before = [c - A_LOOK for c in cost if c is not None]
    assert all(b // 50 > a // 50 for a, b in zip(cost[:-2], before[1:-1], strict=True))


def test_a_look_that_a_limit_cuts_ends_the_run_with_what_has_been_seen(tmp_path: Path) -> None:
    one = cell(outer_steps=10, eval_every=1, function_evaluations=2)
    record, curve = played(tmp_path, one)
    assert record.status == "done" and record.notes[CUT_LOOK] == 2
    assert curve["step"] == [0, 1] and record.selected_step in (0, 1)
    assert record.cost["function_evaluations"] == 2


def test_a_first_look_beyond_the_cap_is_a_wrong_setting(tmp_path: Path) -> None:
    record = run_cell(cell(cost=4.0), Store(tmp_path))
    assert record.status == "failed"
    assert "the first evaluation alone takes more than 4.0 cost: raise the limit" in record.reason


def test_looks_need_a_price(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="charge_looks needs the price of function_evaluations"):
        cell(outer_steps=1, prices={"inner_gradients": 1.0})


def test_a_cell_without_it_does_not_name_it() -> None:
    assert "charge_looks" not in cell(outer_steps=1, charge_looks=None).budget
    assert cell(outer_steps=1).key != cell(outer_steps=1, charge_looks=None).key


def test_the_last_look_of_a_curve() -> None:
    assert looks.last({}) == looks.last({"step": [0.0]}) == 0.0
    assert looks.last({looks.COST: [3.0]}) == 3.0 and looks.last({looks.COST: [3.0, 7.5]}) == 4.5
