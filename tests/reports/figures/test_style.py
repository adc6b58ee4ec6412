from itertools import pairwise

import pytest

from metabench.analysis.results import collect
from metabench.reports.figures.style import (
    COLOURS,
    axis_label,
    empty,
    finish,
    look_of,
    panels,
    save,
    styled,
)


def boxes(axis):
    """Boxes in pixels of the labels along an axis, in order."""
    shown = [t for t in axis.get_ticklabels(which="both") if t.get_text() and t.get_visible()]
    return [t.get_window_extent() for t in shown]


@pytest.mark.parametrize(
    "limits",
    [
        (2, 9),
        (300, 800),
        (1, 50),
        (8, 120),
        (1e-12, 1),
        (1000, 1300),
        (4000, 170000),
        (1.2e-5, 9e-4),
        (1.2e-5, 7e-5),
        (1.1e5, 9.9e6),
        (0.11, 9),
    ],
)
def test_labels_of_logarithmic_axes_never_touch(limits):
    with styled():
        figure, axes = panels(["a", "b"])
        for axis in axes:
            axis.plot(limits, limits)
            axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
        finish(figure, [])
        for axis in axes:
            for along, low, high in ((axis.xaxis, "x0", "x1"), (axis.yaxis, "y0", "y1")):
                inside = sorted(boxes(along), key=lambda box: getattr(box, low))
                assert len(inside) >= 2, limits
                for a, b in pairwise(inside):
                    assert getattr(a, high) < getattr(b, low), limits


def test_rows_differ_in_colour_marker_and_stroke():
    looks = [tuple(look_of(n).values()) for n in range(196)]
    assert len(set(looks)) == 196
    for n in range(7):  # of one colour
        assert look_of(n)["marker"] != look_of(n + 7)["marker"]
        assert look_of(n)["linestyle"] != look_of(n + 7)["linestyle"]


@pytest.mark.parametrize(("n", "across"), [(1, 1), (2, 2), (3, 3), (4, 2), (9, 3), (6, 2)])
def test_panels_fill_their_row(n, across):
    _, axes = panels([str(i) for i in range(n)])
    assert axes[0].get_subplotspec().get_gridspec().ncols == across


@pytest.mark.parametrize("n", [3, 12])
def test_legend_and_footnotes_stay_inside(n):
    with styled():
        figure, (axis, _) = panels(["a long title of a panel " * 4, "b"])
        handles = {f"row {i} with a rather long name": axis.plot([0, 1])[0] for i in range(n)}
        finish(figure, ["W" * 30 + " words of a long caption" * 20], handles)
        (legend,) = figure.legends
        for box in (legend.get_window_extent(), figure._supxlabel.get_window_extent()):
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
            assert box.y0 >= 0 and box.y1 <= figure.bbox.y1 + 1
        assert (legend.get_window_extent().x0 > axis.bbox.x1) == (n > 8)


def test_the_reason_of_an_empty_figure_stays_inside():
    with styled():
        figure = empty("a title", "W" * 90 + " words of a long reason" * 20)
        figure.draw_without_rendering()
        (axis,) = figure.axes
        (text,) = axis.texts
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert box.y0 >= 0 and box.y1 <= axis.title.get_window_extent().y0


def test_the_palette_is_one_of_seven():
    assert len(set(COLOURS)) == 7


@pytest.mark.parametrize(
    ("metric", "split", "label"),
    [
        ("accuracy", "validation", "validation accuracy, %"),
        ("valid_accuracy", "validation", "validation accuracy, %"),
        ("valid_accuracy", "test", "test valid accuracy, %"),
    ],
)
def test_an_axis_names_its_split_once(helpers, metric, split, label):
    suite = helpers.make_suite(metric=metric)
    results = collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)
    assert axis_label(results, split) == label


def test_a_file_is_one_drawing(tmp_path, monkeypatch):
    with styled():
        figure, (axis,) = panels(["one"])
        axis.plot([1, 2], [3, 4])
        finish(figure, ["a note"])
        drawn = []
        real = type(figure).draw
        monkeypatch.setattr(type(figure), "draw", lambda *given: drawn.append(1) or real(*given))
        save(figure, tmp_path / "one.png")
        save(figure, tmp_path / "one.pdf")
    assert len(drawn) == 2
