"""Autograd functions of a small convolutional classifier, derived by hand, for CPUs.

The network is blocks, then a linear layer and mean cross-entropy where the loss is asked for: by
:mod:`strided` or :mod:`pooled`. One autograd function computes it, a second one its gradient, and
that one's backward pass is the product of the Hessian with a vector: one tangent sweep forward, one
back. So they compose with any inner rule. Third derivatives raise.

Under torch.func's transforms :mod:`transformed` stands for them, for strided networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import pooled, strided, transformed
from .convolution import Form


def applies(
    images: Tensor, weights: Sequence[Tensor], form: Form, *, gradients: bool = True
) -> bool:
    """Whether the functions here can be used: float32 or float64 on a CPU, images that need no
    gradient, and no transform of torch.func in progress that there is no rule for; those that take
    a gradient among the others only with ``gradients``, and not for :func:`gradient`."""
    stack = torch._C._functorch.get_interpreter_stack()
    return (
        images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.float64)
        and not images.requires_grad
        and all(w.dtype == images.dtype and w.device.type == "cpu" for w in weights)
        and (not stack or (not form.pool and transformed.has_rules(stack, gradients=gradients)))
    )


def features(images: Tensor, weights: Sequence[Tensor], form: Form) -> Tensor:
    """Features [n, k] of images [n, channels, height, width].

    ``weights``: for each block a convolution [filters, channels, 3, 3], a scale and a shift
    [filters]. Twice differentiable in them. Channels-last convolutions are cheapest.
    """
    return _network(images, None, weights, form)


def loss(images: Tensor, labels: Tensor, weights: Sequence[Tensor], form: Form) -> Tensor:
    """Mean cross-entropy of the classifier; ``weights`` end with the head's, [classes, k] and
    [classes]. Computing it here saves a sweep of the second derivative over taking
    :func:`features` to a loss by library operations."""
    return _network(images, labels, weights, form)


def gradient(
    images: Tensor, labels: Tensor, weights: Sequence[Tensor], form: Form
) -> tuple[Tensor, list[Tensor]]:
    """:func:`loss` and its gradients in ``weights``, both without a graph: what autograd would
    give of it, but for its own part of the time, and nothing is kept for a second derivative."""
    with torch.no_grad():
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return transformed.gradient(images, labels, weights, form)
        if form.pool:
            rows = pooled.rows(weights)
            value, kept = pooled.forward(images, labels, rows, form)
            found, _ = pooled.gradient(kept, images.new_ones(()), rows, form, again=False)
            return value, pooled.unrows(found)
        values, grads = strided.alone(images[None], labels[None], _alone(weights), form)
        return values[0], [x[0] for x in grads]


def _network(
    images: Tensor, labels: Tensor | None, weights: Sequence[Tensor], form: Form
) -> Tensor:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return transformed.network(images, labels, weights, form)
    out: Tensor = _Network.apply(form, images, labels, *weights)
    return out


def _alone(tensors: Sequence[Tensor]) -> list[Tensor]:
    """As of the one network of a stack."""
    return [x.unsqueeze(0) for x in tensors]


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, form: Form, images: Tensor, labels: Tensor | None, *params: Tensor
    ) -> Tensor:
        kept: Sequence[Tensor | None]
        if form.pool:
            out, kept = pooled.forward(images, labels, pooled.rows(params), form)
        else:
            labels = None if labels is None else labels[None]
            several, kept = strided.forward(
                images[None], labels, strided.rows(_alone(params)), form
            )
            out = several[0]
        ctx.form, ctx.count = form, len(params)
        ctx.save_for_backward(*params, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if torch.is_grad_enabled():
            grads = _Gradient.apply(ctx.form, ctx.count, g, *ctx.saved_tensors)
        else:
            params, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
            grads, _ = _gradient(ctx.form, g, params, kept)
        return None, None, None, *grads


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, count: int, g: Tensor, *tensors: Any) -> Any:
        params, kept = tensors[:count], tensors[count:]
        grads, slopes = _gradient(form, g, params, kept)
        ctx.form, ctx.count, ctx.end = form, count, len(tensors)
        ctx.save_for_backward(g, *tensors, *slopes)
        return tuple(grads)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        """Gradients in g and in the parameters of <gradient, along>."""
        graph = torch.is_grad_enabled()
        g, *saved = ctx.saved_tensors
        params, kept, slopes = saved[: ctx.count], saved[ctx.count : ctx.end], saved[ctx.end :]
        with torch.no_grad():
            if ctx.form.pool:
                w, v = pooled.rows(params), pooled.rows(along)
                dg, out = pooled.product(kept, slopes, g, w, v, ctx.form)
                out = pooled.unrows(out)
            else:
                w, v = (strided.rows(_alone(x)) for x in (params, along))
                dg, out = strided.product(kept, slopes, g[None], w, v, ctx.form)
                dg, out = dg[0], [x[0] for x in strided.unrows(out)]
        if graph:
            dg, *out = _NotAgain.apply(1 + len(out), dg, *out, g, *params, *along)
        return None, None, dg, *out, *[None] * len(kept)


def _gradient(
    form: Form, g: Tensor, params: Sequence[Tensor], kept: Sequence[Any]
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    if form.pool:
        found, slopes = pooled.gradient(list(kept), g, pooled.rows(params), form)
        # gscale and gshift are among the slopes too, and no output may be one of them.
        return [x.detach() for x in pooled.unrows(found)], slopes
    grads, kept_slopes = strided.gradient(list(kept), g[None], strided.rows(_alone(params)), form)
    return [x[0] for x in strided.unrows(grads)], kept_slopes


class _NotAgain(torch.autograd.Function):
    """Raises where it is differentiated. (once_differentiable cuts the graph instead, and
    autograd.grad with named inputs then goes round it: a wrong value, and no error.)"""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(transformed.THIRD)
