"""Pictures of any mode as 8 bits a channel; what is wrong with one is told with its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from metabench.core.errors import MetabenchError


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Turn whatever a damaged picture raises inside into a MetabenchError that names it."""
    try:
        yield
    except Exception as error:  # of each format's reader: anything
        said = str(error) or type(error).__name__
        raise MetabenchError(f"{what} cannot be read as an image ({said})") from error


def read(path: Path, mode: str) -> Image.Image:
    """The picture of a file, by :func:`converted`. Raises MetabenchError."""
    with readable(path), Image.open(path) as picture:
        return converted(picture, mode)


def converted(picture: Image.Image, mode: str) -> Image.Image:
    """A picture in ``mode`` ("L", "RGB"). Of 16 bits the upper 8 are kept: Pillow would cut every
    larger value to white. Raises ValueError for numbers of no known range."""
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PNG"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {picture.mode}), not 8 or 16 bits")
    return picture.convert(mode)
