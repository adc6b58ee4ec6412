import io
from dataclasses import replace

import pytest
from PIL import Image, ImageColor

from metabench.reports.figures.plots import Figures
from metabench.reports.figures.small import _png, small_figure
from metabench.reports.figures.style import COLOURS, finish, look_of, panels, styled


def test_colours_of_lines_survive():
    with styled():
        figure, (axis,) = panels(["all rows"])
        for n in range(len(COLOURS)):
            axis.plot([0, 1], [n, n + 0.3], **look_of(n))
            axis.fill_between([0, 1], [n - 1, n], [n + 1, n + 2], color=COLOURS[n], alpha=0.15)
        finish(figure, [])
    image = Image.open(io.BytesIO(_png(figure, 100))).convert("RGB")
    found = {colour for _, colour in image.getcolors()}
    assert {ImageColor.getrgb(c) for c in ("#FFFFFF", *COLOURS)} <= found


def stretched(full, steps, price):
    """These results where one row takes so many times as many ``steps``, each of which costs
    ``price`` times as much."""
    results, store = full
    longer = {r.key for r in results.table_cells["maml", "5w1s"].done}

    class Stretched:
        def curve(self, record):
            found = store.curve(record)
            if record.key not in longer:
                return found
            costs = {n: [steps * price * v for v in found[n]] for n in found if "cost/" in n}
            return found | costs | {"step": [steps * v for v in found["step"]]}

    return replace(results, suite=replace(results.suite, plots=[])), Stretched()


@pytest.mark.parametrize(
    ("steps", "price", "by_cost"),
    [
        (20, 1 / 20, True),
        # All steps are as dear.
        (20, 1, False),
        # Rows take as many steps: these are what they have in common.
        (1, 20, False),
    ],
)
def test_rows_whose_steps_differ_in_cost_are_drawn_against_cost(full, steps, price, by_cost):
    results, store = stretched(full, steps, price)
    known = Figures(results, store)
    assert known.by_cost == by_cost
    wanted = known.of(["cost"], "derivatives") if by_cost else known.of(["learning"], "")
    (figure,) = wanted.values()
    assert small_figure(results, store) == _png(figure, 150)
    assert figure.axes[0].get_xscale() == ("log" if by_cost or steps > 1 else "linear")
    # What a suite asks for is drawn.
    asks = replace(results, suite=replace(results.suite, plots=["learning"]))
    assert not Figures(asks, store).by_cost


def test_a_companion_with_the_same_curves_has_no_figure(full):
    results, store = full

    class Both:
        def __init__(self, more):
            self.more = more

        def curve(self, record):
            found = store.curve(record)
            return found | {"valid/other": [v + self.more for v in found["valid/accuracy"]]}

    companion = replace(results, suite=replace(results.suite, extended_metric="other"))
    assert small_figure(companion, Both(0.0)) is None
    assert small_figure(companion, Both(0.1)) is not None
    assert small_figure(results, Both(0.0)) is not None
    # A profile is of test values, which have no curve.
    profile = replace(companion, suite=replace(companion.suite, plots=["profile"]))
    assert small_figure(profile, Both(0.0)) is not None
