"""A hypergradient of zero that passes, and one that stays."""

import pytest

from metabench.core.cell import make_cell
from metabench.run.runner import run_cell


def run(task, settings, steps=5, **method):
    budget = {"outer_steps": steps, "eval_every": 5, "valid_episodes": 1, "test_episodes": 1}
    set_ = {"task": settings, "method": method, "budget": budget}
    return run_cell(make_cell(task, "bilevel", set=set_), device="cpu")


def test_a_run_whose_carried_theta_starts_at_zero_is_done_and_not_diverged():
    record = run("ridge", {"carried": True}, inner_steps=1)
    assert (record.status, record.reason, record.steps) == ("done", "", 5)
    assert record.metrics["test"]["loss"].mean == pytest.approx(0.6955, abs=1e-5)
    assert record.notes["zero_hypergradient"] == {"last_step": 0, "in_a_row": 1}


@pytest.mark.parametrize(
    ("carried", "steps", "last"), [(True, 5, 2), (True, 2, 1), (False, 5, 0), (False, 1, 0)]
)
def test_a_hypergradient_that_stays_zero_still_ends_the_run(carried, steps, last):
    """Where theta is not carried the next step would be the same again: at once."""
    record = run("quadratic", {"b": 0.0, "carried": carried}, steps)
    assert (record.status, record.steps) == ("diverged", last)
    assert f"at outer step {last} is exactly zero" in record.reason
