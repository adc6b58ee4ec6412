import math
import tomllib
from dataclasses import replace

import pytest

from metabench.analysis.rankings import normalised
from metabench.analysis.results import collect
from metabench.core.catalogue import suite_folder, suite_names
from metabench.core.errors import NotDrawn, UnknownName
from metabench.reports.figures import plots
from metabench.reports.figures.style import finish
from metabench.reports.pages import html_report
from metabench.store.record import Estimate


def names(figure):
    """Every text of a figure that somebody sees."""
    import matplotlib.text

    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_every_kind_is_drawn_as_png_and_pdf(few, tmp_path):
    paths = plots.draw(*few, out_dir=tmp_path / "new")
    assert [p.name for p in paths[::2]] == [
        "learning.png",
        "cost-inner_gradients.png",
        "trajectories-5w1s.png",
        "trajectories-5w5s.png",
        "profile.png",
    ]
    for path in paths:
        head = path.read_bytes()[:5]
        assert head == (b"\x89PNG\r" if path.suffix == ".png" else b"%PDF-"), path


def test_an_empty_store_says_so_in_every_figure(suite, helpers):
    store = helpers.Fake()
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    made = plots.figures(results, store)
    assert sorted(made) == ["cost-inner_gradients", "learning"]
    for figure in made.values():
        assert "No " in names(figure)


@pytest.mark.slow
def test_all_failed_one_seed_one_column(suite, helpers, tmp_path):
    failed = helpers.Fake()
    for place in suite.cells("smoke"):
        failed.add(place, **helpers.failure("failed"))
    results = collect(suite, "smoke", failed, why_not=helpers.allowed)
    assert "No finished run" in names(plots.figures(results, failed)["learning"])
    one = helpers.make_suite(columns=[{"id": "5w1s", "task": "ridge"}], paper=[], paper_rows=[])
    store = helpers.fill(one, "smoke")
    results = collect(one, "smoke", store, why_not=helpers.allowed)
    assert plots.draw(results, store, out_dir=tmp_path)


def test_no_shade_is_told_of_where_there_is_one_seed(suite, helpers):
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    made = plots.figures(results, store, kinds=["learning", "cost", "trajectories"])
    assert len(made) == 4
    for figure in made.values():
        assert "shade" not in names(figure) and "one finished seed" in names(figure).lower()


def test_what_is_incomplete_is_written_below(holed):
    text = names(plots.figures(*holed, kinds=["learning"])["learning"])
    assert "ANIL (5-way 1-shot: 2 of 3 seeds)" in text
    assert "95 % t-interval over seeds" in text
    assert "No outer learning" in text


def test_below_six_problems_no_ranking_is_drawn(full):
    with pytest.raises(NotDrawn, match="there are 6 on 2"):
        plots.figures(*full, kinds=["ranking"])


@pytest.mark.parametrize("problems", [6, 12])
def test_from_six_problems_on_a_ranking_is_drawn(helpers, problems):
    columns = [
        {"id": f"c{i}", "task": "ridge", "label": f"C{i}", "set": {"task": {"rows": 40 + i}}}
        for i in range(problems)
    ]
    suite = helpers.make_suite(columns=columns, paper=[], paper_rows=[])
    store = helpers.Fake()
    for n, place in enumerate(suite.cells("laptop")):
        found = {"test": {"accuracy": Estimate(math.sin(n) / 2 + 0.5, 600, 0.1, 0.01)}}
        store.add(place, metrics=found)
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    figure = plots.figures(results, store, kinds=["ranking"])["ranking"]
    box = max((t.get_window_extent() for t in figure.axes[0].texts), key=lambda b: b.width)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    text = names(figure)
    assert f"{problems} problems" in text
    assert "critical difference" in text


def test_a_profile_needs_a_row_without_learning(helpers):
    suite = helpers.make_suite(no_learning="")
    results = collect(suite, "laptop", helpers.fill(suite, "laptop"), why_not=helpers.allowed)
    with pytest.raises(NotDrawn, match="set no_learning"):
        plots.figures(results, helpers.Fake(), kinds=["profile"])


def test_the_cost_axis_can_be_chosen(full):
    made = plots.figures(*full, kinds=["cost"], cost="seconds")
    (axis, *_) = made["cost-seconds"].axes
    assert axis.get_xlabel() == "training seconds"
    assert axis.get_xscale() == "log"
    with pytest.raises(UnknownName, match="near: inner_gradients"):
        plots.figures(*full, kinds=["cost"], cost="inner_gradient")


def asking(results, plots, costs):
    """Results of a suite that asks for these figures itself."""
    return replace(results, suite=replace(results.suite, plots=plots, costs=costs))


ASKED = sorted(
    {
        (tuple(head.get("plots", ())), tuple(head["costs"]))
        for name in suite_names()
        if "costs" in (head := tomllib.loads((suite_folder() / f"{name}.toml").read_text("utf-8")))
    }
)


