"""Few-shot tasks on the classes of CIFAR-100, which differ in the split alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...data import cifar100 as cifar
from ..images.class_images import Classes
from .photographs import Photographs


@dataclass(frozen=True)
class Cifar100(Photographs):
    """32x32 photographs of the classes that ``split`` gives to each part."""

    source: cifar.Source = "torchvision"
    """All 600 images of a class, or the 160 that the layout "metabench" has of each. Results of
    the two are not comparable, so nothing is chosen unasked."""

    data: ClassVar[tuple[str, ...]] = ("cifar100",)
    split: ClassVar[dict[str, list[str]]]

    @property
    def images_per_class(self) -> int:
        """Depends on the layout."""
        return cifar.IMAGES[self.source]

    def classes(self, split: str) -> Classes:
        """uint8 [classes, images, 3, 32, 32]."""
        return Classes(cifar.images(self.source, self.split, split))
