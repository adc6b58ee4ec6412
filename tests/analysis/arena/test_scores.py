"""Scores of an arena: which trial is chosen, failures, robustness, interquartile means."""

import math

import pytest

from metabench.analysis.arena import scores
from metabench.analysis.arena.scores import Trial


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
    # A run without numbers scores 0, as one that learns nothing: it is not to play for it.
    assert scores.choose({("a", "p"): trials((None,), (0.0,), (0.0,))}) == {("a", "p"): 1}


def test_a_failure_scores_as_no_learning_or_as_the_worst_there_is() -> None:
    assert scores.means(trials((0.4, None), (0.1, 0.2))) == pytest.approx([0.2, 0.15])
    assert scores.means(trials((0.4, None), (-0.6, 0.2))) == pytest.approx([-0.1, -0.2])
    assert scores.means(trials((None,), (None,))) == [0.0, 0.0]


def test_robustness_counts_what_ends_near_the_best() -> None:
    found = scores.robustness(trials((0.2, 0.2), (1.0, 1.0), (0.9, 0.92), (None, 0.8)))
    assert found.near == 2 / 4 and found.failed == 1 / 8 and found.regret == pytest.approx(0.8)


def test_how_far_a_run_ran_away_says_nothing_of_the_settings_as_shipped() -> None:
    """The settings as shipped on one seed and on both; and all settings, where nothing is lacking
    that could have been had."""

    def regret(*each: tuple[float | None, ...]) -> float:
        return scores.robustness(trials(*each)).regret

    assert regret((0.1, -1e12), (0.6, 0.8)) == pytest.approx(0.7 - (0.1 - 0.25) / 2)
    assert regret((-9.0, None), (0.6, 0.8)) == pytest.approx(0.7 + 0.25)
    assert regret((-9.0, -1e12), (-3.0, -7.0)) == 0.0
    # The best mean is that of a setting that never ran away; with -0.25 the other is above it.
    assert regret((0.9, -1.0), (0.2, 0.2)) == 0.0


def test_the_interquartile_mean_leaves_the_ends_out() -> None:
    value, low, high = scores.iqm_of({"p": [0.0, 0.4, 0.6, 9.0], "q": [0.5, 0.5, 0.5, 0.5]})
    assert value == pytest.approx(0.5) and low <= value <= high
    assert math.isfinite(high)


def test_who_lost_every_seed_of_a_problem_is_last_there_and_shares_that() -> None:
    """A lost run scores 0, above what ends below no learning."""
    given = {"low": {"p": [-5.0, -7.0]}, "half": {"p": [-9.0, None]}, "gone": {"p": [None, None]}}
    assert scores.ranks_on("p", given) == [1.0, 2.0, 3.0]
    given["too"] = {"p": [None, None]}
    assert scores.ranks_on("p", given) == [1.0, 2.0, 3.5, 3.5]
    only = {"gone": given["gone"], "too": given["too"]}
    assert scores.ranks_on("p", only) == [1.5, 1.5]
    found = scores.standings(given, {(row, "p"): () for row in given})
    assert [(s.row, s.rank, s.failures) for s in found] == [
        ("low", 1.0, 0), ("half", 2.0, 1), ("gone", 3.5, 2), ("too", 3.5, 2),
    ]  # fmt: skip
    assert found[1].score == -9.0 and found[2].score == 0.0
