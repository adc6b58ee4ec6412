import csv
import io

import pytest

from metabench.analysis.overfitting import fitted, gaps, mean_gap, one_number, why_none
from metabench.analysis.results import collect
from metabench.reports.tables import grids
from metabench.reports.tables.csv_export import main_csv
from metabench.reports.tables.overfitting import gap_grid
from metabench.store.record import Estimate

BETTER = 0.1


def results(helpers, better=None, **changes):
    """Validation beats the test by 0.1, 0.2, 0.3 in seeds 0 to 2, in the columns of ``better`` by
    that many times as much; ANIL has no validation metric."""
    suite = helpers.make_suite(**changes)
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        times = (better or {}).get(place.column, 1.0)
        gap = times * BETTER * (1 + place.cell.seed)
        metrics = {"test": {"accuracy": Estimate(0.5, 600, 0.1, 0.01)}}
        if place.row != "anil":
            metrics["valid"] = {"accuracy": Estimate(0.5 + gap, 600, 0.1, 0.01)}
        store.add(place, metrics=metrics)
    return collect(suite, "laptop", store, why_not=helpers.allowed)


def test_a_gap_of_fewer_seeds_than_planned_says_so(helpers):
    suite, store = helpers.make_suite(), helpers.Fake()
    for place in suite.cells("laptop"):
        lost = (place.row, place.cell.seed) == ("maml", 2)
        store.add(place, **(helpers.failure("diverged") if lost else {}))
    grid = gap_grid(collect(suite, "laptop", store, why_not=helpers.allowed))
    assert [row[1].text.endswith("(n=2 of 3)") for row in grid.rows][:2] == [True, False]


def told(grid):
    return [note.text for note in grid.footnotes]


def in_csv(known):
    """(row, column) to what the CSV says of it."""
    lines = csv.DictReader(io.StringIO(main_csv(known)))
    return {(n["row"], n["column"]): n["validation_minus_test"] for n in lines}


def test_the_gap_is_over_seeds(helpers):
    known = results(helpers)
    # The task ridge learns on its valid split.
    assert fitted(known) == set(known.table_cells)
    mean, pm = mean_gap(gaps(known)["maml", "5w1s"])
    assert mean == pytest.approx(0.2)
    assert pm == pytest.approx(4.30265273 * 0.1 / 3**0.5)
    assert ("anil", "5w1s") not in gaps(known)
    assert why_none(known) == "" and "No table of the outer" not in grids.table(known)


def test_the_table_is_in_the_tables_unit_and_has_a_place_for_every_row(helpers):
    known = results(helpers)
    grid = gap_grid(known)
    assert [row[1].text for row in grid.rows][:3] == ["20.0 ± 24.8", "20.0 ± 24.8", "—"]
    assert "far above 0" in told(grid)[0] and len(told(grid)) == 1
    assert float(in_csv(known)["maml", "5w1s"]) == pytest.approx(20)
    assert "far below 0" in told(gap_grid(results(helpers, goal="min", percent=False)))[0]


def test_a_task_whose_outer_level_sees_no_validation_example_has_no_gap(helpers):
    columns = [{"id": "5w1s", "task": "quadratic"}]
    known = results(helpers, columns=columns, paper=[], paper_rows=[])
    assert fitted(known) == set()
    assert gap_grid(known) is None
    assert why_none(known) == "the outer level learns on no validation examples"
    assert f"No table of the outer level's over-fitting: {why_none(known)}." in grids.table(known)


def test_a_table_of_the_validation_split_has_no_gap(helpers):
    known = results(helpers, evaluation="valid", floor="")
    assert gap_grid(known) is None
    assert "of the validation examples" in why_none(known)


def test_a_metric_that_is_itself_a_gap_has_none(helpers):
    known = results(helpers, gap=True)
    assert gap_grid(known) is None and why_none(known) == ""
    assert set(in_csv(known).values()) == {""}


@pytest.mark.parametrize("rounded_off", [0.0, 1e-12])
def test_a_number_that_is_the_same_in_both_splits_by_construction_is_no_gap(helpers, rounded_off):
    """A table of zeros would say that nothing is over-fitted."""
    every = dict.fromkeys(helpers.COLUMNS, rounded_off)
    known = results(helpers, every)
    assert one_number(known) == [*helpers.COLUMNS]
    assert gap_grid(known) is None and gaps(known) == {}
    assert why_none(known) == "validation and test are one number in every run"
    assert set(in_csv(known).values()) == {""}


def test_one_such_column_is_named_and_not_shown(helpers):
    known = results(helpers, {"5w5s": 0.0})
    grid = gap_grid(known)
    assert grid.groups == [("", 1), ("5-way 1-shot", 1)]
    said = "Not here, as validation and test are one number in every run: 5-way 5-shot."
    assert told(grid)[1:] == [said]


def test_a_row_that_trains_on_its_validation_examples_is_named_and_not_shown(helpers):
    """Without validation images of its own, "valid" is what the row has been trained on."""
    rows = [
        {"id": "map", "method": "fixed", "label": "MAP", "set": {"task": {"validation": 0.0}}},
        {"id": "ift", "method": "ift", "label": "IFT"},
    ]
    columns = [{"id": "5w1s", "task": "layerwise_prior"}]
    known = results(helpers, rows=rows, columns=columns, paper=[], paper_rows=[], floor="")
    assert known.table_cells["map", "5w1s"].done
    assert fitted(known) == {("ift", "5w1s")}
    grid = gap_grid(known)
    assert [row[0].text for row in grid.rows] == ["IFT"]
    assert "A row that learns nothing" not in told(grid)[0]
    said = "Not here, as they have no validation examples of their own: MAP."
    assert told(grid)[1:] == [said]
    assert in_csv(known)["map", "5w1s"] == ""


def test_a_row_that_learns_nothing_is_what_the_others_are_held_against(helpers):
    rows = [{"id": "none", "method": "fixed"}, {"id": "ift", "method": "ift"}]
    grid = gap_grid(results(helpers, rows=rows, paper=[], paper_rows=[]))
    assert "A row that learns nothing shows how far" in told(grid)[0]


def test_runs_without_the_metric_on_validation_examples_are_told(helpers):
    suite, store = helpers.make_suite(), helpers.Fake()
    for place in suite.cells("laptop"):
        store.add(place, metrics={"test": {"accuracy": Estimate(0.5, 600, 0.1, 0.01)}})
    known = collect(suite, "laptop", store, why_not=helpers.allowed)
    assert gap_grid(known) is None and "on both splits" in why_none(known)


def test_nothing_is_said_where_nothing_is_finished_or_nothing_learns(helpers):
    suite = helpers.make_suite(columns=[{"id": "5w1s", "task": "quadratic"}], paper=[])
    store = helpers.Fake()
    assert why_none(collect(suite, "laptop", store, why_not=helpers.allowed)) == ""
    for place in suite.cells("laptop"):
        store.add(place, **helpers.failure("failed"))
    assert why_none(collect(suite, "laptop", store, why_not=helpers.allowed)) == ""
    rows = [{"id": "none", "method": "fixed"}]
    assert why_none(results(helpers, rows=rows, paper=[], paper_rows=[])) == ""
