"""FC100: CIFAR-100 as few-shot episodes, no superclass in two splits: 60 / 20 / 20 classes.

Oreshkin, Rodriguez, Lacoste: TADAM, NeurIPS 2018. Harder than CIFAR-FS, whose test classes have
relatives among the training classes. Images of 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.core.registry import task

from .data.cifar100 import FC100 as CLASSES
from .families.episodes.cifar100_few_shot import Cifar100


@task("fc100")
@dataclass(frozen=True)
class FC100(Cifar100):
    """FC100, 32x32 photographs, 60 / 20 / 20 classes of CIFAR-100 by superclass, N-way K-shot."""

    split: ClassVar[dict[str, list[str]]] = CLASSES
