"""Pairs of methods: wins counted by hand, equal fields told to be equal, nothing below six."""

from itertools import combinations

import numpy as np
import pytest

from metabench.analysis import stats
from metabench.analysis.arena import pairs


def test_a_duel_counts_wins_by_problem_and_ties_half() -> None:
    field = {
        "a": {"p": [1.0, 1.0], "q": [0.0, 0.5], "r": [1.0]},
        "b": {"p": [0.0, 0.0], "q": [0.0, 0.9]},
    }
    found = pairs.duel(field, "a", "b")
    assert found is not None and found.problems == 2
    assert found.wins == pytest.approx((1 + 0.25) / 2)
    assert found.low <= found.wins <= found.high
    assert pairs.duel({"a": {"p": [1.0]}, "b": {"q": [1.0]}}, "a", "b") is None


def test_a_lost_run_loses_whatever_the_other_has_and_its_mean_is_the_least() -> None:
    given = {
        "a": {"p": [None, 0.5], "q": [None, None]},
        "b": {"p": [-3.0, None], "q": [-1.0, None]},
    }
    found = pairs.duel(given, "a", "b")
    assert found is not None and found.wins == pytest.approx((0.5 + 0.25) / 2)
    assert pairs.matched(given["a"], given["b"]) == [
        ([-3.0, 0.5], [-3.0, -3.0]),
        ([-1.0, -1.0], [-1.0, -1.0]),
    ]
    assert pairs.matched({"p": [None]}, {"p": [2.0]}) == [([0.0], [2.0])]


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
    """Of 100 fields of six equal methods on twelve problems no more than about 5 % have a pair that
    is told apart, by Wilcoxon over problems with Holm, and by Friedman: methods that suit
    different problems are no reason to rank them."""
    rng = np.random.default_rng(0)
    apart = friedman = 0
    for _ in range(100):
        equal = field(rng, 6, 12, 0.0)
        means = {m: [stats.mean(v) for v in of.values()] for m, of in equal.items()}
        p = [stats.wilcoxon(means[a], means[b]) for a, b in combinations(equal, 2)]
        apart += min(stats.holm([x or 1.0 for x in p])) < 0.05
        friedman += stats.ranking(list(zip(*means.values(), strict=True))).p < 0.05
    assert apart <= 11 and friedman <= 11  # 5 expected; more than 11 has probability 0.4 %


def test_a_method_that_is_better_everywhere_is_told_so() -> None:
    found = pairs.duels(field(np.random.default_rng(1), 4, 14, 5.0))
    better = [found["m0", other] for other in ("m1", "m2", "m3")]
    assert all(one.p is not None and one.p < 0.05 and one.low > 0.7 for one in better)
    others = [one for pair, one in found.items() if "m0" not in pair]
    assert all(one.p is not None and one.p > 0.05 for one in others)


def test_below_six_problems_nothing_is_tested_and_the_interval_is_of_seeds() -> None:
    """Of one problem: the interval of a mean of 40 wins and losses, 30 of them wins."""
    wins = [1.0] * 30 + [0.0] * 10
    found = pairs.duel({"a": {"p": wins}, "b": {"p": [0.5] * 40}}, "a", "b")
    assert found is not None and found.over == "seeds" and found.p is None
    assert found.wins == 0.75
    half = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.03)
    five = pairs.duels(field(np.random.default_rng(0), 3, 5, 9.0))
    assert five["m0", "m1"].wins > 0.9
    assert all(one.p is None and one.over == "seeds" for one in five.values())


def test_from_six_on_the_interval_is_of_problems() -> None:
    """Seeds agree inside each problem; six of eight problems are won: the problems alone vary."""
    scores = {
        "a": {f"p{i}": [1.0 if i < 6 else -1.0] * 10 for i in range(8)},
        "b": {f"p{i}": [0.0] * 10 for i in range(8)},
    }
    found = pairs.duel(scores, "a", "b", samples=20_000)
    assert found is not None and found.over == "problems" and found.wins == 0.75
    from scipy.stats import binom

    # A mean of eight draws with chance 3/4 each.
    assert found.low == binom.ppf(0.025, 8, 0.75) / 8
    assert found.high == binom.ppf(0.975, 8, 0.75) / 8
    assert found.p == stats.wilcoxon([1] * 6 + [-1] * 2, [0] * 8)


def test_swapping_a_pair_swaps_who_wins() -> None:
    one = field(np.random.default_rng(3), 2, 7, 1.0)
    ahead, behind = pairs.duel(one, "m0", "m1"), pairs.duel(one, "m1", "m0")
    assert ahead is not None and behind is not None
    assert ahead.wins == pytest.approx(1 - behind.wins) and ahead.p == behind.p
    assert ahead.low == pytest.approx(1 - behind.high, abs=0.02)
