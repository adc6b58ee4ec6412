"""The .npz files that data sets come in; what damage does to them is told in words."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from metabench.core.errors import MetabenchError


def read(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of a file by their names. What a damaged file raises is for :func:`readable`."""
    # numpy leaves a file open that it has opened itself and cannot read.
    with path.open("rb") as whole, np.load(whole) as file:
        return [file[name] for name in names]


@contextmanager
def readable(path: Path, dataset: str) -> Iterator[None]:
    """Turn whatever damaged files raise inside into a MetabenchError with the command to look."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MetabenchError(
            f"{path} cannot be read ({error}); look with: metabench data verify {dataset}"
        ) from error
