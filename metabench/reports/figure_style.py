"""Style, colours, and panels with a legend above and footnotes below, the same in all figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.analysis.results import Results
from metabench.core import drawing
from metabench.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow."""
MARKERS = "os^DvPX"
STROKES = ("-", "--", ":", "-.")
GREY = "#444444"
PANEL = (3.3, 2.35)
"""Width and height of one panel in inches: a column of a two-column page."""


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures look as ``templates/metabench.mplstyle`` says."""
    mpl = drawing.matplotlib()
    from matplotlib import style as styles

    here = Path(__file__).parent / "templates" / "metabench.mplstyle"
    with mpl.rc_context(), styles.context(["default", here]):
        yield


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: no mathematics, no hidden legend entry."""
    text = printable(text).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def look_of(number: int) -> dict[str, Any]:
    """Colour, marker and stroke of a row, by its number in the suite."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STROKES[number // len(COLOURS) % len(STROKES)],
    }


def panels(titles: Sequence[str], most: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title; :func:`finish` makes room for legend and footnotes."""
    from matplotlib.figure import Figure

    across = min(most, len(titles))
    down = math.ceil(len(titles) / across)
    width = PANEL[0] * max(across, 1.55)
    figure = Figure(figsize=(width, PANEL[1] * down), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)  # type: ignore[union-attr,call-arg]
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(titles))]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(plain(title))
    return figure, axes


def wrapped(footnotes: Sequence[str], width: float) -> list[str]:
    """Footnotes in lines that fit into ``width`` inches."""
    return [part for note in footnotes for part in textwrap.wrap(note, int(width * 20))]


def finish(
    figure: Figure, footnotes: Sequence[str], handles: dict[str, Any] | None = None
) -> Figure:
    """Add the legend above the panels and the footnotes below, and lay everything out."""
    width, height = (float(size) for size in figure.get_size_inches())
    lines = wrapped(footnotes, width)
    if lines:
        figure.supxlabel(plain("\n".join(lines)), fontsize=7, color=GREY, x=0.01, ha="left")
        height += 0.14 * len(lines)
    if handles:
        longest = max(map(len, handles))
        across = min(len(handles), max(1, int(width / (0.45 + 0.064 * longest))))
        height += 0.17 * math.ceil(len(handles) / across)
        figure.legend(
            list(handles.values()),
            [plain(name) for name in handles],
            loc="outside upper left",
            ncols=across,
            columnspacing=1.2,
            handlelength=1.8,
        )
    figure.set_figheight(height)
    # Laid out once: a figure is saved in several formats.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def empty(title: str, why: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure, (axis,) = panels([title])
    axis.set_axis_off()
    figure.set_figheight(1.5)
    text = plain("\n".join(textwrap.wrap(why, 70)))
    axis.text(0.0, 0.9, text, transform=axis.transAxes, va="top", color=GREY)
    return figure


def label_left(axes: Sequence[Axes], label: str) -> None:
    """Name the vertical axis of the panels at the left."""
    for axis in axes[:: min(2, len(axes))]:
        axis.set_ylabel(label)


def scale_of(results: Results) -> float:
    """The factor by which values of the table's metric are shown."""
    return 100.0 if results.suite.percent else 1.0


def axis_label(results: Results, split: str) -> str:
    """The name of an axis of the table's metric."""
    return f"{split} {results.suite.metric.replace('_', ' ')}" + (
        ", %" if results.suite.percent else ""
    )
