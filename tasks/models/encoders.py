"""Encoders as pure functions of named parameters: a multilayer perceptron, a residual network.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, over images or over
signals. Differs: group norm (Wu, He, ECCV 2018) for batch norm, so that an example's features do
not depend on the others; no pooling after the first convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Params

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MLP:
    """Linear layers of these widths, tanh after each."""

    inputs: int
    widths: tuple[int, ...]

    @property
    def feature_size(self) -> int:
        """Width of the last layer."""
        return self.widths[-1]

    def shapes(self) -> Shapes:
        """``layer{i}.weight`` and ``layer{i}.bias`` for i from 0."""
        out: Shapes = {}
        for i, (n, m) in enumerate(zip((self.inputs, *self.widths), self.widths, strict=False)):
            out[f"layer{i}.weight"], out[f"layer{i}.bias"] = (m, n), (m,)
        return out

    def features(self, params: Params, x: Tensor, prefix: str = "") -> Tensor:
        """[n, feature_size] of [n, inputs]; parameters' names have ``prefix`` in front."""
        for i in range(len(self.widths)):
            at = f"{prefix}layer{i}."
            x = F.linear(x, params[at + "weight"], params[at + "bias"]).tanh()
        return x


@dataclass(frozen=True)
class ResNet:
    """A first convolution with stride 2, ``stages`` of ``blocks`` blocks of two convolutions, the
    mean over space; a stage after the first halves the map and doubles the channels."""

    space: Literal[1, 2]
    channels: int
    width: int = 16
    stages: int = 3
    blocks: int = 1
    kernel: int | None = None
    """Width of every convolution, odd; None: 3, and over signals 7 for the first."""

    @property
    def feature_size(self) -> int:
        """Channels of the last stage."""
        return self.width << (self.stages - 1)

    def plan(self) -> list[tuple[str, int, int, int]]:
        """(name, channels in, channels out, stride) of every block."""
        out, before = [], self.width
        for stage in range(self.stages):
            size = self.width * 2**stage
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                out.append((f"stage{stage}.block{block}.", before, size, stride))
                before = size
        return out

    def shapes(self) -> Shapes:
        """``first.*`` and ``stage{i}.block{j}.*``: convolutions without bias, norms' scale and
        shift, a 1-wide ``skip`` where a block changes the map."""
        kernel = (self.kernel or (7 if self.space == 1 else 3),) * self.space
        small, point = (self.kernel or 3,) * self.space, (1,) * self.space
        out: Shapes = {"first.conv": (self.width, self.channels, *kernel)}
        out |= {f"first.{k}": (self.width,) for k in ("scale", "shift")}
        for name, n, m, stride in self.plan():
            out[f"{name}conv1"], out[f"{name}conv2"] = (m, n, *small), (m, m, *small)
            for k in ("scale1", "shift1", "scale2", "shift2"):
                out[name + k] = (m,)
            if stride > 1 or n != m:
                out[f"{name}skip"] = (m, n, *point)
        return out

    def features(self, params: Params, x: Tensor, prefix: str = "") -> Tensor:
        """[n, feature_size] of [n, channels, *size]; parameters' names have ``prefix`` in front."""
        p = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        x = self._conv(x, p["first.conv"], 2)
        x = F.relu(_norm(x, p["first.scale"], p["first.shift"]))
        for name, _, _, stride in self.plan():
            y = self._conv(x, p[f"{name}conv1"], stride)
            y = F.relu(_norm(y, p[f"{name}scale1"], p[f"{name}shift1"]))
            y = _norm(self._conv(y, p[f"{name}conv2"], 1), p[f"{name}scale2"], p[f"{name}shift2"])
            skip = p.get(f"{name}skip")
            x = F.relu(y + (x if skip is None else self._conv(x, skip, stride)))
        return x.flatten(2).mean(2)

    def _conv(self, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        convolve = F.conv1d if self.space == 1 else F.conv2d
        return convolve(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = x.shape[1] // math.gcd(4, x.shape[1])  # of four channels where that divides
    return F.group_norm(x, groups, scale, shift)


def first_values(shapes: Shapes, gen: torch.Generator, dtype: torch.dtype) -> Params:
    """Matrices and convolutions normal with deviation sqrt(2 / inputs), scales one, the rest zero;
    a linear layer (``*.weight``) with sqrt(1 / inputs)."""
    out: Params = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            gain = 1.0 if name.endswith("weight") else 2.0
            drawn = torch.randn(shape, generator=gen, dtype=torch.float64)
            out[name] = (drawn * math.sqrt(gain / math.prod(shape[1:]))).to(dtype)
        else:
            start = 1.0 if "scale" in name.rpartition(".")[2] else 0.0
            out[name] = torch.full(shape, start, dtype=dtype)
    return out
