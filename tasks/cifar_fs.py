"""CIFAR-FS: CIFAR-100 as few-shot episodes, 64 / 16 / 20 classes drawn at random.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR
2019. Images of 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.registry import tasks

from . import _cifar100 as cifar
from ._fewshot import Classes
from ._photographs import Photographs


@tasks.register("cifar_fs")
@dataclass(frozen=True)
class CifarFS(Photographs):
    """CIFAR-FS, 32x32 photographs, 64 / 16 / 20 classes of CIFAR-100, N-way K-shot."""

    source: cifar.Source = "torchvision"
    """All 600 images of a class, or the 160 that the layout "metabench" has of each. Results of
    the two are not comparable, so nothing is chosen unasked."""

    data: ClassVar[tuple[str, ...]] = ("cifar100",)

    @property
    def images_per_class(self) -> int:
        """Depends on the layout."""
        return cifar.IMAGES[self.source]

    def classes(self, split: str) -> Classes:
        """uint8 [classes, images, 3, 32, 32]."""
        return Classes(cifar.images(self.source, cifar.CIFAR_FS, split))
