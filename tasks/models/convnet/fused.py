"""Autograd functions of a small convolutional classifier, derived by hand, for CPUs.

The network is blocks (:mod:`metabench.tasks.models.convnet.blocks`), then a linear layer and mean
cross-entropy where the loss is asked for. One autograd function computes it, a second one its
gradient, and that one's backward pass is the product of the Hessian with a vector: one tangent
sweep forward, one back. So they compose with any inner rule. Third derivatives raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import blocks, first_block
from .blocks import Block, Slopes, Weights
from .convolution import Form, rows, unrows

_aten = torch.ops.aten
_KEPT, _SLOPES = len(Block._fields), len(Slopes._fields)


def applies(images: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the functions here can be used: float32 or float64 on a CPU, images that need no
    gradient, and no transform of torch.func in progress."""
    return (
        images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.float64)
        and not images.requires_grad
        and all(w.dtype == images.dtype and w.device.type == "cpu" for w in weights)
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def features(images: Tensor, weights: Sequence[Tensor], form: Form) -> Tensor:
    """Features [n, k] of images [n, channels, height, width].

    ``weights``: for each block a convolution [filters, channels, 3, 3], a scale and a shift
    [filters]. Twice differentiable in them. Channels-last convolutions are cheapest.
    """
    out: Tensor = _Network.apply(form, images, None, *weights)
    return out


def loss(images: Tensor, labels: Tensor, weights: Sequence[Tensor], form: Form) -> Tensor:
    """Mean cross-entropy of the classifier; ``weights`` end with the head's, [classes, k] and
    [classes]. Computing it here saves a sweep of the second derivative over taking
    :func:`features` to a loss by library operations."""
    out: Tensor = _Network.apply(form, images, labels, *weights)
    return out


