"""The one figure of a suite that is committed: a PNG of few colours, of at most 100 kB.

The colours of rows are in its palette as they are, so that no two of them look alike.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from metabench.analysis.results import Records, Results
from metabench.core.errors import NotDrawn
from metabench.reports.figures.plots import DERIVATIVES_SUM, Figures, kinds_of
from metabench.reports.figures.style import COLOURS, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 100_000
"""Bytes."""
DPI = (150, 125, 100, 85)
"""Tried in turn until the file is small enough; below, text cannot be read."""
PALETTE = 48
"""Colours of the file: those of rows, then those that stand for the rest."""


def small_figure(results: Results, store: Records) -> bytes | None:
    """The first figure of the suite's first kind as PNG; None where there is none, where it is
    larger than ``LARGEST``, and where it is that of the suite which this one extends.

    A suite that asks for no kind has learning curves, or those against cost
    (:attr:`~metabench.reports.figures.plots.Figures.by_cost`).
    """
    known, kind = Figures(results, store), kinds_of(results.suite)[0]
    if kind in ("learning", "cost") and known.repeats():
        return None
    try:
        drawn = known.of(["cost"], DERIVATIVES_SUM) if known.by_cost else known.own(kind)
    except NotDrawn:
        return None
    first = next(iter(drawn.values()), None)
    return None if first is None else small_png(first)


def small_png(figure: Figure) -> bytes | None:
    """A figure as PNG of few colours; None where it is larger than ``LARGEST``."""
    for dpi in DPI:
        data = _png(figure, dpi)
        if len(data) <= LARGEST:
            return data
    return None


def _png(figure: Figure, dpi: int) -> bytes:
    from PIL import Image

    drawn, reduced = io.BytesIO(), io.BytesIO()
    with styled():
        figure.savefig(drawn, format="png", dpi=dpi)
    image = Image.open(drawn).convert("RGB")
    kept = [int(colour[i : i + 2], 16) for colour in ("#FFFFFF", *COLOURS) for i in (1, 3, 5)]
    rest = image.quantize(PALETTE - len(COLOURS) - 1, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(kept + rest)
    image = image.quantize(palette=palette, dither=Image.Dither.NONE)
    image.save(reduced, format="png", optimize=True)
    return reduced.getvalue()
