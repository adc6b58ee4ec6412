"""The cost until a learning curve has a level, and claims about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis.paper_claims import verdicts
from metabench.analysis.reach import Reached, reached
from metabench.analysis.results import collect
from metabench.reports.footnotes.claims import claim_footnotes
from metabench.reports.tables import grids
from metabench.suites.schema import Reach


def curve(values, *, per_point=10):
    costs = [per_point * i for i in range(len(values))]
    return {"valid/loss": values, "cost/inner_gradients": costs, "cost/hvps": [1] * len(values)}


def test_the_first_row_at_a_level_of_its_own():
    curves = {("a", "x"): {0: curve([5.0, None, 2.0, 3.0, 1.0]), 1: curve([5.0, 4.0])}}
    found = reached(Reach("loss", level=2.0), "min", curves, {})
    assert found == {("a", "x"): {0: Reached(20, True), 1: Reached(10, False)}}
    found = reached(Reach("loss", cost="derivatives", level=4.5), "max", curves, {})
    assert found["a", "x"][1] == Reached(1, True)
    assert reached(Reach("accuracy", level=0.5), "max", curves, {}) == {}
    budgets = {("a", "x"): {"inner_gradients": 15, "hvps": 1}}
    found = reached(Reach("loss", level=2.0), "min", curves, budgets)  # it had 15 to reach it
    assert found == {("a", "x"): {0: Reached(20, True), 1: Reached(15, False)}}


def test_the_best_of_any_row_in_the_same_column_and_seed():
    curves = {
        ("a", "x"): {0: curve([9.0, 1.005, 1.0]), 1: curve([9.0, 3.0])},
        ("b", "x"): {0: curve([9.0, 8.0, 1.02]), 1: curve([9.0, 2.0])},
        ("a", "y"): {0: curve([9.0, 5.0])},
    }
    found = reached(Reach("loss", within=0.01), "min", curves, {})
    assert found["a", "x"] == {0: Reached(10, True), 1: Reached(10, False)}
    assert found["b", "x"] == {0: Reached(20, False), 1: Reached(10, True)}
    assert found["a", "y"] == {0: Reached(10, True)}


@given(st.lists(st.floats(-100, 100), min_size=1), st.floats(1e-6, 1), st.sampled_from("+-"))
def test_some_row_always_reaches_what_is_within_the_best(values, within, sign):
    goal = "max" if sign == "+" else "min"
    found = reached(Reach("loss", within=within), goal, {("a", "x"): {0: curve(values)}}, {})
    best = max(values) if goal == "max" else min(values)
    assert found["a", "x"][0].reached and found["a", "x"][0].cost <= 10 * values.index(best)


def results(helpers, costs, by="reach", within_claim=None, **reach):
    """``costs``: row to the cost of the level in each seed; None: not reached after 100."""
    claims = [{"better": ["maml"], "than": "anil", "source": "A", "columns": ["5w1s"], "by": by}]
    if within_claim:
        claims[0]["within"] = within_claim
    reach = {"metric": "accuracy", **(reach or {"level": 0.5})}
    suite = helpers.make_suite(claims=claims, reach=reach)
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        if place.row not in costs or place.column != suite.columns[0].id:
            continue
        cost = costs[place.row][place.cell.seed]
        record = store.add(place)
        rows = {0: 0.1, 100: 0.2} if cost is None else {0: 0.1, cost: 0.5, 101: 0.9}
        store.curves[record.key] = {
            "step": [*range(len(rows))],
            "valid/accuracy": [*rows.values()],
            "cost/inner_gradients": [*rows],
        }
    return collect(suite, "laptop", store, why_not=helpers.allowed)


def test_claims_by_cost_are_of_paired_seeds_and_a_miss_is_never_shown_to_be_better(helpers):
    found = results(helpers, {"maml": [40, 50, 60], "anil": [70, 90, None]})
    (claim,) = verdicts(found)
    assert claim.gain == pytest.approx((30 + 40 + 40) / 3) and claim.verdict == "holds"
    told = claim_footnotes(found)
    assert told[1].text.endswith(
        "MAML reaches the level at less cost than ANIL: holds (5-way 1-shot at least 36.67, not "
        "reached by ANIL in 1 seed)."
    )
    assert "so that the gain is a bound, without an interval" in told[0].text
    text = grids.table(found)
    assert "80 ± 127 (2 of 3 seeds)" in text and "inner gradients (fewer is better)" in text

    missed = results(helpers, {"maml": [40, 50, None], "anil": [1070, 1090, 1060]})
    (claim,) = verdicts(missed)
    assert (claim.verdict, claim.failed) == ("not shown", 1)
    told = claim_footnotes(missed)[1].text
    assert told.endswith("not shown (5-way 1-shot at most 1010, not reached by MAML in 1 seed).")


def test_a_gain_is_a_number_only_where_both_rows_reach_the_level(helpers):
    both = results(helpers, {"maml": [40, 50, 60], "anil": [70, 90, 80]})
    told = claim_footnotes(both)
    assert told[1].text.endswith("(5-way 1-shot 30 ± 25).") and "bound" not in told[0].text
    # The rivals never arrive: what they spent less the row's own cost is no gain.
    never = results(helpers, {"maml": [40, 50, 60], "anil": [None, None, None]})
    (claim,) = verdicts(never)
    assert (claim.bound, claim.missed, claim.verdict) == ("at least", 3, "holds")
    neither = results(helpers, {"maml": [40, None, 60], "anil": [None, None, 70]})
    (claim,) = verdicts(neither)
    assert (claim.bound, claim.failed, claim.missed) == ("unknown", 1, 2)
    assert claim_footnotes(neither)[1].text.endswith(
        "no gain known, not reached by MAML in 1 seed and by ANIL in 2 seeds)."
    )


def test_costs_that_are_bounds_are_never_near(helpers):
    """Two rows that spend the same and arrive nowhere are not shown to cost the same."""
    costs = {"maml": [None, None, None], "anil": [None, None, None]}
    (claim,) = verdicts(results(helpers, costs, within_claim=0.1))
    assert claim.verdict == "not shown"
    near = {"maml": [40, 50, 60], "anil": [40, 50, 61]}
    assert verdicts(results(helpers, near, within_claim=0.1))[0].verdict == "holds"


def test_the_best_of_any_row_is_said_to_be_the_level(helpers):
    found = results(helpers, {"maml": [40, 50, 60], "anil": [70, 90, None]}, within=0.5)
    text = grids.table(found)
    assert "is within 0.5 (relative) of the best that any row has in that seed" in text
    assert [r.cost for r in found.reached["maml", "5w1s"].values()] == [40, 50, 60]


def test_the_level_has_a_goal_of_its_own(helpers):
    costs = {"maml": [40, 50, 60], "anil": [70, 90, 80]}
    found = results(helpers, costs, level=0.15, goal="min")
    assert [r.cost for r in found.reached["maml", "5w1s"].values()] == [0, 0, 0]
    assert "validation accuracy is at most 0.15" in grids.table(found)


def test_the_legend_of_the_dagger_stands_where_one_is(helpers):
    def legend(costs):
        (grid,) = [g for g in grids.grids(results(helpers, costs)) if g.label.endswith("-reach")]
        daggers = [item for row in grid.rows for item in row if item.worse]
        return len(daggers), [note.text for note in grid.footnotes[1:]]

    told = "tested as in the table above"
    shown = legend({"maml": [40, 50, 60], "anil": [70, 90, 81]})
    assert shown[0] == 1 and shown[1][0].startswith("†: shown to cost more") and told in shown[1][0]
    (note,) = legend({"maml": [40, 50, 60], "anil": [41, 30, 70]})[1]
    assert note.startswith("No row is shown to cost more") and told in note and "†" not in note
    assert legend({"maml": [40, 50, 60]}) == (0, [])


def test_without_a_level_there_is_one_table(helpers):
    suite = helpers.make_suite()
    found = collect(suite, "laptop", helpers.Fake(), why_not=helpers.allowed)
    assert len(grids.grids(found)) == 1 and found.reached == {}


def test_a_level_of_a_metric_that_no_run_has_is_said_to_be_one(helpers):
    suite = helpers.make_suite(reach={"metric": "acuracy", "goal": "max", "level": 0.5})
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        if place.column == suite.columns[0].id:
            store.add(place)
    text = grids.table(collect(suite, "laptop", store, why_not=helpers.allowed))
    told = "no validation metric 'acuracy'; near: accuracy; known: accuracy"
    assert f"Without a level (5-way 1-shot): {told}" in " ".join(text.split())
