import pytest

from metabench.analysis.overfitting import fitted_columns, gap
from metabench.analysis.results import collect
from metabench.reports.tables.overfitting import gap_grid
from metabench.store.record import Estimate


def results(helpers, **changes):
    """Validation beats the test by 0.1, 0.2, 0.3 in seeds 0 to 2; ANIL has no validation metric."""
    suite = helpers.make_suite(**changes)
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        better = 0.1 * (1 + place.cell.seed)
        metrics = {"test": {"accuracy": Estimate(0.5, 600, 0.1, 0.01)}}
        if place.row != "anil":
            metrics["valid"] = {"accuracy": Estimate(0.5 + better, 600, 0.1, 0.01)}
        store.add(place, metrics=metrics)
    return collect(suite, "laptop", store, why_not=helpers.allowed)


def test_the_gap_is_over_seeds(helpers):
    known = results(helpers)
    assert fitted_columns(known) == ["5w1s", "5w5s"]  # the task ridge learns on its valid split
    mean, pm = gap(known, "maml", "5w1s")
    assert mean == pytest.approx(0.2)
    assert pm == pytest.approx(4.30265273 * 0.1 / 3**0.5)
    assert gap(known, "anil", "5w1s") is None


def test_the_table_is_in_the_tables_unit_and_has_a_place_for_every_row(helpers):
    grid = gap_grid(results(helpers))
    assert [row[1].text for row in grid.rows][:3] == ["20.0 ± 24.8", "20.0 ± 24.8", "—"]
    assert "far above 0" in grid.footnotes[0].text
    assert "far below 0" in gap_grid(results(helpers, goal="min", percent=False)).footnotes[0].text


def test_a_task_whose_outer_level_sees_no_validation_example_has_no_gap(helpers):
    columns = [{"id": "5w1s", "task": "quadratic"}]
    known = results(helpers, columns=columns, paper=[], paper_rows=[])
    assert fitted_columns(known) == []
    assert gap_grid(known) is None


def test_a_table_of_the_validation_split_has_no_gap(helpers):
    assert gap_grid(results(helpers, evaluation="valid", floor="")) is None
