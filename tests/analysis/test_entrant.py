"""One method against the others: verdicts over problems, over seeds, and where nothing is left to
chance."""

import numpy as np
import pytest
from scipy import stats

from metabench.analysis.arena import standings
from metabench.analysis.entrant import Place, against


def scores(problems: int, seeds: int, shift: float, seed: int = 0) -> dict:
    draws = np.random.default_rng(seed)
    mine = {f"p{i}": draws.normal(size=seeds) for i in range(problems)}
    other = {name: x - shift + 0.1 * draws.normal(size=seeds) for name, x in mine.items()}
    return {"mine": mine, "other": other}


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "better"), (-1.0, "worse")])
@pytest.mark.parametrize(("problems", "over"), [(2, "seeds"), (8, "problems")])
def test_a_clear_difference_is_shown(problems, over, shift, verdict) -> None:
    (found,) = against(scores(problems, 5, shift), "mine")
    assert (found.verdict, found.over) == (verdict, over)
    assert found.wins > 0.9 if shift > 0 else found.wins < 0.1
    assert found.low <= found.wins <= found.high


def test_p_is_that_of_scipy_times_the_number_of_others() -> None:
    few, many = scores(2, 5, 0.05), scores(7, 5, 0.03)
    for given in (few, many):
        given["third"] = {name: x - 3 for name, x in given["other"].items()}
    found = {a.other: a for a in against(few, "mine")}
    one, two = (np.mean([*few[m].values()], axis=0) for m in ("mine", "other"))
    assert found["other"].p == pytest.approx(stats.ttest_rel(one, two).pvalue)  # Holm's last
    one, two = (np.mean([*few[m].values()], axis=0) for m in ("mine", "third"))
    assert found["third"].p == pytest.approx(2 * stats.ttest_rel(one, two).pvalue)
    found = {a.other: a for a in against(many, "mine")}
    means = {m: [float(x.mean()) for x in of.values()] for m, of in many.items()}
    assert found["third"].p == pytest.approx(2 * stats.wilcoxon(means["mine"], means["third"])[1])


def test_what_is_the_same_is_equal_and_one_seed_is_not_tested() -> None:
    given = scores(2, 4, 0.0)
    given["copy"] = {name: x + 1e-13 for name, x in given["mine"].items()}
    found = {a.other: a for a in against(given, "mine")}
    assert found["copy"].verdict == "equal" and found["copy"].p is None
    (found_once,) = against(scores(2, 2, 5.0), "mine")
    assert found_once.verdict == "not tested" and found_once.p is None
    # Where every seed has the same difference there is no spread to test it by.
    given = {"mine": {"p": [1.0, 2.0, 3.0]}, "other": {"p": [0.0, 1.0, 2.0]}}
    assert against(given, "mine")[0].verdict == "not tested"


def test_equal_methods_are_seldom_told_apart() -> None:
    draws = np.random.default_rng(1)
    told = 0
    for _ in range(100):
        given = {m: {p: draws.normal(size=5) for p in "ab"} for m in ("mine", "x", "y", "z")}
        told += any(a.verdict in ("better", "worse") for a in against(given, "mine"))
    assert told <= 10  # 5 of a hundred are promised


def test_a_place_names_the_others_in_the_order_of_the_table() -> None:
    given = scores(2, 5, 1.0)
    given["worst"] = {name: 2 * x - 9 for name, x in given["mine"].items()}
    none = {m: dict.fromkeys(given[m], 0) for m in given}
    found = standings(given, none, {(m, p): () for m in given for p in given[m]})
    place = Place("A", True, "mine", ["p0", "p1"], 2, found, against(given, "mine"))
    assert place.own.row == "mine" and place.own.rank == 1.0
    assert place.verdicts("better") == ["other", "worst"] and place.verdicts("worse") == []
