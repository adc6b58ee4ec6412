"""LeNet as in the code of dataset distillation, as a pure function of named parameters.

Wang, Zhu, Torralba, Efros, arXiv 1811.10959: 6 and 16 filters of 5x5, each with ReLU and pooled,
then layers of 120 and 84 ReLU units; Xavier-normal weights, biases of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract.problem import Params


@dataclass(frozen=True)
class LeNet:
    """``image``: channels, height, width; the first convolution pads by 2 pixels.

    Parameters: weight and bias of ``conv0``, ``conv1``, ``layer0``, ``layer1`` and ``head``. Raises
    ValueError for images of less than 12 pixels a side.
    """

    image: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        _, h, w = self.image
        if min(h, w) < 12:
            raise ValueError(f"images of {h}x{w} pixels are too small for network lenet: 12 a side")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's weight."""
        c, h, w = self.image
        flat = 16 * ((h // 2 - 4) // 2) * ((w // 2 - 4) // 2)
        return {
            "conv0": (6, c, 5, 5), "conv1": (16, 6, 5, 5),
            "layer0": (120, flat), "layer1": (84, 120), "head": (self.classes, 84),
        }  # fmt: skip

    def draw(self, gen: torch.Generator) -> Params:
        """First parameters, float64."""
        out = {}
        for name, shape in self.shapes.items():
            weight = torch.zeros(shape, dtype=torch.float64)
            out[f"{name}.weight"] = nn.init.xavier_normal_(weight, generator=gen)
            out[f"{name}.bias"] = torch.zeros(shape[0], dtype=torch.float64)
        return out

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, classes] of images [n, channels, height, width]."""
        for name, padding in (("conv0", 2), ("conv1", 0)):
            x = F.conv2d(x, theta[f"{name}.weight"], theta[f"{name}.bias"], padding=padding)
            x = F.max_pool2d(x.relu(), 2)
        x = x.flatten(1)
        for name in ("layer0", "layer1"):
            x = F.linear(x, theta[f"{name}.weight"], theta[f"{name}.bias"]).relu()
        return F.linear(x, theta["head.weight"], theta["head.bias"])
