"""Sweeps of a network whose blocks end with a 2x2 max-pool (:mod:`blocks`, :mod:`first_block`).

The same three as in :mod:`strided`, of one network: no tensor has a dimension of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import blocks, first_block, head
from .blocks import Block, Slopes, Weights
from .convolution import Form
from .convolution import rows as as_rows
from .convolution import unrows as as_weight

Kept = list[Tensor | None]
_KEPT, _SLOPES = len(Block._fields), len(Slopes._fields)


def rows(params: Sequence[Tensor]) -> list[Tensor]:
    """Parameters as the functions here take them, or gradients in them: convolutions
    [filters, channels, 3, 3] as rows [filters, 9c], all else as it is."""
    return [as_rows(x) if x.dim() == 4 else x for x in params]


def unrows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`rows`; convolutions in channels-last layout."""
    blocks = len(tensors) // 3 * 3
    found = [x if i % 3 else as_weight(x) for i, x in enumerate(tensors[:blocks])]
    return [*found, *tensors[blocks:]]


def forward(
    images: Tensor, labels: Tensor | None, params: Sequence[Tensor], form: Form
) -> tuple[Tensor, Kept]:
    """The loss, or without labels features [n, k], of images [n, channels, h, w].

    ``params``: for each block a convolution, a scale and a shift as :func:`rows` has them; with
    labels [n] also the head's, [classes, k] and [classes].
    """
    kept: list[Block] = []
    for i, w in enumerate(_weights(params)):
        kept.append(blocks.forward(kept[-1].z, w) if i else first_block.forward(images, w))
    f = _features(kept[-1].z, form)
    flat: Kept = [images, *(x for block in kept for x in block), f]
    if labels is None:
        return f, flat
    value, p, e = head.forward(f, labels, params[-2], params[-1])
    return value, [*flat, p, e]


def gradient(
    kept: Kept,
    g: Tensor,
    params: Sequence[Tensor],
    form: Form,
    again: bool = True,
) -> tuple[list[Tensor], Kept]:
    """Gradients in the parameters, in their order, of the loss times g (of features times g
    [n, k]), and what the blocks keep of the way.

    Where ``kept`` is not read ``again`` it is emptied and overwritten, and nothing is kept.
    """
    images, there, f, *rest = _grouped(kept, len(params))
    w, out, shape = _weights(params), [], images.shape
    if rest:
        gw, gb, g = head.backward(g, f, rest[1], params[-2])
        out = [gw, gb]
    gz = _features_grad(g, there[-1].z.shape, form)
    if not again:
        kept.clear()
    slopes: Kept = []
    for i in range(len(w) - 1, -1, -1):
        block = there.pop()
        if i:
            slope, gconv, gz = blocks.backward(block, there[-1].z, w[i], gz, again)
        else:
            slope, gconv = first_block.backward(block, shape, w[0], gz)
        if again:
            slopes[:0] = slope
        out[:0] = [gconv, slope.gscale, slope.gshift]
        del block, slope
    return out, slopes


def product(
    kept: Kept,
    slopes: Kept,
    g: Tensor,
    params: Sequence[Tensor],
    along: Sequence[Tensor],
    form: Form,
    again: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Tangents along a direction in the parameters: of the loss (features), and of
    :func:`gradient` at a fixed g; where ``kept`` and ``slopes`` are not read ``again`` they are
    emptied."""
    images, there, f, *rest = _grouped(kept, len(params))
    w, v, shape = _weights(params), _weights(along), images.shape
    back = _each(Slopes, slopes, _SLOPES)
    tangents = [first_block.tangent(there[0], back[0], w[0], v[0], shape)]
    for i in range(1, len(w)):
        dx = tangents[-1].dz
        tangents.append(blocks.tangent(there[i], back[i], there[i - 1].z, w[i], dx, v[i]))
    df = _features(tangents[-1].dz, form)
    out: list[Tensor] = []
    dgz: Tensor | None = None
    dg = df
    if rest:
        dg, dw, db, dgf = head.product(
            g, f, rest[0], rest[1], params[-2], along=(df, along[-2], along[-1])
        )
        out, dgz = [dw, db], _features_grad(dgf, there[-1].z.shape, form)
    if not again:
        kept.clear()
        slopes.clear()
    for i in range(len(w) - 1, -1, -1):
        block, slope, tangent = there.pop(), back.pop(), tangents.pop()
        if i:
            grad, dgz = blocks.backward_tangent(block, slope, tangent, there[-1].z, w[i], v[i], dgz)
        else:
            grad = first_block.backward_tangent(block, slope, tangent, w[0], v[0], dgz, shape)
        out[:0] = grad
        del block, slope, tangent
    return dg, out


def _weights(tensors: Sequence[Tensor]) -> list[Weights]:
    return [Weights(*tensors[i : i + 3]) for i in range(0, len(tensors) // 3 * 3, 3)]


def _grouped(kept: Kept, params: int) -> list[Any]:
    """Images, the blocks, features, and with a head p and e."""
    end = 1 + params // 3 * _KEPT
    return [kept[0], _each(Block, kept[1:end], _KEPT), *kept[end:]]


def _each(kind: Any, parts: Sequence[Any], size: int) -> list[Any]:
    return [kind(*parts[i : i + size]) for i in range(0, len(parts), size)]


def _features(z: Tensor, form: Form) -> Tensor:
    """[n, features] of the last block's map [n, h, w, filters]."""
    if form.mean:
        return z.mean(dim=(1, 2))
    return z.permute(0, 3, 1, 2).reshape(z.shape[0], -1)


def _features_grad(gf: Tensor, shape: torch.Size, form: Form) -> Tensor:
    """Gradient in the map of this shape; a new tensor."""
    n, h, w, filters = shape
    if form.mean:
        return (gf / (h * w))[:, None, None, :].expand(shape).contiguous()
    back = gf.reshape(n, filters, h, w).permute(0, 2, 3, 1)
    return back.clone(memory_format=torch.contiguous_format)
