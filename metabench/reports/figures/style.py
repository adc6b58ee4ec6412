"""Style, colours, and panels with a legend above and footnotes below, the same in all figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.analysis.results import Results
from metabench.core.environment import drawing, garbage
from metabench.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow."""
MARKERS = "os^DvPX"
STROKES = ("-", "--", ":", "-.")
GREY = "#444444"
PANEL = (3.3, 2.35)
"""Width and height of one panel in inches: a column of a two-column page."""

TITLE, LEGEND, FOOTNOTE = 9.0, 8.0, 7.0
"""Sizes of letters in points."""
WIDEST_LETTER = 1.0
"""Of a font, as part of its size."""
HINTED = 1.07
"""Letters on a screen take so much more room than their outlines."""
MOST_ABOVE = 8
"""Entries of a legend above the panels; more stand at the right."""
BESIDE = 2.2
"""Inches of a line of a legend at the right."""


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures look as ``metabench.mplstyle`` says."""
    mpl = drawing.matplotlib()
    from matplotlib import style as styles

    here = Path(__file__).with_name("metabench.mplstyle")
    with garbage.seldom_collected(), mpl.rc_context(), styles.context(["default", here]):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its suffix says, PNG or PDF, the same bytes whenever that is."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    figure.savefig(path, metadata=metadata)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: no mathematics, no hidden legend entry."""
    text = printable(text).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def look_of(number: int) -> dict[str, Any]:
    """Colour, marker and stroke of a row, by its number in the suite; no two of the first 196 rows
    share all three. Rows of one colour differ in marker and stroke."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + 3 * turn) % len(MARKERS)],
        "linestyle": STROKES[turn % len(STROKES)],
    }


def panels(titles: Sequence[str], most: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title; :func:`finish` makes room for legend and footnotes.

    ``most`` in a row, or three where those fill their rows and two do not.
    """
    from matplotlib.figure import Figure

    across = 3 if most == 2 and len(titles) % 6 == 3 else min(most, len(titles))
    down = math.ceil(len(titles) / across)
    width = PANEL[0] * max(across, 1.55)
    figure = Figure(figsize=(width, PANEL[1] * down), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05)  # type: ignore[union-attr,call-arg]
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(titles))]
    for axis, title in zip(axes, titles, strict=True):
        room = width / across - 0.6
        axis.set_title(plain("\n".join(wrapped([title], room, TITLE, weight="bold"))))
    return figure, axes


def wrapped(
    texts: Sequence[str], width: float, size: float = FOOTNOTE, weight: str = "normal"
) -> list[str]:
    """Texts in lines that fit into ``width`` inches at ``size`` points; a word that is longer than
    a line is broken."""
    fits = int(width * 72 / (size * WIDEST_LETTER))
    out = []
    for text in texts:
        line = ""
        for word in (w for long in printable(text).split() for w in textwrap.wrap(long, fits)):
            longer = f"{line} {word}".strip()
            if line and text_width(longer, size, weight) > width:
                out.append(line)
                longer = word
            line = longer
        out.append(line)
    return out


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    drawing.matplotlib()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    return HINTED * float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def finish(
    figure: Figure, footnotes: Sequence[str], handles: dict[str, Any] | None = None
) -> Figure:
    """Add the legend (above the panels; at the right where it has more than ``MOST_ABOVE`` entries)
    and the footnotes below, put ticks of logarithmic axes where labels have room, lay out."""
    for axis in figure.axes:
        for each in (axis.xaxis, axis.yaxis):
            log_ticks(each)
    if handles:
        _add_legend(figure, handles)
    width, height = (float(size) for size in figure.get_size_inches())
    lines = wrapped(footnotes, width - 0.15)
    if lines:
        text = plain("\n".join(lines))
        figure.supxlabel(text, fontsize=FOOTNOTE, color=GREY, x=0.01, ha="left")
        height += 0.14 * len(lines)
    figure.set_figheight(height)
    # Laid out once: a figure is saved in several formats, and with any engine, even one that does
    # nothing, each of them draws it twice.
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)
    return figure


def _add_legend(figure: Figure, handles: dict[str, Any]) -> None:
    """Legend entries, wrapped, and the room that they need."""
    width, height = (float(size) for size in figure.get_size_inches())
    beside = len(handles) > MOST_ABOVE
    room = BESIDE if beside else width - 0.7
    names = [wrapped([name], room, LEGEND) for name in handles]
    longest = max(text_width(line, LEGEND) for name in names for line in name)
    # An entry is its stroke, a space and its text.
    across = 1 if beside else min(len(handles), max(1, int(width / (0.55 + longest))))
    down = sum(map(len, names)) if across == 1 else math.ceil(len(handles) / across)
    if beside:
        figure.set_size_inches(width + longest + 0.6, max(height, 0.17 * down + 0.2))
    else:
        figure.set_figheight(height + 0.17 * down)
    figure.legend(
        list(handles.values()),
        [plain("\n".join(name)) for name in names],
        loc="outside right upper" if beside else "outside upper left",
        ncols=across,
        columnspacing=1.2,
        handlelength=2.6,
    )


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis to base 10 whose labels have room: powers of ten; 1, 2 and 5
    times them where it spans few; even steps within one. No minor tick has a label."""
    from matplotlib.ticker import (
        FuncFormatter,
        LogFormatterMathtext,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )

    if axis.get_scale() != "log" or getattr(axis.get_transform(), "base", 10) != 10:
        return
    axis.set_minor_formatter(NullFormatter())
    low, high = sorted(axis.get_view_interval())
    span = math.log10(high / low)
    if span >= 2:
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(LogFormatterMathtext())
        return
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5), numticks=20) if span > 0.8 else MaxNLocator(4)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def empty(title: str, why: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure, (axis,) = panels([title])
    axis.set_axis_off()
    lines = wrapped([why], float(figure.get_figwidth()) - 0.3, TITLE)
    figure.set_figheight(1.2 + 0.17 * len(lines))
    text = plain("\n".join(lines))
    axis.text(0.0, 0.9, text, transform=axis.transAxes, va="top", color=GREY, fontsize=TITLE)
    return figure


def label_left(axes: Sequence[Axes], label: str) -> None:
    """Name the vertical axis of the panels at the left."""
    lines = "\n".join(wrapped([label], PANEL[1] - 0.4, TITLE))
    for axis in axes:
        if (place := axis.get_subplotspec()) is None or place.is_first_col():
            axis.set_ylabel(lines)


def scale_of(results: Results) -> float:
    """The factor by which values of the table's metric are shown."""
    return 100.0 if results.suite.percent else 1.0


def axis_label(results: Results, split: str) -> str:
    """The name of an axis of the table's metric; one that is called valid_accuracy names its split
    itself."""
    metric = results.suite.metric
    words = metric.removeprefix("valid_") if split == "validation" else metric
    return f"{split} {words.replace('_', ' ')}{', %' if results.suite.percent else ''}"
