"""Scores of arenas: closed forms, failures, and a field of equal methods told to be equal."""

import math
from itertools import combinations

import numpy as np
import pytest

from metabench.analysis import arena as scores
from metabench.analysis import stats
from metabench.analysis.arena import Trial
from metabench.suites.arena import ArenaProblem

PRICES = {"inner_gradients": 1.0, "outer_gradients": 2.0}
PROBLEM = ArenaProblem("p", "A", "quadratic", fixed=2.0, bound=1.0, cap=10.0, prices=PRICES)


def trials(*each: tuple[float | None, ...]) -> list[Trial]:
    return [Trial(k, of) for k, of in enumerate(each)]


def test_the_best_mean_is_chosen_and_of_equals_the_first() -> None:
    found = scores.choose(
        {
            ("a", "p"): trials((0.1, 0.3), (0.5, 0.4), (0.4, 0.5)),
            ("b", "p"): trials((0.2, 0.2), (0.2, 0.2)),
        }
    )
    assert found == {("a", "p"): 1, ("b", "p"): 0}


def test_a_failure_scores_as_no_learning_or_as_the_worst_there_is() -> None:
    assert scores.means(trials((0.4, None), (0.1, 0.2))) == pytest.approx([0.2, 0.15])
    assert scores.means(trials((0.4, None), (-0.6, 0.2))) == pytest.approx([-0.1, -0.2])
    assert scores.means(trials((None,), (None,))) == [0.0, 0.0]


def test_robustness_counts_what_ends_near_the_best() -> None:
    found = scores.robustness(trials((0.2, 0.2), (1.0, 1.0), (0.9, 0.92), (None, 0.8)))
    assert found.near == 2 / 4 and found.failed == 1 / 8 and found.regret == pytest.approx(0.8)


def test_the_expected_best_of_k_is_that_of_all_subsets() -> None:
    values = [0.3, -0.2, 0.9, 0.5, 0.5]
    found = scores.expected_best(values)
    for k in range(1, 6):
        every = [max(chosen) for chosen in combinations(values, k)]
        assert found[k - 1] == pytest.approx(sum(every) / len(every))


def curve(*looks: tuple[float | None, int, int]) -> dict[str, list[float | None]]:
    counts = {f"cost/{n}": [0.0] * len(looks) for n in scores.COUNT_NAMES}
    return {
        "step": list(range(len(looks))),
        "selection/loss": [x for x, _, _ in looks],
        **counts,
        "cost/inner_gradients": [float(n) for _, n, _ in looks],
        "cost/outer_gradients": [float(n) for _, _, n in looks],
    }


def test_the_cost_to_the_target_is_that_of_the_first_look_that_has_it() -> None:
    run = curve((2.0, 0, 0), (None, 5, 1), (1.2, 10, 2), (1.3, 20, 4))
    assert scores.cost_to_target(PROBLEM, run, "loss") == 14.0
    assert scores.cost_to_target(PROBLEM, curve((2.0, 0, 0), (1.21, 5, 1)), "loss") is None


@pytest.mark.parametrize(
    ("costs", "median"),
    [([1, 2, 9], 2), ([1, None, None], None), ([1, 2, None], 2), ([1, 3], 2), ([1, None], None)],
)
def test_a_run_that_never_has_it_is_the_dearest(costs, median) -> None:
    assert scores.median_cost(costs) == median


def test_the_profile_is_by_ratio_to_the_cheapest_on_each_problem() -> None:
    costs = {
        "one": {"a": 10.0, "b": 20.0, "c": None},
        "two": {"a": 30.0, "b": 10.0, "c": 11.0},
        "none": {"a": None, "b": None, "c": None},
    }
    found = scores.cost_profile(costs, [1.0, 2.0, 3.0])
    assert found["a"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert found["b"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert found["c"] == pytest.approx([0, 1 / 3, 1 / 3])


def test_a_duel_counts_wins_by_problem_and_ties_half() -> None:
    field = {
        "a": {"p": [1.0, 1.0], "q": [0.0, 0.5], "r": [1.0]},
        "b": {"p": [0.0, 0.0], "q": [0.0, 0.9]},
    }
    found = scores.duel(field, "a", "b")
    assert found is not None and found.problems == 2
    assert found.wins == pytest.approx((1 + 0.25) / 2)
    assert found.low <= found.wins <= found.high
    assert scores.duel({"a": {"p": [1.0]}, "b": {"q": [1.0]}}, "a", "b") is None


def field(rng: np.random.Generator, methods: int, problems: int, gap: float) -> dict:
    """Ten seeds a problem; method 0 is better by ``gap`` deviations on all of them. Every method
    fits some problems better than others, as in real fields."""
    fits = rng.normal(size=(methods, problems))
    return {
        f"m{i}": {
            f"p{j}": list(fits[i, j] + gap * (i == 0) + 0.3 * rng.normal(size=10))
            for j in range(problems)
        }
        for i in range(methods)
    }


def test_a_field_of_equal_methods_is_told_to_be_equal() -> None:
    """Of 200 fields of six equal methods on twelve problems no more than about 5 % have a pair that
    is told apart, by Wilcoxon over problems with Holm, and by Friedman: methods that suit
    different problems are no reason to rank them."""
    rng = np.random.default_rng(0)
    apart = friedman = 0
    for _ in range(200):
        equal = field(rng, 6, 12, 0.0)
        means = {m: [stats.mean(v) for v in of.values()] for m, of in equal.items()}
        p = [stats.wilcoxon(means[a], means[b]) for a, b in combinations(equal, 2)]
        apart += min(stats.holm([x or 1.0 for x in p])) < 0.05
        friedman += stats.ranking(list(zip(*means.values(), strict=True))).p < 0.05
    assert apart <= 18 and friedman <= 18  # 10 expected; 18 has probability 0.8 %


def test_a_method_that_is_better_everywhere_is_told_so() -> None:
    found = scores.duels(field(np.random.default_rng(1), 4, 14, 5.0))
    better = [found["m0", other] for other in ("m1", "m2", "m3")]
    assert all(one.p is not None and one.p < 0.05 and one.low > 0.7 for one in better)
    others = [one for pair, one in found.items() if "m0" not in pair]
    assert all(one.p is not None and one.p > 0.05 for one in others)


def test_the_interquartile_mean_leaves_the_ends_out() -> None:
    value, low, high = scores.iqm_of({"p": [0.0, 0.4, 0.6, 9.0], "q": [0.5, 0.5, 0.5, 0.5]})
    assert value == pytest.approx(0.5) and low <= value <= high
    assert math.isfinite(high)