def _weights(tensors: Sequence[Tensor]) -> list[Weights]:
    return [
        Weights(rows(tensors[i]), tensors[i + 1], tensors[i + 2])
        for i in range(0, len(tensors) // 3 * 3, 3)
    ]


def _grouped(tensors: Sequence[Any], kind: Any, size: int) -> list[Any]:
    return [kind(*tensors[i : i + size]) for i in range(0, len(tensors), size)]


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, form: Form, images: Tensor, labels: Tensor | None, *params: Tensor
    ) -> Tensor:
        kept: list[Block] = []
        for i, w in enumerate(_weights(params)):
            block = (
                blocks.forward(kept[-1].z, w, form) if i else first_block.forward(images, w, form)
            )
            kept.append(block)
        f = blocks.features(kept[-1].z, form)
        ctx.form, ctx.count = form, len(params)
        if labels is None:
            ctx.save_for_backward(images, None, None, None, *params, *_flat(kept))
            return f
        logp = F.log_softmax(torch.addmm(params[-1], f, params[-2].t()), 1)
        ctx.save_for_backward(images, labels, f, logp.exp(), *params, *_flat(kept))
        return F.nll_loss(logp, labels)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        images, labels, f, p, *rest = ctx.saved_tensors
        form, count = ctx.form, ctx.count
        if torch.is_grad_enabled():
            grads = _Gradient.apply(form, count, g, images, labels, f, p, *rest)
        else:
            kept = _grouped(rest[count:], Block, _KEPT)
            grads, _ = _gradient(form, g, images, labels, f, p, rest[:count], kept)
        return None, None, None, *grads


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, count: int, g: Tensor, *tensors: Any) -> Any:
        images, labels, f, p, *rest = tensors
        params, kept = rest[:count], _grouped(rest[count:], Block, _KEPT)
        grads, slopes = _gradient(form, g, images, labels, f, p, params, kept)
        ctx.form, ctx.count = form, count
        ctx.save_for_backward(g, *tensors, *_flat(slopes))
        return grads

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        """Gradients in g and in the parameters of <gradient, along>."""
        graph = torch.is_grad_enabled()
        with torch.no_grad():
            out = _Gradient.product(ctx, along)
        if graph:
            given = ctx.saved_tensors[0], *ctx.saved_tensors[5 : 5 + ctx.count], *along
            out = _NotAgain.apply(len(out), *out, *given)
        dg, *rest = out
        images_to_p, kept = [None] * 4, [None] * (len(ctx.saved_tensors) - 5 - ctx.count)
        return None, None, dg, *images_to_p, *rest, *kept

    @staticmethod
    def product(ctx: Any, along: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients in g and in the parameters."""
        g, images, labels, f, p, *rest = ctx.saved_tensors
        form, count = ctx.form, ctx.count
        params, end = rest[:count], count + count // 3 * _KEPT
        w, v = _weights(params), _weights(along)
        kept = _grouped(rest[count:end], Block, _KEPT)
        slopes = _grouped(rest[end:], Slopes, _SLOPES)

        tangents = [first_block.tangent(kept[0], slopes[0], w[0], v[0], images.shape, form)]
        for i in range(1, len(w)):
            tangents.append(
                blocks.tangent(kept[i], slopes[i], kept[i - 1].z, w[i], tangents[-1].dz, v[i], form)
            )
        df = blocks.features(tangents[-1].dz, form)
        out: list[Tensor] = []
        dgz: Tensor | None = None
        if labels is None:
            dg = df
        else:
            head, v_head, n = params[-2], along[-2], f.shape[0]
            e = _error(p, labels)
            do = torch.addmm(along[-1], df, head.t()).addmm_(f, v_head.t())
            dg = (e * do).sum()
            pdo = p * do
            dgo = (pdo - p * pdo.sum(1, keepdim=True)).mul_(g / n)
            go = g * e
            out = [(dgo.t() @ f).addmm_(go.t(), df), dgo.sum(0)]
            dgz = blocks.features_grad((dgo @ head).addmm_(go, v_head), kept[-1].z.shape, form)
        for i in range(len(w) - 1, 0, -1):
            grad, dgz = blocks.backward_tangent(
                kept[i], slopes[i], tangents[i], kept[i - 1].z, w[i], v[i], dgz, form
            )
            out[:0] = [unrows(grad.conv), grad.scale, grad.shift]
        grad = first_block.backward_tangent(
            kept[0], slopes[0], tangents[0], w[0], v[0], dgz, images.shape, form
        )
        out[:0] = [unrows(grad.conv), grad.scale, grad.shift]
        return dg, *out


class _NotAgain(torch.autograd.Function):
    """Raises where it is differentiated. (once_differentiable cuts the graph instead, and
    autograd.grad with named inputs then goes round it: a wrong value, and no error.)"""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "third derivatives of metabench.tasks.models.convnet.fused are not defined: build the "
            "network with elementary=True"
        )


def _gradient(
    form: Form,
    g: Tensor,
    images: Tensor,
    labels: Tensor | None,
    f: Tensor,
    p: Tensor,
    params: Sequence[Tensor],
    kept: list[Block],
) -> tuple[tuple[Tensor, ...], list[Slopes]]:
    """Gradients in the parameters, in their order, and what the blocks keep of the way."""
    w, out = _weights(params), []
    if labels is None:
        gf = g
    else:
        go = g * _error(p, labels)
        out = [go.t() @ f, go.sum(0)]
        gf = go @ params[-2]
    gz = blocks.features_grad(gf, kept[-1].z.shape, form)
    slopes: list[Slopes] = []
    for i in range(len(w) - 1, -1, -1):
        if i:
            slope, gconv, gz = blocks.backward(kept[i], kept[i - 1].z, w[i], gz, form)
        else:
            slope, gconv = first_block.backward(kept[0], images.shape, w[0], gz, form)
        slopes.insert(0, slope)
        out[:0] = [unrows(gconv), slope.gscale.detach(), slope.gshift.detach()]
    return tuple(out), slopes


def _error(p: Tensor, labels: Tensor) -> Tensor:
    """(p - onehot) / n, the gradient of mean cross-entropy in the logits."""
    return (p - F.one_hot(labels, p.shape[1])).div_(p.shape[0])


def _flat(groups: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [x for group in groups for x in group]
