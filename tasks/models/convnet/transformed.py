"""The autograd functions of :mod:`fused` for torch.func: a strided network with a rule for vmap.

What a sweep keeps is no input or output of a derivative: it goes from one function to the next as
an object that transforms let through untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import CInterpreter, TransformType

from . import strided
from .convolution import Form

THIRD = (
    "third derivatives of metabench.tasks.models.convnet.fused are not defined: build the network "
    "with elementary=True"
)


@dataclass
class Sweep:
    """What sweeps of E networks kept; ``slopes`` after the second one."""

    form: Form
    networks: int
    kept: list[Tensor]
    slopes: list[Tensor]

    def of(self, networks: int) -> Sweep:
        """The same, E times over where it is of one network."""
        if self.networks == networks:
            return self
        kept, slopes = (
            [x.expand(networks, *x.shape[1:]) for x in some] for some in (self.kept, self.slopes)
        )
        return Sweep(self.form, networks, kept, slopes)


def has_rules(stack: Sequence[CInterpreter], *, gradients: bool = True) -> bool:
    """Whether the functions here pass through these transforms: one vmap, and, but for
    :func:`gradient`, ``gradients``."""
    kinds = [level.key() for level in stack]
    known = {TransformType.Grad, TransformType.Vmap} if gradients else {TransformType.Vmap}
    return set(kinds) <= known and kinds.count(TransformType.Vmap) <= 1


def network(images: Tensor, labels: Tensor | None, weights: Sequence[Tensor], form: Form) -> Tensor:
    """As :func:`fused.features`, or with labels :func:`fused.loss`."""
    out: Tensor = _Network.apply(form, False, images, labels, *weights)[0]
    return out


def gradient(
    images: Tensor, labels: Tensor, weights: Sequence[Tensor], form: Form
) -> tuple[Tensor, list[Tensor]]:
    """As :func:`fused.gradient`."""
    value, *grads = _Alone.apply(form, False, images, labels, *weights)
    return value, grads


def _several(tensors: Sequence[Any], dims: Sequence[int | None], networks: int) -> list[Any]:
    """With the mapped dimension in front; expanded where there is none."""
    return [
        x
        if not isinstance(x, Tensor)
        else x.unsqueeze(0).expand(networks, *x.shape)
        if dim is None
        else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]


class _Function(torch.autograd.Function):
    """A function whose second argument says whether all tensors have a dimension of networks in
    front, and whose outputs are tensors and, where one goes on, at the end a sweep."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:
        """The rule for vmap: the same function of a stack."""
        first, batched, *rest = inputs
        assert not batched
        out = cls.apply(first, True, *_several(rest, in_dims[2:], info.batch_size))
        return out, tuple(0 if isinstance(x, Tensor) else None for x in out)


class _Network(_Function):
    """(form, batched, images, labels, *params) to (loss or features, sweep)."""

    @staticmethod
    def forward(form: Form, batched: bool, *tensors: Any) -> Any:
        images, labels, *params = (
            tensors if batched else _several(tensors, [None] * len(tensors), 1)
        )
        out, kept = strided.forward(images, labels, strided.rows(params), form)
        return out if batched else out[0], Sweep(form, len(images), kept, [])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.batched, ctx.sweep = inputs[1], output[1]
        ctx.save_for_backward(output[0], *inputs[4:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: None) -> Any:
        out, *params = ctx.saved_tensors
        if ctx.sweep.networks > 1 and not ctx.batched:
            # Under a vmap over images alone, g and the weights may be one for all networks: then
            # nothing else would tell the next function that there are several.
            g = g + torch.zeros_like(out)
        *grads, _ = _Gradient.apply(ctx.sweep, ctx.batched, g, *params)
        return None, None, None, None, *grads


class _Gradient(_Function):
    """(sweep, batched, g, *params) to (gradients in the parameters, sweep with slopes)."""

    @staticmethod
    def forward(sweep: Sweep, batched: bool, *tensors: Tensor) -> Any:
        g, *params = tensors if batched else _several(tensors, [None] * len(tensors), 1)
        sweep = sweep.of(len(g))
        grads, slopes = strided.gradient(sweep.kept, g, strided.rows(params), sweep.form)
        grads = strided.unrows(grads)
        grads = grads if batched else [x[0] for x in grads]
        return *grads, Sweep(sweep.form, len(g), sweep.kept, slopes)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.batched, ctx.sweep = inputs[1], output[-1]
        ctx.save_for_backward(*inputs[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> Any:
        """Gradients in g and in the parameters of <gradient, along>."""
        g, *params = ctx.saved_tensors
        v = [torch.zeros_like(p) if x is None else x for p, x in zip(params, along, strict=False)]
        dg, *grads, _ = _Product.apply(ctx.sweep, ctx.batched, g, *params, *v)
        return None, None, dg, *grads


class _Product(_Function):
    """(sweep with slopes, batched, g, *params, *along) to (dg, tangents of the gradients, None)."""

    @staticmethod
    def forward(sweep: Sweep, batched: bool, *tensors: Tensor) -> Any:
        g, *rest = tensors if batched else _several(tensors, [None] * len(tensors), 1)
        w, v = (strided.rows(x) for x in (rest[: len(rest) // 2], rest[len(rest) // 2 :]))
        sweep = sweep.of(len(g))
        dg, out = strided.product(sweep.kept, sweep.slopes, g, w, v, sweep.form)
        out = strided.unrows(out)
        return *((dg, *out) if batched else (x[0] for x in (dg, *out))), None

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(THIRD)


class _Alone(_Function):
    """(form, batched, images, labels, *params) to (loss, *gradients), which nothing differentiates
    again."""

    @staticmethod
    def forward(form: Form, batched: bool, *tensors: Any) -> Any:
        images, labels, *params = (
            tensors if batched else _several(tensors, [None] * len(tensors), 1)
        )
        values, grads = strided.alone(images, labels, params, form)
        return (values, *grads) if batched else (values[0], *(x[0] for x in grads))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass
