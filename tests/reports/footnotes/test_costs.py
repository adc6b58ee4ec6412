import pytest

from metabench.analysis.results import collect
from metabench.reports.footnotes.costs import cost_footnotes
from metabench.reports.tables import grids
from metabench.store.prices import Prices


def results(helpers, counts, prices=None, by_column=False):
    """``counts``: row to its counts, the same in every seed and column; or (``by_column``) row to
    column to inner gradients."""
    suite = helpers.make_suite(paper=[], paper_rows=[])
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        cost = counts.get(place.row, {"inner_gradients": 0})
        if by_column:
            cost = {"inner_gradients": counts.get(place.row, {}).get(place.column, 0)}
        store.add(place, cost=cost)
        if prices:
            store.priced.append(
                Prices(place.cell.task, place.cell.task_settings, prices, 1e-4, "", 1, "")
            )
    return collect(suite, "laptop", store, why_not=helpers.allowed)


EVEN = {"maml": {"inner_gradients": 100, "hvps": 10}, "anil": {"inner_gradients": 60}}
UNEVEN = {"maml": {"inner_gradients": 100, "hvps": 100}, "anil": {"inner_gradients": 40}}


def test_costs_within_a_factor_of_two_are_not_told(helpers):
    assert cost_footnotes(results(helpers, EVEN)) == []
    assert cost_footnotes(results(helpers, {})) == []


def test_costs_further_apart_are_told_by_row(helpers):
    (note,) = cost_footnotes(results(helpers, UNEVEN))
    assert "differ up to 5-fold" in note.text
    assert "each counted as one" in note.text
    assert note.text.endswith("ANIL 1, MAML 5.")


def test_costs_hundreds_of_times_apart_are_told_without_a_power_of_ten(helpers):
    counts = {"maml": {"inner_gradients": 25400}, "anil": {"inner_gradients": 100}}
    (note,) = cost_footnotes(results(helpers, counts))
    assert "differ up to 254-fold" in note.text
    assert note.text.endswith("ANIL 1, MAML 254.")


def test_where_no_row_is_the_cheapest_everywhere_the_mean_over_columns_is_said(helpers):
    """ANIL is the cheapest in one column and MAML in the other: none has a 1."""
    counts = {"maml": {"5w1s": 100, "5w5s": 40}, "anil": {"5w1s": 50, "5w5s": 160}}
    (note,) = cost_footnotes(results(helpers, counts, by_column=True))
    said = "In units of the cheapest row of each column, geometric mean over columns: "
    assert note.text.endswith(f"{said}MAML 1.4, ANIL 2.")


def test_measured_prices_take_the_place_of_plain_counts(helpers):
    prices = {"inner_gradients": 1.0, "hvps": 3.0}
    known = results(helpers, UNEVEN, prices)
    (note,) = cost_footnotes(known)
    assert "differ up to 10-fold" in note.text
    assert "measured prices" in note.text
    text = grids.cost_table(known)
    assert "inner-gradient equivalents" in text
    assert "Hessian product 3" in text
    assert "calibrate" not in text


def test_without_prices_the_cost_table_says_how_to_get_them(helpers):
    assert "the command calibrate" in grids.cost_table(results(helpers, UNEVEN))


def test_a_missing_price_leaves_plain_counts(helpers):
    (note,) = cost_footnotes(results(helpers, UNEVEN, {"inner_gradients": 1.0}))
    assert "each counted as one" in note.text


@pytest.mark.parametrize("fmt", grids.FORMATS)
def test_every_format_draws_it(helpers, fmt):
    assert grids.draw(results(helpers, UNEVEN, {"inner_gradients": 1.0, "hvps": 3.0}), fmt)
