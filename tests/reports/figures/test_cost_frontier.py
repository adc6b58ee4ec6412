"""Results against cost: points, their cost and order, axes, and what the figure says."""

import pytest

from metabench.analysis.results import collect
from metabench.core.errors import SuiteError, UnknownName
from metabench.reports.figures import cost_frontier, plots
from metabench.reports.pages.html_report import render
from metabench.store.record import Estimate
from metabench.suites.loading import load


@pytest.fixture
def series(helpers):
    """Two lines of three budgets over two columns: error 1 / k for a cost of k, and none."""
    rows = [
        {
            "id": f"{name}{k}",
            "label": f"{name}, {k}",
            "series": name,
            "method": "bilevel",
            "set": {"method": {"inner_steps": k + 1000 * (name == "free")}},
        }
        for name in ("dear", "free")
        for k in (1, 10, 100)
    ]
    suite = helpers.make_suite(
        rows=rows, paper=[], paper_rows=[], floor="", percent=False, metric="error", goal="min",
        plots=["frontier"], costs=["hvps", "derivatives"],
    )  # fmt: skip
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        k = place.cell.method_settings["inner_steps"] % 1000
        dear = place.row.startswith("dear")
        store.add(
            place,
            metrics={"test": {"error": Estimate((1 + place.cell.seed) / k, 1)}},
            cost={"hvps": k if dear else 0, "inner_gradients": 2 * k, "peak_tensor_bytes": 512 * k},
        )
    return collect(suite, "laptop", store, why_not=helpers.allowed), store


def words(figure):
    import matplotlib.text

    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_points_of_a_line(series):
    results, _ = series
    found = cost_frontier.lines(results, "5w1s", "hvps")
    assert list(found) == ["dear", "free"]
    assert found["dear"][1] == pytest.approx((10, 0.2, 0.1, 0.3, 3))
    assert [p.x for p in found["free"]] == [0, 0, 0]
    both = cost_frontier.lines(results, "5w1s", "derivatives")["dear"]
    assert [p.x for p in both] == [3, 30, 300]
    assert cost_frontier.costs_known(results) == [
        "derivatives",
        "hvps",
        "inner_gradients",
        "peak_tensor_bytes",
    ]


def test_axes_and_words(series):
    results, _ = series
    figure = cost_frontier.frontier(results, "hvps")
    axis = figure.axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("symlog", "log")
    assert axis.get_xlim()[0] <= 0
    said = words(figure)
    assert "Hessian products" in said and "dear" in said and "least to the greatest" in said
    assert cost_frontier.frontier(results, "inner_gradients").axes[0].get_xscale() == "log"
    assert axis.get_xlim()[1] > 100
    axis = cost_frontier.frontier(results, "peak_tensor_bytes").axes[0]
    assert axis.xaxis.get_major_formatter()(51200.0, 0) == "50 KiB"


def test_the_suites_own_plots(series, tmp_path):
    results, store = series
    known = plots.Figures(results, store)
    made = plots.figures(results, store, known=known)
    assert sorted(made) == ["frontier-derivatives", "frontier-hvps"]
    paths = plots.draw(results, store, out_dir=tmp_path, cost="peak_tensor_bytes")
    assert [p.name for p in paths] == [
        "frontier-peak_tensor_bytes.png",
        "frontier-peak_tensor_bytes.pdf",
    ]
    with pytest.raises(UnknownName, match="no cost called 'hvp'; near: hvps"):
        plots.figures(results, store, cost="hvp")
    page = render(results, store, known=known)
    assert "Result against cost" in page and "Learning curves" not in page


def test_holes_are_told_of(series, helpers):
    results, store = series
    (place, *_) = [p for p in results.suite.cells("laptop") if p.row == "dear10"]
    store.add(place, **helpers.failure("diverged"))
    results = collect(results.suite, "laptop", store, why_not=helpers.allowed)
    assert "points that lack seeds: 1 of dear." in words(cost_frontier.frontier(results, "hvps"))
    nothing = collect(results.suite, "laptop", helpers.Fake(), why_not=helpers.allowed)
    assert "No run" in words(cost_frontier.frontier(nothing, "hvps"))


def test_unknown_kinds_of_plots_are_refused(helpers):
    with pytest.raises(SuiteError, match="no kind of plot 'frontir'; near: frontier"):
        helpers.make_suite(plots=["frontir"])


def test_every_series_of_the_suite_grows():
    suite = load("hypergradient-fidelity")
    lines: dict[str, list[int]] = {}
    for row in suite.rows:
        lines.setdefault(row.series, []).append(int(row.id.rsplit("-", 1)[1]))
    assert len(lines) >= 12
    for label, budgets in lines.items():
        assert len(budgets) > 3 and budgets == sorted(budgets), label
    for place in suite.cells("laptop"):
        cell = place.cell
        gamma = cell.method_settings.get("gamma_max", 1.0)
        assert cell.method_settings["outer_lr"] == gamma and cell.budget["outer_steps"] == 1
        assert cell.method_settings["outer_solver"] == "sgd"
