"""CIFAR-FS: CIFAR-100 as few-shot episodes, 64 / 16 / 20 classes drawn at random.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR
2019. Images of 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.core.registry import task

from .data.cifar100 import CIFAR_FS
from .families.episodes.cifar100_few_shot import Cifar100


@task("cifar_fs")
@dataclass(frozen=True)
class CifarFS(Cifar100):
    """CIFAR-FS, 32x32 photographs, 64 / 16 / 20 classes of CIFAR-100, N-way K-shot."""

    split: ClassVar[dict[str, list[str]]] = CIFAR_FS
