"""FC100: CIFAR-100 as few-shot episodes, no superclass in two splits: 60 / 20 / 20 classes.

Oreshkin, Rodriguez, Lacoste: TADAM, NeurIPS 2018. Harder than CIFAR-FS, whose test classes have
relatives among the training classes. Images of 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.registry import tasks

from . import _cifar100 as cifar
from ._fewshot import Classes
from ._photographs import Photographs


@tasks.register("fc100")
@dataclass(frozen=True)
class FC100(Photographs):
    """FC100, 32x32 photographs, 60 / 20 / 20 classes of CIFAR-100 by superclass, N-way K-shot."""

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
        return Classes(cifar.images(self.source, cifar.FC100, split))
