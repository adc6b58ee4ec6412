"""A claim's verdict is that of the paired t-interval, whatever the metric's direction and unit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.analysis.paper_claims import verdicts
from metabench.analysis.results import collect
from metabench.core.catalogue import suite_names
from metabench.reports.footnotes.claims import OURS, claim_footnotes
from metabench.reports.tables.grids import main_grid
from metabench.store.record import Estimate
from metabench.suites.loading import load

T2 = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
"""The 97.5 % quantile of Student's t with 2 degrees of freedom, in closed form."""


def results(helpers, values, claims, **changes):
    """``values``: row to the number of each seed, in the first column."""
    suite = helpers.make_suite(claims=claims, **changes)
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        known = values.get(place.row, [])
        if place.column == suite.columns[0].id and place.cell.seed < len(known):
            found = {"test": {"accuracy": Estimate(known[place.cell.seed], 600, 0.1, 0.01)}}
            store.add(place, metrics=found)
    return collect(suite, "laptop", store, why_not=helpers.allowed)


def claim(**changes):
    return {"better": ["maml"], "than": "anil", "source": "A 2020", "columns": ["5w1s"], **changes}


@pytest.mark.parametrize(
    ("gains", "verdict", "or_equal"),
    [
        ([0.02, 0.03, 0.04], "holds", "holds"),
        ([0.00, 0.03, 0.06], "not shown", "not contradicted"),
        ([0.00, 0.00, 0.00], "not tested", "not tested"),
        ([-0.02, -0.03, -0.04], "contradicted", "contradicted"),
        ([-3e-12, -3e-12, -3e-12], "not tested", "not tested"),
        ([-3e-8, -3e-8, -4e-8], "contradicted", "contradicted"),
        ([0.02, 0.02, 0.02], "not tested", "not tested"),
        ([0.01], "not tested", "not tested"),
        ([], "not tested", "not tested"),
    ],
)
def test_verdicts(helpers, gains, verdict, or_equal):
    base = [0.5, 0.7, 0.6]
    values = {"anil": base, "maml": [b + g for b, g in zip(base, gains, strict=False)]}
    found = verdicts(results(helpers, values, [claim(), claim(or_equal=True)]))
    assert [t.verdict for t in found] == [verdict, or_equal]
    assert found[0].seeds == len(gains)
    # Where less is better, what is gained is lost.
    turned = {"holds": "contradicted", "contradicted": "holds"}
    found = verdicts(results(helpers, values, [claim()], goal="min", percent=False))
    assert found[0].verdict == turned.get(verdict, verdict)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.001, -0.001, 0.002], "holds"),
        ([0.0, 0.0, 0.0], "holds"),
        ([0.001, -0.02, 0.02], "not shown"),
        ([0.02, 0.021, 0.022], "contradicted"),
        ([-0.02, -0.021, -0.022], "contradicted"),
        ([0.001], "not tested"),
    ],
)
def test_a_claim_to_be_near_holds_where_the_interval_is_inside(helpers, gains, verdict):
    """1 % of a mean of 0.6 is 0.006."""
    base = [0.5, 0.7, 0.6]
    values = {"anil": base, "maml": [b + g for b, g in zip(base, gains, strict=False)]}
    found = results(helpers, values, [claim(within=0.01)])
    assert [t.verdict for t in verdicts(found)] == [verdict]
    if len(gains) > 1:
        told = [note.text for note in claim_footnotes(found)]
        assert "MAML within 1 % of ANIL" in told[-1] and "of a claim to be near" in told[0]


@pytest.mark.parametrize("lost", ["maml", "anil"])
def test_survivors_of_lost_runs_are_not_shown_to_be_near(helpers, lost):
    suite, store = helpers.make_suite(claims=[claim(within=0.1)]), helpers.Fake()
    for place in suite.cells("paper"):
        seed = place.cell.seed
        mean = 0.6 + 0.001 * seed ** (place.row == "maml")
        store.add(place, metrics={"test": {"accuracy": Estimate(mean, 600, 0.1, 0.01)}})
    (found,) = verdicts(collect(suite, "paper", store, why_not=helpers.allowed))
    assert found.verdict == "holds"
    for place in suite.cells("paper"):
        if (place.row, place.cell.seed) == (lost, 0):
            store.add(place, **helpers.failure("diverged"))
    (found,) = verdicts(collect(suite, "paper", store, why_not=helpers.allowed))
    assert (found.verdict, found.seeds) == ("not shown", 4)


