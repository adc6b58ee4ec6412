import io

from PIL import Image, ImageColor

from metabench.reports.figures.small import _png
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
