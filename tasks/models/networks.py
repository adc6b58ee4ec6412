"""The networks of the few-shot papers, as pure functions of parameters: four blocks, ResNet-12.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, section 5.2 and the authors' code;
Vinyals et al. 2016 for the pooled form. A block is a 3x3 convolution, batch norm, ReLU. Batch norm
always uses the statistics of the images given (the paper's transductive form): there are no
running ones. Differs from the paper's code: no convolution bias, whose effect batch norm takes
away exactly, so that its gradient is zero; scale and shift both learned and adapted; eps 1e-5, not
1e-3; one pixel of padding on each side, where "SAME" with stride 2 pads one side of an even map.

Ways to the same numbers: :mod:`metabench.tasks.models.convnet.fused` on a CPU (for strides under
vmap too), there for MAML's plain steps :mod:`metabench.tasks.models.convnet.descent`, and
elementary operations that torch.func can transform, right in second order under vmap, for
everything else.

ResNet-12 as in Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex
Optimization, CVPR 2019, after Mishra et al. 2018 and Oreshkin et al. 2018. Differs from theirs: no
DropBlock, and batch statistics at all times, as above; it is written in elementary operations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract.problem import Params

from .convnet import descent, fused
from .convnet.convolution import EPS, Form

STACKED_BYTES = 1_600_000
"""Up to this much in the first maps of an episode a training step takes several at once. Of 64
filters: 1.2 times as fast for 10 images, 0.9 for 50, on one core."""

ADAPTED_BYTES = 8_000_000
"""So much in the first maps of all episodes that are adapted at once, without an outer graph; what
is held at most comes to 3 to 19 times that (results/speed/evaluation.txt)."""
DESCENT_BYTES = 2_100_000
"""So much in the first maps of all episodes whose steps are differentiated by hand at once. Of 10
images and 64 filters 4 take two thirds of the time of one after another, and 12 MB more."""
DESCENT_PAIR_BYTES = 5_100_000
"""Up to so much there are at least two: of 50 images they take 0.9 of the time, and 15 MB more."""
MOST_AT_ONCE = 32
FEWEST_AT_ONCE = 4
"""Fewer at once are hardly faster than one after another: vmap has a cost of its own."""


def unfilled(kind: type[nn.Module], *given: Any, dtype: torch.dtype, **named: Any) -> nn.Module:
    """A layer whose parameters have no values yet, so that nothing is drawn for them; as
    ``torch.nn.utils.skip_init``, which imports sympy where it allocates them."""
    layer = kind(*given, **named, dtype=dtype, device="meta")
    for name, parameter in [*layer.named_parameters()]:
        layer.register_parameter(name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype)))
    return layer


class Network(nn.Module):
    """A body and a linear head: a module, and pure functions of named parameters.

    ``names`` lists the parameters, the last two ``head.weight`` [classes, feature_size] and
    ``head.bias`` [classes].
    """

    names: list[str]
    feature_size: int

    def close(self, features: int, classes: int, dtype: torch.dtype) -> None:
        """Add the head, and fill in the values of seed 0."""
        self.feature_size = features
        self.add_module("head", unfilled(nn.Linear, features, classes, dtype=dtype))
        self.names = [name for name, _ in self.named_parameters()]
        self.load_state_dict(self.init_params(torch.Generator().manual_seed(0)))

    def init_params(self, generator: torch.Generator) -> Params:
        """Weights drawn by :meth:`draw`, scales one, shifts and bias zero.

        Drawn on the generator's device; the same generator state gives the same values.
        """
        params: Params = {}
        for name, value in self.named_parameters():
            new = torch.zeros(value.shape, dtype=value.dtype, device=generator.device)
            if "norm" in name and name.endswith("weight"):
                new.fill_(1.0)
            elif name.endswith("weight"):
                self.draw(new, generator)
            if new.dim() == 4:
                new = new.contiguous(memory_format=torch.channels_last)
            params[name] = new
        return params

    def draw(self, weight: Tensor, generator: torch.Generator) -> None:
        """Fill a weight: Glorot-uniform, as in the MAML paper's code."""
        nn.init.xavier_uniform_(weight, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, size, size] under its own parameters."""
        return self.apply_params(dict(self.named_parameters()), images)

    def apply_params(self, params: Params, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, size, size]."""
        return F.linear(self.features(params, images), params["head.weight"], params["head.bias"])

    def loss(self, params: Params, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy; the cheapest way to it, where second derivatives are wanted too."""
        return F.cross_entropy(self.apply_params(params, images), labels)

    @abstractmethod
    def features(self, params: Params, images: Tensor) -> Tensor:
        """What the head sees, [n, feature_size]; the head's parameters need not be given."""


class ConvNet(Network):
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
        self.form = Form(pool=downsample == "pool", mean=self.mean)
        self.elementary = elementary
        for i in range(1, blocks + 1):
            inputs = channels_in if i == 1 else filters
            self.add_module(
                f"conv{i}",
                unfilled(nn.Conv2d, inputs, filters, 3, self.stride, 1, bias=False, dtype=dtype),
            )
            norm = unfilled(nn.BatchNorm2d, filters, EPS, track_running_stats=False, dtype=dtype)
            self.add_module(f"norm{i}", norm)
            size = math.ceil(size / 2) if downsample == "stride" else size // 2
            if i == 1:
                self.first_map = filters * size * size
        if size < 1:
            raise ValueError(f"the images are too small for {blocks} blocks of pooling")
        self.close(filters if self.mean else filters * size * size, classes, dtype)

    def stacks_well(self, images: int) -> bool:
        """Whether several episodes of so many images each are faster at once on a CPU: where maps
        are small, and the fixed cost of operations counts."""
        size = images * self.first_map * next(self.parameters()).element_size()
        return not (self.elementary or self.form.pool) and size <= STACKED_BYTES

    def adapted_at_once(self, images: int) -> int:
        """How many episodes of so many images in an inner step a CPU adapts at once; 1 where one
        after another is faster: pooled maps, too, which vmap takes by grouped convolutions."""
        if self.elementary or self.form.pool:
            return 1
        size = images * self.first_map * next(self.parameters()).element_size()
        most = min(MOST_AT_ONCE, ADAPTED_BYTES // size)
        return most if most >= FEWEST_AT_ONCE else 1

    def descends_at_once(self, images: int) -> int:
        """How many episodes of so many images each :meth:`descended` takes at once; 0 where it is
        not there: for other numbers than float32 and float64 on a CPU. Pooled maps one after
        another."""
        some = next(self.parameters())
        known = some.device.type == "cpu" and some.dtype in (torch.float32, torch.float64)
        if self.elementary or not known:
            return 0
        if self.form.pool:
            return 1
        size = images * self.first_map * some.element_size()
        return max(1, DESCENT_BYTES // size, min(2, DESCENT_PAIR_BYTES // size))

    def descended(
        self,
        params: Params,
        inner: Sequence[tuple[Tensor, Tensor]],
        outer: tuple[Tensor, Tensor],
        rate: float,
        second_order: bool,
    ) -> tuple[Tensor, Params]:
        """Losses [E] on ``outer`` after plain gradient steps on ``inner``, of E episodes' images
        and labels, and the sum of their gradients in ``params``."""
        with torch.no_grad():
            value, grads = descent.meta_gradients(
                [params[k] for k in self.names], inner, outer, rate, self.form, second_order
            )
        return value, dict(zip(self.names, grads, strict=True))

    def gradient(
        self, params: Params, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Params] | None:
        """:meth:`loss` and its gradient in ``params``, both without a graph, by hand; None where
        that is not there."""
        weights = [params[name] for name in self.names]
        if self.elementary or not fused.applies(images, weights, self.form, gradients=False):
            return None
        value, grads = fused.gradient(images, labels, weights, self.form)
        return value, dict(zip(self.names, grads, strict=True))

    def loss(self, params: Params, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy; the cheapest way to it, where second derivatives are wanted too."""
        weights = [params[name] for name in self.names]
        if self._way(images, weights) == "fused":
            return fused.loss(images, labels, weights, self.form)
        return super().loss(params, images, labels)

    def _way(
        self, images: Tensor, weights: Sequence[Tensor]
    ) -> Literal["elementary", "fused", "library"]:
        """How a sweep is computed. By the library's own operations only where nothing is
        differentiated, of pooled maps of several channels: the covariance of patches, which has to
        be read again to pay, then takes as long as all else (half to 0.9 of the time)."""
        if self.elementary or not fused.applies(images, weights, self.form):
            return "elementary"
        values_alone = not (torch.is_grad_enabled() and any(w.requires_grad for w in weights))
        if self.form.pool and images.shape[1] > 1 and values_alone:
            return "library"
        return "fused"

    def features(self, params: Params, images: Tensor) -> Tensor:
        """What the head sees, [n, feature_size]; the head's parameters need not be given."""
        weights = [params[name] for name in self.names[:-2]]
        way = self._way(images, weights)
        if way == "fused":
            return fused.features(images, weights, self.form)
        x = images
        for i in range(1, self.blocks + 1):
            x = F.conv2d(x, params[f"conv{i}.weight"], stride=self.stride, padding=1)
            scale, shift = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
            if way == "library":
                x = F.batch_norm(x, None, None, scale, shift, training=True, eps=EPS)
            else:
                x = batch_norm(x, scale, shift)
            if self.downsample == "pool":
                x = F.max_pool2d(x, 2)  # before ReLU: the same values from a quarter of the data
            x = F.relu(x)
        return x.mean(dim=(2, 3)) if self.mean else x.flatten(1)


class ResNet12(Network):
    """Four residual blocks of three 3x3 convolutions, a mean over space, a linear head.

    ``widths`` are the filters of the blocks. A block ends with a 2x2 max-pool; leaky ReLU of slope
    0.1. Parameters: for each block ``block{i}.conv{j}.weight``, ``block{i}.norm{j}.weight`` and
    ``.bias`` for j from 1 to 3, and ``block{i}.skip.weight``, a 1x1 convolution of its input, with
    ``block{i}.skip_norm``.
    """

    def __init__(
        self,
        channels_in: int,
        size: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (64, 160, 320, 640),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if size < 2 ** len(widths):
            raise ValueError(f"the images are too small for {len(widths)} blocks of pooling")
        self.blocks = len(widths)
        for i, (inputs, width) in enumerate(pairwise((channels_in, *widths)), 1):
            self.add_module(f"block{i}", _residual(inputs, width, dtype))
        self.close(widths[-1], classes, dtype)

    def draw(self, weight: Tensor, generator: torch.Generator) -> None:
        """He-normal by fan-out for convolutions; the head Glorot-uniform."""
        if weight.dim() == 4:
            nn.init.kaiming_normal_(weight, mode="fan_out", generator=generator)
        else:
            super().draw(weight, generator)

    def features(self, params: Params, images: Tensor) -> Tensor:
        """What the head sees, [n, widths[-1]]; the head's parameters need not be given."""
        x = images
        for i in range(1, self.blocks + 1):
            p = {k: params[f"block{i}.{k}"] for k in _BLOCK}
            y = x
            for j in (1, 2, 3):
                y = F.conv2d(y, p[f"conv{j}.weight"], padding=1)
                y = batch_norm(y, p[f"norm{j}.weight"], p[f"norm{j}.bias"])
                y = F.leaky_relu(y, _SLOPE) if j < 3 else y
            skip = F.conv2d(x, p["skip.weight"])
            y = y + batch_norm(skip, p["skip_norm.weight"], p["skip_norm.bias"])
            x = F.leaky_relu(F.max_pool2d(y, 2), _SLOPE)  # the same values from a quarter of them
        return x.mean(dim=(2, 3))


_SLOPE = 0.1


def _residual(inputs: int, width: int, dtype: torch.dtype) -> nn.Module:
    """The parameters of a block."""
    block = nn.Module()
    for j in (1, 2, 3):
        conv = unfilled(
            nn.Conv2d, inputs if j == 1 else width, width, 3, padding=1, bias=False, dtype=dtype
        )
        block.add_module(f"conv{j}", conv)
        block.add_module(f"norm{j}", _norm(width, dtype))
    skip = unfilled(nn.Conv2d, inputs, width, 1, bias=False, dtype=dtype)
    block.add_module("skip", skip)
    block.add_module("skip_norm", _norm(width, dtype))
    return block


def _norm(width: int, dtype: torch.dtype) -> nn.Module:
    return unfilled(nn.BatchNorm2d, width, EPS, track_running_stats=False, dtype=dtype)


_BLOCK = [name for name, _ in _residual(1, 1, torch.float32).named_parameters()]
"""Names of the parameters of a block."""


def batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch norm of [n, channels, h, w] with the statistics of ``x``.

    Elementary operations: the library's own is wrong in second order under vmap.
    """
    centred = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
    view = (1, -1, 1, 1)
    return centred * (variance + EPS).rsqrt() * scale.view(view) + shift.view(view)
