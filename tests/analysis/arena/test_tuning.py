"""The expected best of k trials: all subsets by hand, properties, bands that hold the truth."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis.arena import tuning
from metabench.analysis.arena.scores import Trial


def test_the_expected_best_of_k_is_that_of_all_subsets() -> None:
    values = [0.3, -0.2, 0.9, 0.5, 0.5]
    found = tuning.expected_best(values)
    for k in range(1, 6):
        every = [max(chosen) for chosen in combinations(values, k)]
        assert found[k - 1] == pytest.approx(sum(every) / len(every))


def test_the_worth_of_the_chosen_is_that_of_all_subsets_the_first_of_equals_taken() -> None:
    score, worth = [0.3, 0.9, 0.5, 0.9, 0.1], [0.8, 0.2, 0.6, 0.7, 0.0]
    found = tuning.expected_best(score, worth)
    for k in range(1, 6):
        every = [
            worth[max(some, key=lambda i: (score[i], -i))] for some in combinations(range(5), k)
        ]
        assert found[k - 1] == pytest.approx(sum(every) / len(every))
    assert found[-1] == 0.2  # the first of the two best


NUMBERS = st.floats(-1e3, 1e3)


@given(st.lists(NUMBERS, min_size=1, max_size=12))
def test_it_starts_at_the_mean_never_falls_and_ends_at_the_best(scores) -> None:
    found = tuning.expected_best(scores)
    size = 1e-9 * max(1.0, *map(abs, scores))
    assert found[0] == pytest.approx(sum(scores) / len(scores), abs=size)
    assert all(b >= a - size for a, b in pairwise(found))
    assert found[-1] == max(scores)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=10))
def test_what_is_chosen_is_worth_something_between_the_least_and_the_most(both) -> None:
    score, worth = [a for a, _ in both], [b for _, b in both]
    found = tuning.expected_best(score, worth)
    assert all(min(worth) - 1e-6 <= x <= max(worth) + 1e-6 for x in found)
    assert found[-1] == worth[score.index(max(score))]


def trials(scores, tests=None) -> list[Trial]:
    tests = scores if tests is None else tests
    return [Trial(i, (a,), (b,)) for i, (a, b) in enumerate(zip(scores, tests, strict=True))]


def test_problems_weigh_the_same_and_the_shortest_list_ends_the_curve() -> None:
    found = tuning.best_of([trials([0.0, 1.0, 0.5]), trials([0.2, 0.4])])
    assert found.tuning == pytest.approx(((0.5 + 0.3) / 2, (2.5 / 3 + 0.4) / 2))
    assert found.test == found.tuning and len(found.low) == 2


def test_one_setting_has_no_band() -> None:
    found = tuning.best_of([trials([0.3], [0.2]), trials([0.5], [0.4])])
    assert found.test == found.low == found.high == pytest.approx((0.3,))
    assert found.tuning == pytest.approx((0.4,))


def test_a_run_without_numbers_is_worth_no_learning_or_the_worst() -> None:
    found = tuning.best_of([[Trial(0, (0.5,), (0.4,)), Trial(1, (None,), (None,))]])
    assert found.test == pytest.approx((0.2, 0.4))


def test_how_far_a_run_ran_away_says_nothing() -> None:
    """One of two seeds of the second setting, and the third: as a quarter of the way lost."""

    def played(bad: float) -> list[Trial]:
        return [
            Trial(0, (0.5, 0.7), (0.4, 0.6)),
            Trial(1, (bad, 0.1), (0.3, bad)),
            Trial(2, (bad, bad), (bad, None)),
        ]

    found = tuning.best_of([played(-1e12)])
    assert found == tuning.best_of([played(-0.25)])
    assert found.test[0] == pytest.approx((0.5 + (0.3 - 0.25) / 2 - 0.25) / 3)
    assert found.tuning[0] == pytest.approx((0.6 + (0.1 - 0.25) / 2 - 0.25) / 3)
    assert tuning.one_trial([played(-1e12)]) == pytest.approx(found.test[0])
    assert found.test[-1] == 0.5


def test_choosing_by_noise_shows_in_tuning_scores_and_not_in_test_scores() -> None:
    """Settings that are all alike: the best of many looks better, and is not."""
    rng = np.random.default_rng(0)
    problems = [trials(*rng.normal(0, 0.08, (2, 20))) for _ in range(60)]
    found = tuning.best_of(problems, samples=200)
    assert found.tuning[-1] > 0.12 and abs(found.test[-1]) < 0.03
    assert found.low[-1] < 0 < found.high[-1]


def test_the_band_holds_what_the_space_is_worth() -> None:
    """Scores uniform on [0, 1]: the best of k is worth k / (k + 1) on average. Of 200 arenas of 20
    trials the band of the best of 3 has it in about 95 %."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = tuning.best_of([trials(rng.random(20))], samples=300, seed=int(rng.integers(1e6)))
        held += found.low[2] <= 3 / 4 <= found.high[2]
    assert 170 <= held <= 198
