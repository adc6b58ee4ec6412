import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis import estimates
from metabench.analysis.results import collect
from metabench.core.text import EXACT, with_pm
from metabench.reports.tables import grids
from metabench.store.record import Estimate


def test_several_seeds_have_an_interval_over_seeds():
    found = estimates.entry(
        {s: Estimate(m, 600, 0.1, 0.008) for s, m in enumerate([0.2, 0.4, 0.9])}
    )
    assert found.mean == pytest.approx(0.5)
    assert found.pm == pytest.approx(4.30265273 * math.sqrt(0.13 / 3))
    assert (found.over, found.seeds, found.episodes) == ("seeds", (0, 1, 2), (600, 600))


def test_one_seed_has_the_interval_over_its_episodes():
    found = estimates.entry({3: Estimate(0.9, 600, 0.1, 0.008)})
    assert (found.pm, found.over, found.std) == (0.008, "episodes", None)


def test_one_episode_of_one_seed_has_none():
    found = estimates.entry({0: Estimate(0.9, 1)})
    assert (found.pm, found.over) == (None, "nothing")


def test_bold_is_the_best_mean_alone_and_what_is_worse_is_tested(full):
    found = estimates.column_entries(full[0], "5w1s")
    assert {row for row, e in found.items() if e.best} == {"bilevel"}
    assert found["bilevel"].p is None
    assert all(e.p is not None for row, e in found.items() if row != "bilevel")
    assert "fixed" in {row for row, e in found.items() if e.worse}
    assert not found["bilevel"].worse
    assert not found["fomaml"].worse


def test_of_equal_numbers_none_is_the_best(helpers):
    """Three rows that answer nothing right are not three best rows."""

    def best(values, **changes):
        suite = helpers.make_suite(**changes)
        store = helpers.Fake()
        for place in suite.cells("laptop"):
            if place.row in values:
                known = {"test": {"accuracy": Estimate(values[place.row], 10, 0.0, 0.0)}}
                store.add(place, metrics=known)
        results = collect(suite, "laptop", store, why_not=helpers.allowed)
        found = estimates.column_entries(results, "5w1s")
        bold = "Bold" in grids.table(results)
        assert bold == any(e.best for e in found.values())
        return {row for row, e in found.items() if e.best}

    assert best({"maml": 0.0, "anil": 0.0, "fixed": 0.0}) == set()
    assert best({"maml": 0.3, "anil": 0.3 + 1e-13}) == set()
    assert best({"maml": 0.0, "anil": 0.02, "fixed": 0.02}) == {"anil", "fixed"}
    assert best({"maml": 0.0}) == set()
    # The lowest of a signed difference of two splits is not the best.
    assert best({"maml": 0.1, "anil": -0.2}, gap=True, goal="min") == set()


CONTESTED = {
    # The arithmetic mean of "anil" is larger by one seed, that of its logarithms smaller.
    "by logarithms": (
        {"maml": [1.0, 1.01, 0.99, 1.0, 0.98] * 2, "anil": [*[0.1] * 9, 9.5]},
        {"goal": "min", "logs": True},
    ),
    # Two seeds of "anil" have not run: it is better in all that both have.
    "over common seeds": (
        {"maml": [0.5, 0.51, 0.52, 0.9, 0.9], "anil": [0.6, 0.611, 0.62]},
        {"goal": "max"},
    ),
}


def of_seeds(helpers, values, **changes):
    """Row to a number of each seed, in the first column."""
    budget = {"seeds": [*range(max(map(len, values.values())))], "outer_steps": 10}
    suite = helpers.make_suite(
        budgets=dict.fromkeys(("smoke", "laptop", "paper"), budget), percent=False, **changes
    )
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        known = values.get(place.row, [])
        if place.column == "5w1s" and place.cell.seed < len(known):
            mean = known[place.cell.seed]
            store.add(place, metrics={"test": {"accuracy": Estimate(mean, 10, 0.1, 0.1)}})
    return collect(suite, "laptop", store, why_not=helpers.allowed)


@pytest.mark.parametrize("how", CONTESTED)
def test_no_number_is_the_best_and_shown_to_be_worse(helpers, how):
    values, changes = CONTESTED[how]
    results = of_seeds(helpers, values, **changes)
    found = estimates.column_entries(results, "5w1s")
    assert {row for row, e in found.items() if e.worse} == {"maml"}
    assert not any(e.best for e in found.values())
    told = " ".join(grids.table(results, "text").split())
    said = f"The best mean, and yet shown to be worse, so not marked: MAML (5-way 1-shot, {how})."
    assert said in told and "*: the best mean" not in told


LEVEL = {"maml": 0.9, "anil": 0.5, "fixed": 0.1}


def with_lost(helpers, lost):
    """Three rows with five seeds, far apart; ``lost``: rows whose first seed ran away."""
    suite, store = helpers.make_suite(), helpers.Fake()
    for place in suite.cells("paper"):
        if place.row in LEVEL:
            seed = place.cell.seed
            value = LEVEL[place.row] + 0.001 * seed ** [*LEVEL].index(place.row)
            store.add(place, metrics={"test": {"accuracy": Estimate(value, 10, 0.0, 0.0)}})
            if place.row in lost and seed == 0:
                store.add(place, **helpers.failure("diverged"))
    return collect(suite, "paper", store, why_not=helpers.allowed)


