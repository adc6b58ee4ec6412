import math

import numpy as np
import pytest

from metabench.analysis.curves import line
from metabench.analysis.results import collect
from metabench.core.errors import NotDrawn
from metabench.reports.figures import plots, tracks
from metabench.reports.figures.small import small_figure
from metabench.reports.pages import html_report


def drawn(helpers, values, seeds=3, monkeypatch=None):
    """The first panel of learning curves of three rows, and the text below; ``values(row, seed)``
    are the metric at each step."""
    rows = [
        {"id": f"r{i}", "method": "bilevel", "set": {"method": {"inner_steps": 10 + i}}}
        for i in range(3)
    ]
    suite = helpers.make_suite(
        rows=rows, paper=[], paper_rows=[], columns=[{"id": "one", "task": "ridge"}]
    )
    store = helpers.fill(suite, "laptop")
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    object.__setattr__(results.suite, "percent", False)
    for i, row in enumerate(results.rows):
        for s, record in enumerate(results.table_cells[row.id, "one"].done):
            curve = store.curve(record)
            curve[f"valid/{results.suite.metric}"] = [
                values(i, s, k) for k in range(len(curve["step"]))
            ]
    figure = plots.figures(results, store, ["learning"])["learning"]
    return figure.axes[0], " ".join(figure._supxlabel.get_text().split())


def test_a_band_on_a_logarithmic_axis_stays_above_the_bottom(helpers):
    """The t-interval of 1, 2 and 4 reaches below 0; that of their logarithms does not."""
    axis, text = drawn(helpers, lambda i, s, k: 2.0**s * 10.0 ** -(i + 1) * 10.0**-k)
    assert axis.get_yscale() == "log"
    lows = [path.vertices[:, 1].min() for band in axis.collections for path in band.get_paths()]
    assert len(lows) == 3 and min(lows) > 0
    assert "geometric" in text and "of logarithms" in text
    curves = [{"step": [0], "y": [v]} for v in (1.0, 2.0, 4.0)]
    found = line(curves, "y", spread="logarithms")
    half = 4.302652729911275 * math.log(2.0) / math.sqrt(3)
    assert found.y[0] == pytest.approx(2.0)
    assert found.high[0] / found.y[0] == pytest.approx(math.exp(half))


def test_seeds_far_apart_are_thin_lines_and_no_band(helpers):
    axis, text = drawn(helpers, lambda i, s, k: 1.0 + i + 10.0 * s + 0.1 * k)
    assert not axis.collections
    assert len([found for found in axis.lines if found.get_linewidth() < 1]) == 9
    assert "single seeds" in text and "shade" not in text


def test_seeds_too_many_and_far_apart_have_a_bar_at_the_end(helpers, monkeypatch):
    """Of 9 seeds where 8 may be drawn: the means, and the t-interval of each last point."""
    monkeypatch.setattr(tracks, "MOST_SEEDS", 8)
    axis, text = drawn(helpers, lambda i, s, k: 1.0 + i + 10.0 * s + 0.1 * k)
    bars = [found for found in axis.lines if found.get_linestyle() == "-" and not _moves(found)]
    assert len(axis.lines) == 6 and len(bars) == 3 and not axis.collections
    half = 4.302652729911275 * 10.0 / math.sqrt(3)
    for bar, mean in zip(bars, (found for found in axis.lines if _moves(found)), strict=True):
        middle = mean.get_ydata()[-1]
        assert bar.get_ydata() == pytest.approx([max(0.0, middle - half), middle + half])
        assert set(bar.get_xdata()) == {mean.get_xdata()[-1]}
    # Beside each other, within the panel.
    axis.figure.canvas.draw()
    places = [float(bar.get_window_extent().x0) for bar in bars]
    assert places == sorted(set(places)) and places[-1] < axis.get_window_extent().x1
    bottom, top = axis.get_ylim()
    assert all(bottom < y < top for bar in bars for y in bar.get_ydata())
    assert "bars at the end: 95 % t-interval of the last point" in text and "thin" not in text


def _moves(found):
    return len(set(found.get_xdata())) > 1


def test_curves_that_are_all_one_value_are_not_drawn(helpers):
    with pytest.raises(NotDrawn, match="against outer steps: all values are equal"):
        drawn(helpers, lambda i, s, k: 0.0)
    # One seed that differs is something to see, and so is one row.
    assert drawn(helpers, lambda i, s, k: float(s == i == k == 2))
    assert drawn(helpers, lambda i, s, k: float(i == 1))


def test_runs_that_are_looked_at_once_have_no_curve(helpers):
    """Two numbers, joined by a straight line, are no course of training."""
    with pytest.raises(NotDrawn, match="no run is looked at more than once on its way"):
        drawn(helpers, lambda i, s, k: i + 0.3 * k if k < 2 else None)
    # A third point of two rows is one; that of one beside two strokes is not.
    assert drawn(helpers, lambda i, s, k: i + 0.3 * k if k < 2 + (i < 2) else None)
    with pytest.raises(NotDrawn, match="most runs are looked at no more than once"):
        drawn(helpers, lambda i, s, k: i + 0.3 * k if k < 2 + (i == 1) else None)


