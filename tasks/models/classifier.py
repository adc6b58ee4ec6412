"""Three small classifiers of images, as pure functions of named parameters."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract.problem import Params

Kind = Literal["linear", "mlp", "cnn"]
PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Classifier:
    """Linear; one hidden ReLU layer of ``width``; or two 3x3 convolutions of ``width`` and twice
    that, each pooled, with ReLU. ``image``: channels, height, width.

    Parameters: weight and bias of ``layer0``, ``layer1`` (as far as there are) and ``head``. Raises
    ValueError for images too small to be pooled twice.
    """

    kind: Kind
    image: tuple[int, int, int]
    width: int
    classes: int

    def __post_init__(self) -> None:
        _, h, w = self.image
        if self.kind == "cnn" and min(h, w) < 4:
            raise ValueError(f"images of {h}x{w} pixels cannot be pooled twice: take network mlp")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's weight."""
        (c, h, w), n = self.image, self.width
        if self.kind == "linear":
            return {"head": (self.classes, c * h * w)}
        if self.kind == "mlp":
            return {"layer0": (n, c * h * w), "head": (self.classes, n)}
        flat = 2 * n * (h // 4) * (w // 4)
        return {"layer0": (n, c, 3, 3), "layer1": (2 * n, n, 3, 3), "head": (self.classes, flat)}

    @property
    def names(self) -> list[str]:
        """Of all parameters."""
        return [f"{name}.{part}" for name in self.shapes for part in PARTS]

    def draw(self, gen: torch.Generator) -> Params:
        """First parameters, float64: uniform within 1 / sqrt(inputs)."""
        out = {}
        for name, shape in self.shapes.items():
            for part, of in zip(PARTS, (shape, shape[:1]), strict=True):
                draw = 2 * torch.rand(of, generator=gen, dtype=torch.float64) - 1
                out[f"{name}.{part}"] = draw * math.prod(shape[1:]) ** -0.5
        return out

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, classes] of images [n, channels, height, width]."""
        for name, shape in self.shapes.items():
            w, b = theta[f"{name}.weight"], theta[f"{name}.bias"]
            if len(shape) == 4:
                x = F.max_pool2d(F.conv2d(x, w, b, padding=1), 2).relu()
            else:
                x = F.linear(x.flatten(1), w, b)
                x = x if name == "head" else x.relu()
        return x


def layered(
    inputs: int, hidden: int | None, squash: nn.Module, classes: int, like: Tensor
) -> nn.Sequential:
    """A linear ``head``, after a layer ``hidden`` of so many units and ``squash`` where that is
    not None; dtype and device of ``like``."""
    kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    layers = OrderedDict[str, nn.Module]()
    if hidden is not None:
        layers["hidden"], layers["squash"] = nn.Linear(inputs, hidden, **kind), squash
    layers["head"] = nn.Linear(inputs if hidden is None else hidden, classes, **kind)
    return nn.Sequential(layers)


def first_weights(module: nn.Module, gen: torch.Generator) -> Params:
    """Uniform within 1 / sqrt(inputs), as torch's linear layers start; drawn in float64."""
    out: Params = {}
    bound = 1.0
    for name, value in module.named_parameters():
        if name.endswith("weight"):
            bound = value.shape[1] ** -0.5
        first = torch.rand(value.shape, generator=gen, dtype=torch.float64)
        out[name] = (bound * (2 * first - 1)).to(value.device, value.dtype)
    return out