@pytest.mark.parametrize(("kinds", "costs"), ASKED)
def test_what_a_built_in_suite_asks_for_is_drawn(few, kinds, costs):
    results, store = few
    made = plots.figures(asking(results, [*kinds], [*costs]), store)
    taken = {*costs} - {"function_evaluations"} if "cost" in kinds else set()
    assert {f"cost-{cost}" for cost in taken} <= made.keys()


def test_a_cost_of_the_suite_that_no_run_has_is_left_out(few):
    results, store = few
    of_suite = asking(results, ["cost", "frontier"], ["peak_tensor_bytes", "derivatives"])
    assert list(plots.figures(of_suite, store)) == ["cost-derivatives", "frontier-derivatives"]
    assert list(plots.figures(of_suite, store, ["frontier"])) == ["frontier-derivatives"]
    with pytest.raises(UnknownName, match="no cost called 'peak_tensor_bytes'"):
        plots.figures(of_suite, store, ["frontier"], cost="peak_tensor_bytes")
    nothing = asking(results, ["cost"], ["peak_tensor_bytes"])
    assert plots.figures(nothing, store) == {}
    with pytest.raises(NotDrawn, match="no run has 'peak_tensor_bytes'"):
        plots.figures(nothing, store, ["cost"])


def test_the_derivatives_of_a_curve_are_summed(few):
    results, store = few
    (axis, *_) = plots.figures(results, store, ["cost"], "derivatives")["cost-derivatives"].axes
    assert axis.get_xlabel() == "gradients and products in all"
    curves = [store.curve(record) for record in results.table_cells["maml", "5w1s"].done]
    names = ("inner_gradients", "outer_gradients", "hvps", "mixed_products")
    last = sum(curves[0][f"cost/{n}"][-1] for n in names)
    assert last in {x for found in axis.lines for x in found.get_xdata()}


def test_steps_are_logarithmic_where_one_row_takes_many_times_as_many(full):
    results, store = full
    assert plots.figures(results, store, ["learning"])["learning"].axes[0].get_xscale() == "linear"
    longer = {r.key for r in results.table_cells["maml", "5w1s"].done}

    class Stretched:
        def curve(self, record):
            found = store.curve(record)
            times = 10 if record.key in longer else 1
            return found | {"step": [times * step for step in found["step"]]}

    figure = plots.figures(results, Stretched(), ["learning"])["learning"]
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}


def test_a_row_that_is_looked_at_once_is_a_point_on_a_logarithmic_axis(full):
    """It was trained: a level line would say that it was not."""
    results, store = full
    once = {r.key for r in results.table_cells["maml", "5w1s"].done}

    class Once:
        def curve(self, record):
            found = store.curve(record)
            if record.key not in once:
                return found | {"step": [100 * step for step in found["step"]]}
            return {name: values[:1] + values[-1:] for name, values in found.items()} | {
                "step": [0, 3]
            }

    figure = plots.figures(results, Once(), ["learning"])["learning"]
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    (point,) = [found for found in axis.lines if list(found.get_xdata()) == [3]]
    assert point.get_marker() not in ("", "None")
    assert "Dashed level lines: MAML" not in names(figure)


def test_an_unknown_cost_is_refused_where_nothing_has_run_too(suite, helpers):
    results = collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)
    with pytest.raises(UnknownName, match="near: seconds"):
        plots.figures(results, helpers.Fake(), kinds=["cost"], cost="secnds")


def test_an_unknown_kind_names_the_near_one(full):
    with pytest.raises(UnknownName, match="near: learning"):
        plots.figures(*full, kinds=["learnin"])


def test_curves_are_the_validation_metric_of_finished_runs(full):
    results, store = full
    figure = plots.figures(results, store, ["learning"])["learning"]
    axis = figure.axes[0]
    curves = [store.curve(r) for r in results.table_cells["maml", "5w1s"].done]
    expected = [
        100 * sum(c["valid/accuracy"][i] for c in curves) / 3 for i in range(len(curves[0]["step"]))
    ]
    assert list(axis.lines[0].get_ydata()) == pytest.approx(expected)
    low, high = axis.get_ylim()
    assert 0 < low < 30
    assert 99 < high < 106


def test_a_large_lam_is_drawn_by_its_parts_that_move_most(suite, helpers):
    store = helpers.fill(suite, "laptop")
    for curve in store.curves.values():
        n = len(curve["step"])
        for name in [name for name in curve if name.startswith("lam/")]:
            del curve[name]
        for part in range(14):
            curve[f"lam/w{part}.mean"] = [part * i / 100 + 1 for i in range(n)]
            for what in ("std", "min", "max"):
                curve[f"lam/w{part}.{what}"] = [0.1] * n
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    text = names(plots.figures(results, store, ["trajectories"])["trajectories-5w1s"])
    assert "w13" in text
    assert "w3" not in text.split()
    assert "there are 14 of MAML" in text


