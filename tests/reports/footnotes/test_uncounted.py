"""A table says which rows train where no cost counts it."""

from dataclasses import replace

from metabench.analysis.results import collect
from metabench.reports.footnotes.costs import uncounted_footnotes
from metabench.reports.tables import grids

TOLD = "Evaluation counts as no cost, and rows without an outer step train nothing outside it: "


def notes(helpers, steps, **limits):
    suite = helpers.make_suite()
    suite = replace(
        suite, columns=[replace(c, set={**c.set, "budget": limits}) for c in suite.columns]
    )
    store = helpers.Fake()
    for place in suite.cells("smoke"):
        store.add(place, steps=steps(place))
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    found = [note.text for note in uncounted_footnotes(results)]
    assert all(text in grids.table(results) for text in found)
    return found


def test_rows_without_an_outer_step_are_named(helpers):
    assert notes(helpers, lambda p: 0 if p.row == "fixed" else 6) == [f"{TOLD}No outer learning."]
    assert notes(helpers, lambda p: 0) == [f"{TOLD}all rows."]


def test_a_row_that_steps_in_one_column_is_counted(helpers):
    assert notes(helpers, lambda p: 0 if p.column == "5w1s" else 6) == []


def test_where_the_budget_counts_evaluation_there_is_no_note(helpers):
    counts = {"charge_looks": True, "prices": {"function_evaluations": 1.0}}
    assert notes(helpers, lambda p: 0, **counts) == []
