"""What the few-shot tasks on colour photographs share: the networks and defaults of their papers.

Finn, Abbeel, Levine, ICML 2017, and the authors' code: four pooled blocks of 32 filters whose maps
are flattened into the head, 15 queries a class, 4 episodes a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from metabench.core.errors import SettingError

from ...models.networks import Network, ResNet12
from .few_shot import FewShot
from .few_shot_settings import Count


@dataclass(frozen=True)
class Photographs(FewShot):
    """Few-shot tasks on colour photographs."""

    queries: Count = 15
    meta_batch: Count = 4
    filters: Count = 32
    """Of the four blocks; in ResNet-12 1, 2.5, 5 and 10 times as many (from 64 in its paper)."""
    downsample: Literal["stride", "pool"] = "pool"
    """Of the four blocks. Pooled maps are flattened into the head, strided ones averaged where lam
    is the initial weights. ResNet-12 pools and averages."""
    network: Literal["conv", "resnet12"] = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network != "conv" and self.formulation == "context":
            raise SettingError(
                'formulation = "context" modulates one of four blocks: network = '
                f'"{self.network}" has none; with network = "conv" there are'
            )

    def network_for(self, channels: int, size: int) -> Network:
        """Four blocks or ResNet-12, for images [n, channels, size, size]."""
        if self.network == "conv":
            return super().network_for(channels, size)
        widths = tuple(self.filters * n // 2 for n in (2, 5, 10, 20))
        return ResNet12(channels, size, self.ways, widths=widths, dtype=getattr(torch, self.dtype))

    @property
    def reduce(self) -> Literal["mean", "flatten"] | None:
        """Flattened for a representation, else as the way of downsampling has it."""
        if self.reduction is not None:
            return self.reduction
        return "flatten" if self.formulation == "representation" else None