@pytest.mark.parametrize(("size", "scale"), [(2.0, "linear"), (1000.0, "symlog")])
def test_a_small_entry_of_lam_is_seen_beside_a_large_one(suite, helpers, size, scale):
    store = helpers.fill(suite, "laptop")
    for curve in store.curves.values():
        for name in [name for name in curve if name.startswith("lam/")]:
            del curve[name]
        curve["lam/rate"] = [0.01 * i for i in range(len(curve["step"]))]
        curve["lam/angle"] = [0.01 * size * i for i in range(len(curve["step"]))]
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    figure = plots.figures(results, store, ["trajectories"])["trajectories-5w1s"]
    axis = figure.axes[0]
    assert axis.get_yscale() == scale
    heights = axis.transAxes.inverted().transform(
        [axis.transData.transform((0, line.get_ydata()[-1])) for line in axis.lines[:2]]
    )[:, 1]
    assert 0.1 < min(heights) < max(heights)  # not on the floor
    assert {"rate", "angle"} <= set(names(figure).split())


def test_long_names_of_parts_lose_what_they_share(suite, helpers):
    store = helpers.fill(suite, "laptop")
    for curve in store.curves.values():
        for name in [name for name in curve if name.startswith("lam/")]:
            del curve[name]
        for i, name in enumerate(("log_precision.layer0", "log_precision.last", "rate")):
            curve[f"lam/{name}"] = [(i + 1) * 0.01 * k for k in range(len(curve["step"]))]
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    text = names(plots.figures(results, store, ["trajectories"])["trajectories-5w1s"])
    assert {"layer0", "last", "rate"} <= set(text.split()) and "…" not in text
    assert "Left out of names: log_precision." in text


def test_names_are_no_mathematics_and_no_hidden_entries(helpers, tmp_path):
    rows = [
        {
            "id": f"r{i}",
            "method": "bilevel",
            "label": label,
            "set": {"method": {"inner_steps": 10 + i}},
        }
        for i, label in enumerate(["$\\frac{1}$ & $x", "_hidden", "a_b % <b>"])
    ]
    columns = [{"id": "5w1s", "task": "ridge"}]
    suite = helpers.make_suite(rows=rows, columns=columns, paper=[], paper_rows=[])
    store = helpers.fill(suite, "laptop")
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    known = plots.Figures(results, store)
    plots.draw(results, store, out_dir=tmp_path, known=known)
    text = names(known.of(["learning"], plots.DEFAULT_COST)["learning"])
    assert "_hidden" in text
    assert "\\$\\frac{1}\\$" in text


def test_the_profile_names_the_interquartile_mean_of_every_method(full):
    results, store = full
    text = names(plots.figures(results, store, ["profile"])["profile"])
    groups = normalised(results).by_row["maml"]
    # Two columns of three seeds: a quarter of six, rounded down, is one from either end.
    runs = sorted(value for group in groups for value in group)
    label = next(row.label for row in results.rows if row.id == "maml")
    assert len(runs) == 6 and f"{label}: {sum(runs[1:-1]) / 4:.3g} [" in text
    assert "bootstrap stratified by column" in " ".join(text.split())


def test_the_axis_of_a_profile_ends_where_scores_do(full):
    results, store = full
    axis = plots.figures(results, store, ["profile"])["profile"].axes[0]
    groups = normalised(results).by_row.values()
    scores = [v for columns in groups for runs in columns for v in runs if v > -0.25]
    room = 0.05 * (max(scores) - min(scores))
    limits = min(scores) - room, min(1.02, max(scores) + room)
    assert axis.get_xlim() == pytest.approx(limits) and axis.get_xlim()[0] > -0.2


def test_one_run_a_column_has_no_bootstrap_interval(suite, helpers):
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    assert [len(group) for group in normalised(results).by_row["maml"]] == [1, 1]
    text = names(plots.figures(results, store, ["profile"])["profile"])
    assert "MAML: " in text and "[" not in text


def test_drawing_leaves_matplotlib_as_it_was(few, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.draw(*few, kinds=["profile"], out_dir=tmp_path)
    assert dict(mpl.rcParams) == before


def test_the_same_results_give_the_same_files(few, tmp_path):
    first = plots.draw(*few, kinds=["profile"], out_dir=tmp_path / "a")
    second = plots.draw(*few, kinds=["profile"], out_dir=tmp_path / "b")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_a_figure_is_made_once_however_many_files_it_goes_to(few, helpers, tmp_path, monkeypatch):
    suite, store = replace(few[0].suite, plots=["learning", "cost", "profile"]), few[1]
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    alone = html_report.render(results, store)
    calls = []
    monkeypatch.setattr(plots, "finish", lambda *given: calls.append(given) or finish(*given))
    figures = plots.Figures(results, store)
    plots.draw(results, store, out_dir=tmp_path, known=figures)
    assert len(calls) == 2  # and the profile, whose module has its own finish
    # What files were written of is what the report shows, to the last sign.
    assert html_report.render(results, store, known=figures) == alone
    assert len(calls) == 3  # the cost in seconds, which no file has
