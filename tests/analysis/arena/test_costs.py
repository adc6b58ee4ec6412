"""Costs to a target: the first look that has it, censored runs, ratios and their profile."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis.arena import costs as costs_of
from metabench.core.costs import COUNT_NAMES
from metabench.suites.arena.definition import ArenaProblem

PRICES = {"inner_gradients": 1.0, "outer_gradients": 2.0}
PROBLEM = ArenaProblem("p", "A", "quadratic", fixed=2.0, bound=1.0, cap=10.0, prices=PRICES)


def curve(*looks: tuple[float | None, int, int]) -> dict[str, list[float | None]]:
    counts = {f"cost/{n}": [0.0] * len(looks) for n in COUNT_NAMES}
    return {
        "step": list(range(len(looks))),
        "selection/loss": [x for x, _, _ in looks],
        **counts,
        "cost/inner_gradients": [float(n) for _, n, _ in looks],
        "cost/outer_gradients": [float(n) for _, _, n in looks],
    }


def test_the_cost_to_the_target_is_that_of_the_first_look_that_has_it() -> None:
    run = curve((2.0, 0, 0), (None, 5, 1), (1.2, 10, 2), (1.3, 20, 4))
    assert costs_of.cost_to_target(PROBLEM, run, "loss") == 14.0
    assert costs_of.cost_to_target(PROBLEM, curve((2.0, 0, 0), (1.21, 5, 1)), "loss") is None


@pytest.mark.parametrize(
    ("costs", "median"),
    [([1, 2, 9], 2), ([1, None, None], None), ([1, 2, None], 2), ([1, 3], 2), ([1, None], None)],
)
def test_a_run_that_never_has_it_is_the_dearest(costs, median) -> None:
    assert costs_of.median_cost(costs) == median


def test_the_profile_is_by_ratio_to_the_cheapest_on_each_problem() -> None:
    costs = {
        "one": {"a": 10.0, "b": 20.0, "c": None},
        "two": {"a": 30.0, "b": 10.0, "c": 11.0},
        "none": {"a": None, "b": None, "c": None},
    }
    found = costs_of.cost_profile(costs, [1.0, 2.0, 3.0])
    assert found["a"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert found["b"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert found["c"] == pytest.approx([0, 1 / 3, 1 / 3])


def test_what_a_rise_costs_is_read_on_the_split_that_chooses() -> None:
    run = curve((1.0, 3, 0)) | {"valid/loss": [2.0]}
    assert costs_of.cost_to_target(PROBLEM, run, "loss") == 3.0
    other = ArenaProblem(
        "p", "A", "quadratic", fixed=2.0, bound=1.0, cap=10.0, prices=PRICES, select="best_valid"
    )
    assert costs_of.cost_to_target(other, run, "loss") is None


def test_a_target_that_costs_nothing_leaves_all_others_infinitely_dearer() -> None:
    found = costs_of.cost_ratios({"p": {"a": 0.0, "b": 2.0, "c": 0.0, "d": None}})
    assert {m: of["p"] for m, of in found.items()} == {
        "a": 1.0, "b": math.inf, "c": 1.0, "d": math.inf,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "median"),
    [([1.0, 3.0, math.inf], 3.0), ([1.0, math.inf], None), ([1.0, 2.0], 1.5), ([math.inf], None)],
)
def test_the_median_ratio_is_told_where_most_problems_have_one(ratios, median) -> None:
    assert costs_of.median_ratio({str(i): r for i, r in enumerate(ratios)}) == median


def test_the_share_of_runs_with_the_target() -> None:
    assert costs_of.reached([1.0, None, 2.0, None]) == 0.5


COSTS = st.dictionaries(
    st.sampled_from("pqrst"),
    st.fixed_dictionaries({m: st.none() | st.just(0.0) | st.floats(1e-6, 1e6) for m in "abc"}),
    min_size=1,
)
"""Counts times prices: nothing, or no ratio of them overflows."""


@given(COSTS, st.lists(st.floats(1, 1e3), min_size=2, max_size=6).map(sorted))
def test_a_profile_never_falls_and_ends_at_the_share_of_solved_problems(costs, ratios) -> None:
    found = costs_of.cost_profile(costs, [*ratios, math.inf])
    for method, shares in found.items():
        assert shares == sorted(shares)
        solved = sum(of[method] is not None for of in costs.values()) / len(costs)
        free = any(c == 0 for of in costs.values() for c in of.values())
        assert shares[-1] <= solved if free else shares[-1] == solved
    # Somebody is the cheapest on every problem that is solved at all.
    if any(c is not None for of in costs.values() for c in of.values()):
        assert max(costs_of.cost_profile(costs, [1.0])[m][0] for m in "abc") > 0


@given(COSTS, st.floats(0.5, 100))
def test_a_profile_does_not_depend_on_the_unit_of_cost(costs, unit) -> None:
    other = {
        p: {m: None if c is None else c * unit for m, c in of.items()} for p, of in costs.items()
    }
    a, b = costs_of.cost_ratios(costs), costs_of.cost_ratios(other)
    for m, of in a.items():
        assert list(of.values()) == pytest.approx(list(b[m].values()))