def test_the_interval_is_that_of_differences_of_common_seeds(helpers):
    values = {"maml": [0.9, 0.6, 0.8], "anil": [0.85, 0.52, 0.69]}
    (found,) = verdicts(results(helpers, values, [claim()]))
    assert found.gain == pytest.approx(0.08, rel=1e-12)
    assert found.pm == pytest.approx(T2 * 0.03 / math.sqrt(3), rel=1e-12)
    values["anil"].pop()
    assert verdicts(results(helpers, values, [claim()]))[0].seeds == 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=3))
def test_a_claim_and_its_reverse_never_both_hold(helpers, pairs):
    values = {"maml": [a for a, _ in pairs], "anil": [b for _, b in pairs]}
    one, other = verdicts(results(helpers, values, [claim(), claim(better=["anil"], than="maml")]))
    assert {one.verdict, other.verdict} in (
        {"holds", "contradicted"},
        {"not shown"},
        {"not tested"},
    )


def test_a_table_tells_each_claim_in_a_sentence(helpers):
    values = {"maml": [0.91, 0.92, 0.93], "anil": [0.82, 0.8201, 0.84], "fixed": [0.9, 0.93, 0.94]}
    rows = claim(better=["maml", "fixed"], columns=[])
    known = results(helpers, values, [rows, claim(better=["fixed"], than="maml", or_equal=True)])
    label = {r.id: r.label for r in known.rows}
    texts = [n.text for n in claim_footnotes(known)]
    assert texts[0] == (
        "Claims: mean gain, in points, over common seeds ± half-width of its paired 95 % "
        "t-interval. Holds: shown to be better; not contradicted: no difference is shown, and no "
        "more is claimed; not tested: fewer than 3 seeds that both have, or the same difference in "
        "every seed. The tests are those of the marks, corrected for all pairs of a column; the "
        "interval is not."
    )
    first, second = (c.label for c in known.columns)
    assert texts[1] == (
        f"Claim (A 2020): {label['maml']} better than {label['anil']}: holds ({first} 9.3 ± 1.4); "
        f"not tested ({second} 0 common seeds)."
    )
    assert texts[3].startswith(f"Claim (A 2020): {label['fixed']} no worse than {label['maml']}")
    shown = [n.text for n in main_grid(known).footnotes]
    assert [t for t in shown if t in texts] == texts
    for source, head in {
        "this project's question: who is first": "This project's question (who is first): ",
        "this project's control": "This project's control: ",
        "B 2021: this project's": "Claim (B 2021: this project's): ",
    }.items():
        told = claim_footnotes(results(helpers, values, [claim(source=source)]))
        assert told[1].text.startswith(head + label["maml"])


def test_a_claim_on_fewer_seeds_than_planned_says_so(helpers):
    """Of a row that diverged on a seed the others alone are compared."""
    values = {"maml": [0.91, 0.92], "anil": [0.82, 0.8201, 0.84]}
    texts = [n.text for n in claim_footnotes(results(helpers, values, [claim()]))]
    assert texts[1].endswith(": not tested (5-way 1-shot 9.5 ± 6.3, n=2 of 3).")


def test_no_claims_or_no_numbers_no_words(full, helpers):
    assert claim_footnotes(full[0]) == []
    assert claim_footnotes(results(helpers, {"maml": [0.5, 0.6, 0.7]}, [claim()])) == []


def test_what_this_project_asks_is_headed_so_in_every_suite() -> None:
    """results/README.md promises it; such a source begins with "this project's"."""
    for name in suite_names():
        for claim in load(name).claims:
            own = "this project" in claim.source or "derived" in claim.source
            assert own == claim.source.startswith(OURS), f"{name}: {claim.source}"
