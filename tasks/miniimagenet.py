"""miniImageNet: 100 classes of ImageNet, 600 photographs of each, 84x84, split 64 / 16 / 20.

Vinyals et al. 2016; the split of Ravi, Larochelle, ICLR 2017, which the few-shot papers report on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metabench.core.registry import task

from .data import miniimagenet as mini
from .families.episodes.photographs import Photographs
from .families.images.class_images import Classes


@task("miniimagenet")
@dataclass(frozen=True)
class MiniImageNet(Photographs):
    """miniImageNet, 84x84 photographs, 64 / 16 / 20 classes of Ravi's split, N-way K-shot."""

    source: Literal["auto", "csv", "cache", "category_split", "datasets", "parquet"] = "auto"
    """Where the images are read from: a folder with CSV splits, either kind of pickles, or what
    the package datasets keeps; "auto" takes the first that is there. Classes and images are the
    same; who resized the images, and their order, is not, and so neither are the episodes."""

    data: ClassVar[tuple[str, ...]] = ("miniimagenet",)
    images_per_class: ClassVar[int] = mini.PER_CLASS

    def classes(self, split: str) -> Classes:
        """uint8 [classes, 600, 3, 84, 84]."""
        return Classes(mini.images(None if self.source == "auto" else self.source, split))
