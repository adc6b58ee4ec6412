from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis import curves


def test_a_line_is_a_mean_with_its_interval():
    a = {"step": [0, 10], "valid/x": [1.0, 2.0], "cost/c": [0, 4]}
    b = {"step": [0, 10], "valid/x": [3.0, 4.0], "cost/c": [0, 8]}
    found = curves.line([a, b], "valid/x", "cost/c")
    assert found.x == (0, 6)
    assert found.y == (2, 3)
    assert found.high[0] - found.y[0] == pytest.approx(12.7062047)  # t(0.975, 1) * sqrt(2 / 2)
    assert curves.line([a, b], "valid/x", spread="range").low == (1, 2)


def test_gaps_and_short_runs():
    a = {"step": [0, 10, 20, 30], "valid/x": [1.0, None, 3.0, 4.0]}
    b = {"step": [0, 10, 20], "valid/x": [1.0, 5.0, 3.0]}
    c = {"step": [0, 10, 20], "valid/x": [1.0, 6.0, 3.0]}
    found = curves.line([a, b, c], "valid/x")
    assert found.x == (0, 10, 20)  # one of three reaches 30
    assert found.y == (1, 5.5, 3)
    assert found.seeds == 3
    assert curves.line([{}, a], "valid/y") is None


def test_runs_with_steps_of_very_different_costs_are_put_together_at_equal_cost():
    """One run reaches a cost of 40 in two steps, two in eight; after a step all would go back."""
    long = {"step": [0, 1, 2], "valid/x": [0.0, 10.0, 20.0], "cost/c": [0, 20, 40]}
    short = {"step": [*range(9)], "valid/x": [0.0] * 9, "cost/c": [*range(0, 41, 5)]}
    found = curves.line([long, short, short], "valid/x", "cost/c")
    assert found.x == (0, 5, 10, 15, 20, 25, 30, 35, 40)
    assert found.y == pytest.approx([0, 0, 0, 0, *[10 / 3] * 4, 20 / 3])
    assert curves.line([long, short], "valid/x").x == tuple(range(9))


def test_a_trajectory_is_entries_or_parts_with_a_deviation():
    small = {"step": [0, 1], "lam/p[10]": [0, 1], "lam/p[9]": [0, 2], "lam/lr": [1, 1]}
    parts = curves.trajectory([small])
    assert [p.label for p in parts] == ["lr", "p[9]", "p[10]"]
    assert [p.moved for p in parts] == [0, 1, 1]
    large = {"step": [0, 1]} | {f"lam/w.{k}": [0.0, 0.5] for k in ("mean", "std", "min", "max")}
    (part,) = curves.trajectory([large])
    assert (part.label, part.large) == ("w", True)
    assert part.line.y == pytest.approx((0, 0.5**0.5))  # sqrt(mean^2 + std^2), less its start


def test_an_entry_that_is_called_mean_is_an_entry():
    (part,) = curves.trajectory([{"step": [0, 1], "lam/noise.mean": [0.0, 0.5]}])
    assert (part.label, part.large) == ("noise.mean", False)


def test_labels_stay_inside_even_where_they_do_not_fit():
    assert curves.spaced([9.9, 10, 10], 1, 0, 10) == pytest.approx([8, 9, 10])
    assert curves.spaced([5, 5, 5], 100, 0, 10) == pytest.approx([0, 5, 10])


@given(st.lists(st.floats(-100, 100), max_size=12), st.floats(0.1, 10))
def test_labels_are_spaced_and_keep_their_order(values, least):
    out = curves.spaced(values, least, -200, 200)
    order = sorted(range(len(values)), key=lambda i: values[i])
    gaps = [out[b] - out[a] for a, b in pairwise(order)]
    assert all(gap >= least - 1e-6 for gap in gaps)
    if gaps and all(values[b] - values[a] >= least for a, b in pairwise(order)):
        assert out == pytest.approx(values)
