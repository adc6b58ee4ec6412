"""Caltech-101 as few-shot episodes: 64x64 photographs, 64 / 16 / 20 classes of 30 images.

Fei-Fei, Fergus, Perona 2004. The class split is this project's own, and so are size and choice of
images: no paper reports this data, and its numbers are not to be held beside miniImageNet's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.core.registry import task
from metabench.datasets import locate

from .data.formats import arrays
from .families.episodes.photographs import Photographs
from .families.images.class_images import Classes

SPLITS = {"train": 64, "valid": 16, "test": 20}
IMAGES, SIZE = 30, 64


@task("caltech101_fs")
@dataclass(frozen=True)
class Caltech101FS(Photographs):
    """Caltech-101, 64x64 photographs, 64 / 16 / 20 classes of 30 images, N-way K-shot."""

    data: ClassVar[tuple[str, ...]] = ("caltech101_fs",)
    images_per_class: ClassVar[int] = IMAGES

    def classes(self, split: str) -> Classes:
        """uint8 [classes, 30, 3, 64, 64]."""
        images, parts = _read(locate.find("caltech101_fs").resolve())
        return Classes(images[parts == list(SPLITS).index(split)])


@lru_cache(maxsize=1)
def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """All images, uint8 [100, 30, 3, 64, 64], and the part of each class [100].

    Raises MetabenchError where the file is damaged or another.
    """
    path = folder / "caltech101_fs64.npz"
    look = "look with: metabench data verify caltech101_fs"
    with arrays.readable(path, "caltech101_fs"):
        images, parts = arrays.read(path, "images", "split")
    counts = [int((parts == number).sum()) for number in range(len(SPLITS))]
    shape = (sum(SPLITS.values()), IMAGES, SIZE, SIZE, 3)
    if images.shape != shape or images.dtype != np.uint8 or counts != [*SPLITS.values()]:
        raise MetabenchError(
            f"{path} holds {images.dtype} {list(images.shape)} in parts of {counts} classes, "
            f"not uint8 {list(shape)} in parts of {[*SPLITS.values()]}; {look}"
        )
    return torch.from_numpy(images.transpose(0, 1, 4, 2, 3).copy()), torch.from_numpy(parts.copy())
