"""The four-block convolutional network of the few-shot papers, as a pure function of parameters.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, section 5.2 and the authors' code;
Vinyals et al. 2016 for the pooled form. A block is a 3x3 convolution, batch norm, ReLU. Batch norm
always uses the statistics of the images given (the paper's transductive form): there are no
running ones. Differs from the paper's code: no convolution bias, whose effect batch norm takes
away exactly, so that its gradient is zero; scale and shift both learned and adapted; eps 1e-5, not
1e-3; one pixel of padding on each side, where "SAME" with stride 2 pads one side of an even map.

Two ways to the same numbers: :mod:`metabench.fused` on a CPU, and elementary operations that
torch.func can transform, right in second order under vmap, for everything else.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from metabench import fused
from metabench.blocks import EPS
from metabench.convolution import Form
from metabench.problem import Params


class ConvNet(nn.Module):
    """3x3 convolutions with batch norm and ReLU, then a linear head.

    ``downsample`` "stride": stride 2 and a mean over space at the end (MAML's Omniglot network).
    "pool": stride 1, a 2x2 max-pool after each block, and all that is left as features.
    ``reduce`` says otherwise: "mean" over space or "flatten".
    Parameters: ``conv{i}.weight``, ``norm{i}.weight``, ``norm{i}.bias`` for i from 1,
    ``head.weight`` [classes, feature_size], ``head.bias`` [classes]. ``elementary`` keeps to
    elementary operations everywhere.
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        classes: int,
        *,
        filters: int = 64,
        blocks: int = 4,
        downsample: Literal["stride", "pool"] = "stride",
        reduce: Literal["mean", "flatten"] | None = None,
        elementary: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.blocks, self.downsample = blocks, downsample
        self.stride = 2 if downsample == "stride" else 1
        self.mean = (reduce or ("mean" if downsample == "stride" else "flatten")) == "mean"
        self.form = Form(self.stride, pool=downsample == "pool", mean=self.mean)
        self.elementary = elementary
        for i in range(1, blocks + 1):
            inputs = channels_in if i == 1 else filters
            self.add_module(
                f"conv{i}",
                skip_init(nn.Conv2d, inputs, filters, 3, self.stride, 1, bias=False, dtype=dtype),
            )
            norm = skip_init(nn.BatchNorm2d, filters, EPS, track_running_stats=False, dtype=dtype)
            self.add_module(f"norm{i}", norm)
            size = math.ceil(size / 2) if downsample == "stride" else size // 2
        if size < 1:
            raise ValueError(f"the images are too small for {blocks} blocks of pooling")
        self.feature_size = filters if self.mean else filters * size * size
        self.add_module("head", skip_init(nn.Linear, self.feature_size, classes, dtype=dtype))
        self.names = [name for name, _ in self.named_parameters()]
        self.load_state_dict(self.init_params(torch.Generator().manual_seed(0)))

    def init_params(self, generator: torch.Generator) -> Params:
        """Glorot-uniform weights as in the MAML paper's code, scales one, shifts and bias zero.

        Drawn on the generator's device; the same generator state gives the same values.
        """
        params: Params = {}
        for name, value in self.named_parameters():
            new = torch.zeros(value.shape, dtype=value.dtype, device=generator.device)
            if name.startswith("norm") and name.endswith("weight"):
                new.fill_(1.0)
            elif name.endswith("weight"):
                nn.init.xavier_uniform_(new, generator=generator)
            if new.dim() == 4:
                new = new.contiguous(memory_format=torch.channels_last)
            params[name] = new
        return params

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, size, size] under its own parameters."""
        return self.apply_params(dict(self.named_parameters()), images)

    def apply_params(self, params: Params, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, size, size]."""
        return F.linear(self.features(params, images), params["head.weight"], params["head.bias"])

    def loss(self, params: Params, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy; the cheapest way to it, where second derivatives are wanted too."""
        weights = [params[name] for name in self.names]
        if not self.elementary and fused.applies(images, weights):
            return fused.loss(images, labels, weights, self.form)
        return F.cross_entropy(self.apply_params(params, images), labels)

    def features(self, params: Params, images: Tensor) -> Tensor:
        """What the head sees, [n, feature_size]; the head's parameters need not be given."""
        weights = [params[name] for name in self.names[:-2]]
        if not self.elementary and fused.applies(images, weights):
            return fused.features(images, weights, self.form)
        x = images
        for i in range(1, self.blocks + 1):
            x = F.conv2d(x, params[f"conv{i}.weight"], stride=self.stride, padding=1)
            x = batch_norm(x, params[f"norm{i}.weight"], params[f"norm{i}.bias"])
            if self.downsample == "pool":
                x = F.max_pool2d(x, 2)  # before ReLU: the same values from a quarter of the data
            x = F.relu(x)
        return x.mean(dim=(2, 3)) if self.mean else x.flatten(1)


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm of [n, channels, h, w] with the statistics of ``x``.

    Elementary operations: the library's own is wrong in second order under vmap.
    """
    centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
    view = (1, -1, 1, 1)
    return centred * (variance + EPS).rsqrt() * scale.view(view) + shift.view(view)