def test_a_difference_of_two_splits_has_no_curve_on_one(helpers, full):
    suite = helpers.make_suite(gap=True)
    results = collect(suite, "laptop", full[1], why_not=helpers.allowed)
    for kind in ("learning", "cost"):
        with pytest.raises(NotDrawn, match="'accuracy' is a difference of two splits"):
            plots.figures(results, full[1], [kind])
    assert small_figure(results, full[1]) is None
    report = html_report.render(results, full[1])
    assert "Learning curves" not in report


def test_finished_runs_without_the_metric_have_no_curve(helpers, suite):
    store = helpers.fill(suite, "smoke")
    for curve in store.curves.values():
        del curve["valid/accuracy"]
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    with pytest.raises(NotDrawn, match="no finished run has 'accuracy' in its learning curve"):
        plots.figures(results, store, ["learning"])


def test_rows_that_coincide_are_named(helpers):
    _, text = drawn(helpers, lambda i, s, k: (5.0 if i == 2 else 1.0) + 0.3 * k + 0.01 * s)
    assert "Lines that coincide: r0 and r1 (all along)." in text


def test_no_row_is_said_to_coincide_where_each_is_seen(helpers):
    _, text = drawn(helpers, lambda i, s, k: i + 0.3 * k + 0.01 * s)
    assert "coincide" not in text


def test_a_value_of_0_is_at_the_bottom_and_said(helpers):
    axis, text = drawn(helpers, lambda i, s, k: (10.0**-k) * (i != 1 or k == 0))
    assert axis.get_yscale() == "log"
    assert np.isfinite([v for found in axis.lines for v in found.get_ydata()]).all()
    assert "0 or less are drawn at the bottom" in text


def test_no_interval_of_a_metric_without_negative_values_reaches_below_0(helpers):
    """Seeds at 0, 0 and 0.4 have a t-interval of 0.13 +- 0.57."""

    def ends(lowest):
        values = 9.0, 6.0, 4.0, lowest
        axis, _ = drawn(
            helpers, lambda i, s, k: 0.4 * (s == 2) if i else values[min(k, len(values) - 1)]
        )
        paths = [path for band in axis.collections for path in band.get_paths()]
        return [path.vertices[:, 1].min() for path in paths]

    assert min(ends(3.0)) == 0.0
    # One negative value, and intervals may.
    assert sum(end < -0.4 for end in ends(-3.0)) == 3


def two_panels(helpers, values, goal):
    """Learning curves of three rows on two columns; ``values(column, row, seed)`` at a step."""
    rows = [
        {"id": f"r{i}", "method": "bilevel", "set": {"method": {"inner_steps": 10 + i}}}
        for i in range(3)
    ]
    columns = [
        {"id": name, "task": "ridge", "set": {"task": {"rows": 40 + n}}}
        for n, name in enumerate(("one", "two"))
    ]
    suite = helpers.make_suite(rows=rows, paper=[], paper_rows=[], columns=columns)
    store = helpers.fill(suite, "laptop")
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    object.__setattr__(results.suite, "percent", False)
    object.__setattr__(results.suite, "goal", goal)
    for c, column in enumerate(results.columns):
        for i, row in enumerate(results.rows):
            for s, record in enumerate(results.table_cells[row.id, column.id].done):
                curve = store.curve(record)
                curve[f"valid/{results.suite.metric}"] = [
                    values(c, i, s, k) for k in range(len(curve["step"]))
                ]
    return plots.figures(results, store, ["learning"])["learning"]


@pytest.mark.parametrize(
    ("goal", "lowest", "scales"),
    [
        ("min", 1.0, ["log", "log"]),
        # Small values of what is to be large are not what one looks for.
        ("max", 1.0, ["linear", "linear"]),
        # Negative values have no logarithm: each panel for itself.
        ("min", -1.0, ["log", "linear"]),
    ],
)
def test_panels_share_a_logarithmic_axis_where_one_row_hides_the_others(
    helpers, goal, lowest, scales
):
    """In the first panel two of three rows lie at a twentieth of the third."""
    figure = two_panels(
        helpers,
        lambda c, i, s, k: (20.0 if i == c == 0 else lowest if c else 1.0) + 0.1 * k + 0.01 * s,
        goal,
    )
    assert [axis.get_yscale() for axis in figure.axes] == scales


def test_one_crowded_panel_has_bars_in_all(helpers, monkeypatch):
    """By itself the second panel, with one row far apart, would have thin lines."""
    monkeypatch.setattr(tracks, "MOST_SEEDS", 8)
    figure = two_panels(
        helpers, lambda c, i, s, k: 9.0 * i + 0.1 * k + (30.0 * s if i == 0 or not c else 0), "max"
    )
    assert all(found.get_linewidth() > 1 for axis in figure.axes for found in axis.lines)
    assert "bars at the end" in figure._supxlabel.get_text()
    assert "thin" not in figure._supxlabel.get_text()


def test_steps_are_whole_numbers(helpers):
    figure = two_panels(helpers, lambda c, i, s, k: i + 0.1 * k, "max")
    figure.canvas.draw()
    for axis in figure.axes:
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
