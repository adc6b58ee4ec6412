"""Numbers that are round-off are equal where rows are compared, and the table says so."""

from metabench.analysis.estimates import column_entries
from metabench.analysis.results import collect
from metabench.reports.footnotes.detectable import resolution_footnotes
from metabench.reports.tables import grids
from metabench.store.record import Estimate

TINY = {"maml": (1e-33, 3e-33, 2e-33), "anil": (3e-31, 2e-31, 4e-31), "fixed": (0.1, 0.12, 0.11)}
SOME = {"maml": (1e-9, 3e-9, 2e-9), "anil": (3e-7, 2e-7, 4e-7), "fixed": (0.1, 0.12, 0.11)}


def drawn(helpers, values, resolution):
    suite = helpers.make_suite(
        goal="min", logs=True, percent=False, resolution=resolution, paper=[], paper_rows=[],
        floor="", floor_label="",
    )  # fmt: skip
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        if place.row in values:
            mean = values[place.row][place.cell.seed]
            store.add(place, metrics={"test": {"accuracy": Estimate(mean, 1, 0.0, None)}})
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    return results, column_entries(results, "5w1s")


def marks(entries):
    return {row for row, e in entries.items() if e.best}, {r for r, e in entries.items() if e.worse}


def test_without_a_resolution_round_off_is_told_apart(helpers):
    results, entries = drawn(helpers, TINY, 0.0)
    assert marks(entries) == ({"maml"}, {"anil", "fixed"})
    assert resolution_footnotes(results, {"5w1s": entries}) == []


def test_below_it_rows_are_equal_and_shown_as_they_are(helpers):
    results, entries = drawn(helpers, TINY, 1e-16)
    assert marks(entries) == ({"maml", "anil"}, {"fixed"})
    assert abs(entries["anil"].mean - 3e-31) < 1e-40 and entries["anil"].p is None
    (note,) = resolution_footnotes(results, {"5w1s": entries})
    assert note.text == (
        "A run's number below 1e-16 is round-off: it counts as 1e-16 in tests, marks and claims, "
        "and is shown as it is, so that several can be the best of a column."
    )
    assert note.text in grids.table(results) and "e-31" in grids.table(results)


def test_a_number_below_0_is_no_round_off_where_there_is_no_resolution(helpers):
    results, entries = drawn(helpers, {**SOME, "fixed": (-0.1, -0.2, -0.3)}, 0.0)
    assert resolution_footnotes(results, {"5w1s": entries}) == []


def test_above_it_nothing_changes(helpers):
    results, entries = drawn(helpers, SOME, 1e-16)
    assert marks(entries) == ({"maml"}, {"anil", "fixed"})
    assert entries == drawn(helpers, SOME, 0.0)[1]
    assert resolution_footnotes(results, {"5w1s": entries}) == []


def test_the_best_mean_is_of_what_runs_count_as(helpers):
    """Below the resolution a run counts as it in marks as in tests: 0, 3 and 3.1 as 2, 3, 3.1."""
    values = {"maml": (0.0, 3.0, 3.1), "anil": (2.1, 2.2, 2.3)}
    assert marks(drawn(helpers, values, 2.0)[1])[0] == {"anil"}
    assert marks(drawn(helpers, values, 0.0)[1])[0] == {"maml"}


def test_a_number_that_has_no_logarithm_of_its_own_is_compared_and_told(helpers):
    values = {"maml": (0.0, 0.0, 0.0), "anil": (1e-18, 1.0, 1e-17), "fixed": (0.1, 1e-9, 0.3)}
    results, entries = drawn(helpers, values, 1e-16)
    assert entries["maml"].mean == 0 and marks(entries)[0] == {"maml"}
    assert "counts as 1e-16" in grids.table(results)
