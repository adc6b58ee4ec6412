"""One method against the others: verdicts over problems, over seeds, and where nothing is left to
chance."""

import numpy as np
import pytest
from scipy import stats

from metabench.analysis.arena.entrant import Outcome, Place, against
from metabench.analysis.arena.scores import standings
from metabench.reports.tables import entrant as drawing


def scores(problems: int, seeds: int, shift: float, seed: int = 0) -> dict:
    draws = np.random.default_rng(seed)
    mine = {f"p{i}": draws.normal(size=seeds) for i in range(problems)}
    other = {name: x - shift + 0.1 * draws.normal(size=seeds) for name, x in mine.items()}
    return {"mine": mine, "other": other}


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "better"), (-1.0, "worse")])
@pytest.mark.parametrize(
    ("problems", "over", "tests"), [(2, "seeds", ["seeds"]), (8, "problems", ["seeds", "problems"])]
)
def test_a_clear_difference_is_shown(problems, over, tests, shift, verdict) -> None:
    (found,) = against(scores(problems, 5, shift), "mine")
    assert found.over == over and [*found.tested] == tests
    assert {t.verdict for t in found.tested.values()} == {verdict}
    assert found.wins > 0.9 if shift > 0 else found.wins < 0.1
    assert found.low <= found.wins <= found.high


def test_p_is_that_of_scipy_times_the_number_of_others() -> None:
    few, many = scores(2, 5, 0.05), scores(7, 5, 0.03)
    for given in (few, many):
        given["third"] = {name: x - 3 for name, x in given["other"].items()}
    found = {a.other: a for a in against(few, "mine")}
    one, two = (np.mean([*few[m].values()], axis=0) for m in ("mine", "other"))
    # Holm's last
    assert found["other"].tested["seeds"].p == pytest.approx(stats.ttest_rel(one, two).pvalue)
    one, two = (np.mean([*few[m].values()], axis=0) for m in ("mine", "third"))
    assert found["third"].tested["seeds"].p == pytest.approx(2 * stats.ttest_rel(one, two).pvalue)
    found = {a.other: a for a in against(many, "mine")}
    one, two = (np.mean([*many[m].values()], axis=0) for m in ("mine", "third"))
    assert found["third"].tested["seeds"].p == pytest.approx(2 * stats.ttest_rel(one, two).pvalue)
    means = {m: [float(x.mean()) for x in of.values()] for m, of in many.items()}
    over_problems = 2 * stats.wilcoxon(means["mine"], means["third"])[1]
    assert found["third"].tested["problems"].p == pytest.approx(over_problems)


def test_what_is_the_same_is_equal_and_one_seed_is_not_tested() -> None:
    given = scores(2, 4, 0.0)
    given["copy"] = {name: x + 1e-13 for name, x in given["mine"].items()}
    found = {a.other: a for a in against(given, "mine")}
    assert found["copy"].tested == {"seeds": Outcome(None, "equal")}
    (found_once,) = against(scores(2, 2, 5.0), "mine")
    assert found_once.tested == {"seeds": Outcome(None, "not tested")}
    # Where every seed has the same difference there is no spread to test it by.
    given = {"mine": {"p": [1.0, 2.0, 3.0]}, "other": {"p": [0.0, 1.0, 2.0]}}
    assert against(given, "mine")[0].tested == {"seeds": Outcome(None, "not tested")}


def test_a_lost_run_is_no_better_than_a_poor_one() -> None:
    """Below no learning on every seed is still above what ended without numbers."""
    rng = np.random.default_rng(2)
    given = {
        "mine": {f"p{i}": [None] * 5 for i in range(7)},
        "poor": {f"p{i}": list(rng.normal(-9, 1, 5)) for i in range(7)},
    }
    (found,) = against(given, "mine")
    assert found.wins == 0
    assert {over: t.verdict for over, t in found.tested.items()} == {
        "seeds": "worse", "problems": "worse",
    }  # fmt: skip
    given["poor"] = given["mine"]
    (found,) = against(given, "mine")
    assert found.wins == 0.5 and {t.verdict for t in found.tested.values()} == {"equal"}


def test_equal_methods_are_seldom_told_apart() -> None:
    draws = np.random.default_rng(1)
    told = 0
    for _ in range(100):
        given = {m: {p: draws.normal(size=5) for p in "ab"} for m in ("mine", "x", "y", "z")}
        verdicts = {a.tested["seeds"].verdict for a in against(given, "mine")}
        told += bool(verdicts & {"better", "worse"})
    assert told <= 10  # 5 of a hundred are promised


def test_a_place_names_the_others_in_the_order_of_the_table() -> None:
    given = scores(2, 5, 1.0)
    given["worst"] = {name: 2 * x - 9 for name, x in given["mine"].items()}
    found = standings(given, {(m, p): () for m in given for p in given[m]})
    place = Place("A", True, "mine", ["p0", "p1"], 2, found, against(given, "mine"))
    assert place.overs == ["seeds"] and place.least_p is None
    assert place.own.row == "mine" and place.own.rank == 1.0
    assert place.verdicts("better") == ["other", "worst"] and place.verdicts("worse") == []


@pytest.mark.parametrize(("sign", "verdict"), [(1, "better"), (-1, "worse")])
def test_against_many_on_few_problems_seeds_show_what_problems_cannot(sign, verdict) -> None:
    """Sixteen others on eight problems: no p over problems is below 16 / 2^7, whatever happens."""
    draws = np.random.default_rng(0)
    names = [f"p{i}" for i in range(8)]
    given = {f"m{i}": {n: draws.normal(size=3) for n in names} for i in range(16)}
    given["mine"] = {n: sign * 50 + draws.normal(size=3) for n in names}
    found = standings(given, {(m, n): () for m in given for n in names})
    place = Place("A", True, "mine", names, 8, found, against(given, "mine"))
    assert len(place.verdicts(verdict)) == 16
    assert len(place.verdicts("not told apart", "problems")) == 16
    assert place.least_p == 0.125
    assert {a.tested["problems"].p for a in place.against} == {0.125}
    said = drawing.said(place)
    assert said[1].startswith(f"on these problems, shown {verdict} than: ")
    assert said[2].startswith(
        "on problems like these, not told apart from (no p can be below 0.12 here): "
    )
    assert len(said) == 3 and len(drawing.over([place])) == 2