def test_a_row_with_lost_runs_is_neither_best_nor_shown_to_be_better(helpers):
    """Its survivors are far above the others, and say nothing of the run that ran away."""
    whole = estimates.column_entries(with_lost(helpers, ()), "5w1s")
    assert [row for row, e in whole.items() if e.best] == ["maml"]
    assert {row for row, e in whole.items() if e.worse} == {"anil", "fixed"}
    assert "Lost runs" not in grids.table(with_lost(helpers, ()))
    results = with_lost(helpers, ("maml",))
    found = estimates.column_entries(results, "5w1s")
    assert found["maml"].mean == pytest.approx(0.9, abs=0.05)
    assert [row for row, e in found.items() if e.best] == ["anil"]
    assert {row for row, e in found.items() if e.worse} == {"fixed"}
    told = " ".join(grids.table(results).split())
    assert "Lost runs: MAML (1 of 5 in 5-way 1-shot and 1 of 5 in 5-way 5-shot)." in told
    # It can still be shown to be worse, and where all have lost runs none is the best.
    found = estimates.column_entries(with_lost(helpers, ("fixed",)), "5w1s")
    assert {row for row, e in found.items() if e.worse} == {"anil", "fixed"}
    found = estimates.column_entries(with_lost(helpers, tuple(LEVEL)), "5w1s")
    assert not any(e.best or e.worse for e in found.values())


def test_an_unfinished_row_is_not_tested(holed):
    found = estimates.column_entries(holed[0], "5w1s")["anil"]
    assert (found.seeds, found.p, found.worse, found.best) == ((0, 2), None, False, False)


def test_the_goal_may_be_a_minimum(helpers):
    suite = helpers.make_suite(goal="min")
    store = helpers.fill(suite, "laptop")
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    found = estimates.column_entries(results, "5w1s")
    assert [row for row, e in found.items() if e.best] == ["fixed"]


def test_the_floor_is_the_methods_own_and_disagreement_is_told(full, suite, helpers):
    found, others = estimates.floor(full[0], "5w1s")
    assert found.mean == pytest.approx(0.458)
    assert others == []
    store = helpers.fill(suite, "smoke")
    place = next(p for p in suite.cells("smoke") if p.row == "anil")
    record = store.kept[place.cell.key]
    metrics = {"test": {**record.metrics["test"], "nearest_neighbour": Estimate(0.5, 600, 0.1)}}
    store.add(place, metrics=metrics)
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    assert estimates.floor(results, "5w1s")[1] == ["ANIL"]


@pytest.mark.parametrize(
    ("mean", "pm", "scale", "least", "text"),
    [
        (0.9512, 0.0081, 100, 1, "95.1 ± 0.8"),
        (0.99871, 0.00054, 100, 1, "99.87 ± 0.05"),
        (0.5, None, 100, 1, "50.0"),
        (0.5, 0.0, 100, 1, "50.0 ± 0"),
        (8.0, 0.0, 1, None, "8.000 ± 0"),
        (1e-15, 0.0, 1, None, "(1.000 ± 0)e-15"),
        (-0.0, 0.0, 1, None, "0 ± 0"),
        (1.23456, 0.0123, 1, None, "1.235 ± 0.012"),
        (123.4, 5.6, 1, None, "123.4 ± 5.6"),
        (123.4, 56.0, 1, None, "123 ± 56"),
        (1.02e-12, 3.1e-13, 1, None, "(1.02 ± 0.31)e-12"),
        (2.5e7, None, 1, None, "2.500e+07"),
        (0.0, 0.0, 1, None, "0 ± 0"),
        (0.0, None, 1, None, "0"),
        (-0.25, 0.03, 1, None, "-0.250 ± 0.030"),
        (0.99993, 3e-5, 100, 1, "99.993 ± 0.003"),
        (0.99993, 6e-5, 100, 1, "99.99 ± 0.01"),
        (1.0, 1.3e-12, 1, None, "1.00000000 ± 1.3e-12"),
        (0.5, 2e-14, 100, 1, "50.00000000 ± 2.0e-12"),
        (5.6e-12, 1.2e-24, 1, None, "5.60000000e-12 ± 1.2e-24"),
        (1.0, 2.6e-15, 1, None, "1.000 ± 0"),
    ],
)
def test_numbers_as_text(mean, pm, scale, least, text):
    assert with_pm(mean, pm, scale, least) == text


@given(
    st.floats(-1e12, 1e12), st.none() | st.floats(0, 1e12), st.sampled_from([(1, None), (100, 1)])
)
def test_numbers_as_text_say_what_they_are(mean, pm, how):
    """Read back, the text is within half a digit of the half-width, or within 0.1 %."""
    scale, least = how
    text = with_pm(mean, pm, scale, least)
    power = float("1" + text[text.index(")e") + 1 :]) if ")e" in text else 1.0
    numbers = text.partition(")")[0].strip("(").split(" ± ")
    back = float(numbers[0]) * power
    assert len(numbers) == 1 or numbers[1] == "0" or float(numbers[1]) > 0
    assert len(numbers) == 1 or (numbers[1] == "0") == (pm <= EXACT * abs(mean))
    slack = max(1e-3 * abs(mean * scale), 0.06 * (pm or 0) * scale, 0.051 if least else 1e-8)
    assert abs(back - mean * scale) <= slack
    assert (pm is None) == (len(numbers) == 1)


def test_costs_are_means_over_finished_seeds(holed):
    found = estimates.costs(holed[0], "anil", "5w1s")
    assert (found["steps"], found["inner_gradients"], found["seconds"]) == (1000, 5000, 20)
    assert estimates.costs(holed[0], "reptile", "5w5s") == {}
