"""Sweeps of a network whose blocks go down by strides of 2, for many networks at once.

A block is a 3x3 convolution of stride 2 without bias, batch norm with the statistics of the batch,
and ReLU. Every tensor has a first dimension of E networks, each with images and weights of its own:
such maps are small, and one call for all of them costs little more than one for each. Weights that
are expanded over E are one for all networks. Convolutions are those of :mod:`sites`.

Symbols: y output of the convolution, d = y - mean y, r = 1 / sqrt(mean d^2 + eps), s = r scale,
u = s d + shift, z = max(u, 0), N rows (pixels of all images) in y. gz is the gradient in z, and so
on; a leading d as in dz or dgz means the tangent along a direction in input and weights. Maps are
[E, n, h, w, channels], or [E, N, channels] where space does not matter; weights rows
[E, filters, 9c], ordered (row, column, channel), scale and shift [E, 1, filters].

The images are data: of the first block's map the moments, and what batch norm adds to the gradient
of its weight, follow from the covariance of its patches, computed once for a batch of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import head, sites
from .convolution import EPS, Form, remembered

Kept = list[Tensor]
"""What a sweep keeps: tensors with a first dimension of E."""


class Weights(NamedTuple):
    """A block's parameters, or a direction in them."""

    conv: Tensor
    scale: Tensor
    shift: Tensor


class Block(NamedTuple):
    """What a block's forward pass keeps."""

    source: Tensor
    """The block's input as :func:`sites.over` has it; of the first block its centred patches as
    columns with a row of ones more, [E, 9c + 1, N]."""
    z: Tensor
    r: Tensor
    """[E, 1, filters]"""
    d: Tensor
    """[E, N, filters]; of the first block the covariance of its patches, [E, 9c, 9c]."""


class Slopes(NamedTuple):
    """What a block's backward pass keeps."""

    gu: Tensor
    """[E, N, filters]; of the first block, where nothing reads it again, [E, 0]."""
    gscale: Tensor
    gshift: Tensor
    gy: Tensor
    """[E, N, filters]; of the first block gu' patches, [E, filters, 9c]."""


class Tangent(NamedTuple):
    """What the tangent of a block's forward pass keeps."""

    lift: Tensor
    """[E, 1, filters], tangent of s."""
    mu: Tensor
    """[E, 1, filters], mean of a x, where a is the tangent of y and x = r d."""
    gu_dq: Tensor
    """[E, 1, filters], sum of gu times the tangent of x."""
    am: Tensor | None = None
    """[E, 1, filters], mean of a; this and what follows not of the first block."""
    a: Tensor | None = None
    conv: Tensor | None = None
    """Of the tangent of the gradient in w.conv what the tangent of the block's input adds."""


def rows(params: Sequence[Tensor]) -> list[Tensor]:
    """Parameters of E networks as the functions here take them, or gradients in them.

    Convolutions [E, filters, channels, 3, 3] as rows [E, filters, 9c], scales and shifts
    [E, filters] as [E, 1, filters], a head as it is. Any other leading dimensions will do.
    """
    blocks = len(params) // 3 * 3
    found = [x.unsqueeze(-2) if i % 3 else sites.rows(x) for i, x in enumerate(params[:blocks])]
    return [*found, *params[blocks:]]


def unrows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`rows`; convolutions in channels-last layout."""
    blocks = len(tensors) // 3 * 3
    found = [x.squeeze(-2) if i % 3 else sites.unrows(x) for i, x in enumerate(tensors[:blocks])]
    return [*found, *tensors[blocks:]]


def forward(
    images: Tensor, labels: Tensor | None, params: Sequence[Tensor], form: Form
) -> tuple[Tensor, Kept]:
    """Losses [E], or without labels features [E, n, k], of images [E, n, channels, h, w].

    ``params``: for each block a convolution, a scale and a shift as :func:`rows` has them; with
    labels [E, n] also the head's, [E, classes, k] and [E, classes].
    """
    w = _weights(params)
    block = _first_forward(images, w[0])
    kept = list(block)
    for one in w[1:]:
        block = _forward(block.z, one)
        kept += block
    f = _features(block.z, form)
    if labels is None:
        return f, [*kept, f]
    value, p, e = head.forward(f, labels, params[-2], params[-1])
    return value, [*kept, f, p, e]


def gradient(
    kept: Kept,
    g: Tensor,
    params: Sequence[Tensor],
    form: Form,
    total: bool = False,
    again: bool = True,
) -> tuple[list[Tensor], Kept]:
    """Gradients in the parameters, in their order, of the sum over networks of losses times g [E]
    (or features times g [E, n, k]), and what the blocks keep of the way.

    With ``total`` their sums over networks, without the dimension of E. Where ``kept`` is not read
    ``again`` it is emptied, so that its memory is free as soon as it may be, and nothing is kept.
    """
    w, blocks = _weights(params), _blocks(kept, len(params))
    f, *rest = kept[4 * len(blocks) :]
    out: list[Tensor] = []
    if rest:
        gw, gb, g = head.backward(g, f, rest[1], params[-2])
        out = _summed(total, gw, gb)
    gu = _features_grad(g, blocks[-1].z, form)
    if not again:
        kept.clear()
    slopes: list[Tensor] = []
    for i in range(len(w) - 1, -1, -1):
        block = blocks.pop()
        if i:
            slope = _backward(block, w[i], gu)
            gconv = sites.weight_grad(block.source, slope.gy, total=total)
        else:
            slope, gconv = _first_backward(block, w[0], gu)
            (gconv,) = _summed(total, gconv)
        if again:
            slopes[:0] = slope
        out[:0] = [gconv, *_summed(total, slope.gscale, slope.gshift)]
        if i:
            pair = slope.gy, w[i].conv
            del block, slope, gu
            gu = sites.input_grad(blocks[-1].z, pair, again=again)
    return out, slopes


def alone(
    images: Tensor, labels: Tensor, params: Sequence[Tensor], form: Form
) -> tuple[Tensor, list[Tensor]]:
    """Losses [E] and gradients in ``params`` [E, ...], as a network has them; nothing is kept."""
    w = rows(params)
    values, kept = forward(images, labels, w, form)
    grads, _ = gradient(kept, torch.ones_like(values), w, form, again=False)
    return values, unrows(grads)


def product(
    kept: Kept,
    slopes: Kept,
    g: Tensor,
    params: Sequence[Tensor],
    along: Sequence[Tensor],
    form: Form,
    total: bool = False,
    again: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Tangents along a direction in the parameters: of the losses [E] (features), and of
    :func:`gradient` at a fixed g, with ``total`` as there; where ``kept`` and ``slopes`` are not
    read ``again`` they are emptied."""
    w, v, blocks = _weights(params), _weights(along), _blocks(kept, len(params))
    back = [Slopes(*slopes[i : i + 4]) for i in range(0, len(slopes), 4)]
    f, *rest = kept[4 * len(blocks) :]
    dz, first = _first_tangent(blocks[0], back[0], w[0], v[0])
    tangents = [first]
    for i in range(1, len(w)):
        dz, along_way = _tangent(blocks[i], back[i], dz, w[i], v[i], total)
        tangents.append(along_way)
    df = _features(dz, form)
    out: list[Tensor] = []
    dgu: Tensor | None = None
    dg = df
    if rest:
        dg, dw, db, dgf = head.product(
            g, f, rest[0], rest[1], params[-2], along=(df, along[-2], along[-1])
        )
        out, dgu = _summed(total, dw, db), _features_grad(dgf, blocks[-1].z, form)
    if not again:
        kept.clear()
        slopes.clear()
    for i in range(len(w) - 1, -1, -1):
        block, slope, tangent = blocks.pop(), back.pop(), tangents.pop()
        if i:
            grad, dgy = _backward_tangent(block, slope, tangent, w[i], dgu, total)
            del block, tangent, dgu
            pairs = (dgy, w[i].conv), (slope.gy, v[i].conv)
            dgu = sites.input_grad(blocks[-1].z, *pairs, again=again)
        else:
            grad = _first_backward_tangent(block, slope, tangent, w[0], v[0], dgu)
            grad = Weights(*_summed(total, *grad))
        out[:0] = grad
    return dg, out


def _summed(total: bool, *tensors: Tensor) -> list[Tensor]:
    """Over networks, where ``total``."""
    return [x.sum(0) for x in tensors] if total else list(tensors)


def _weights(tensors: Sequence[Tensor]) -> list[Weights]:
    return [Weights(*tensors[i : i + 3]) for i in range(0, len(tensors) // 3 * 3, 3)]


def _blocks(kept: Kept, params: int) -> list[Block]:
    return [Block(*kept[4 * i : 4 * i + 4]) for i in range(params // 3)]


def _forward(x: Tensor, w: Weights) -> Block:
    """A block on maps x."""
    source, d = sites.over(x, w.conv)
    d.sub_(d.mean(1, keepdim=True))
    r = (d * d).mean(1, keepdim=True).add_(EPS).rsqrt_()
    z = torch.addcmul(w.shift, d, r * w.scale).relu_()
    return Block(source, _as_map(z, x), r, d)


def _as_map(z: Tensor, x: Tensor) -> Tensor:
    """[E, N, filters] as the map of a block whose input is x [E, n, h, w, c]."""
    e, n, h, w, _ = x.shape
    return z.view(e, n, -(-h // 2), -(-w // 2), -1)


def _backward(kept: Block, w: Weights, gu: Tensor) -> Slopes:
    d, r = kept.d, kept.r
    gshift = gu.sum(1, keepdim=True)
    gscale = (gu * d).sum(1, keepdim=True).mul_(r)
    s = r * w.scale
    c = s * (-1 / d.shape[1])
    gy = torch.addcmul(c * gshift, d, c.mul_(r).mul_(gscale)).addcmul_(gu, s)
    return Slopes(gu, gscale, gshift, gy)


def _tangent(
    kept: Block, slopes: Slopes, dx: Tensor, w: Weights, v: Weights, total: bool
) -> tuple[Tensor, Tangent]:
    """Tangent of :func:`_forward` along (dx, v): of z, and what the way back needs."""
    d, r = kept.d, kept.r
    source, a = sites.over(dx, w.conv)
    dconv = sites.weight_grad(source, slopes.gy, total=total)
    del source  # of all that is made here the largest
    sites.conv(kept.source, v.conv, add=a)
    am = a.mean(1, keepdim=True)
    mu = (a * d).mean(1, keepdim=True).mul_(r)
    s = r * w.scale
    lift = torch.addcmul(v.scale, s, mu, value=-1).mul_(r)
    du = torch.addcmul(torch.addcmul(v.shift, s, am, value=-1), a, s).addcmul_(d, lift)
    gu_dq = (slopes.gu * a).sum(1, keepdim=True).addcmul_(am, slopes.gshift, value=-1)
    gu_dq.addcmul_(mu, slopes.gscale, value=-1).mul_(r)
    dz = sites.mask(du, kept.z).view(kept.z.shape)
    return dz, Tangent(lift, mu, gu_dq, am, a, dconv)


def _backward_tangent(
    kept: Block, slopes: Slopes, along: Tangent, w: Weights, dgu: Tensor | None, total: bool
) -> tuple[Weights, Tensor]:
    """Tangents of the parameters' gradients, with ``total`` their sums over networks, and of
    gy."""
    assert along.am is not None and along.a is not None and along.conv is not None
    d, r, n = kept.d, kept.r, kept.d.shape[1]
    s, lift = r * w.scale, along.lift
    dgshift, dgscale = torch.zeros_like(r), along.gu_dq
    if dgu is not None:
        dgshift = dgu.sum(1, keepdim=True)
        dgscale = torch.addcmul(dgscale, (dgu * d).sum(1, keepdim=True), r)
    bend = (s * r).mul_(slopes.gscale).mul_(1 / n)
    sn, liftn = s * (1 / n), lift * (1 / n)
    const = (bend * along.am).addcmul_(liftn, slopes.gshift, value=-1)
    const.addcmul_(sn, dgshift, value=-1)
    slope = (bend * along.mu).addcmul_(liftn, slopes.gscale, value=-1)
    slope.addcmul_(sn, dgscale, value=-1).mul_(r)
    dgy = torch.addcmul(const, d, slope).addcmul_(along.a, bend, value=-1)
    dgy.addcmul_(slopes.gu, lift)
    if dgu is not None:
        dgy.addcmul_(dgu, s)
    dconv = sites.weight_grad(kept.source, dgy, add=along.conv, total=total)
    return Weights(dconv, *_summed(total, dgscale, dgshift)), dgy


def _source(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centred patches of images [E, n, c, h, w] as columns, with a row of ones more,
    [E, 9c + 1, N]; their covariance [E, 9c, 9c]."""
    table = sites.patches(images, extra=1)
    table[:, -1] = 1.0
    # Plain sums over mostly equal values drift in float32: moments of strokes on black need more.
    exact = table.double()
    moments = torch.bmm(exact, exact.mT).div_(table.shape[2])
    mean = moments[:, :-1, -1:]
    covariance = (moments[:, :-1, :-1] - mean * mean.mT).to(table.dtype)
    table[:, :-1] -= mean.to(table.dtype)
    return table, covariance


def _first_forward(images: Tensor, w: Weights) -> Block:
    table, covariance = remembered(_source, images)
    r = (torch.bmm(w.conv, covariance) * w.conv).sum(2).add_(EPS).rsqrt_().unsqueeze(1)
    z = torch.bmm(table.mT, _columns((r * w.scale).mT * w.conv, w.shift)).relu_()
    return Block(table, _as_map(z, images.movedim(2, -1)), r, covariance)


def _first_backward(kept: Block, w: Weights, gu: Tensor) -> tuple[Slopes, Tensor]:
    """Slopes and the gradient in w.conv."""
    sums, gshift = _sums(kept.source, gu)
    gscale = kept.r * (w.conv * sums).sum(2).unsqueeze(1)
    s = kept.r * w.scale
    gconv = s.mT * sums - (s * kept.r * gscale).mT * torch.bmm(w.conv, kept.d)
    return Slopes(gu.new_empty(len(gu), 0), gscale, gshift, sums), gconv


def _first_tangent(kept: Block, slopes: Slopes, w: Weights, v: Weights) -> tuple[Tensor, Tangent]:
    r, sums = kept.r, slopes.gy
    s = r * w.scale
    mu = r * (v.conv * torch.bmm(w.conv, kept.d)).sum(2).unsqueeze(1)
    lift = torch.addcmul(v.scale, s, mu, value=-1).mul_(r)
    mix = (s.mT * v.conv).addcmul_(lift.mT, w.conv)
    du = torch.bmm(kept.source.mT, _columns(mix, v.shift))
    gu_dq = r * ((v.conv * sums).sum(2).unsqueeze(1) - mu * slopes.gscale)
    return sites.mask(du, kept.z).view(kept.z.shape), Tangent(lift, mu, gu_dq)


def _first_backward_tangent(
    kept: Block, slopes: Slopes, along: Tangent, w: Weights, v: Weights, dgu: Tensor | None
) -> Weights:
    r, sums = kept.r, slopes.gy
    s, lift = r * w.scale, along.lift
    dgshift, dgscale = torch.zeros_like(along.mu), along.gu_dq
    dconv = lift.mT * sums
    if dgu is not None:
        dsums, dgshift = _sums(kept.source, dgu)
        dgscale = dgscale + r * (w.conv * dsums).sum(2).unsqueeze(1)
        dconv.addcmul_(s.mT, dsums)
    bend = s * r * slopes.gscale
    slope = r * (bend * along.mu - lift * slopes.gscale - s * dgscale)
    dconv.add_(torch.bmm(slope.mT * w.conv - bend.mT * v.conv, kept.d))
    return Weights(dconv, dgscale, dgshift)


def _columns(conv: Tensor, shift: Tensor) -> Tensor:
    """Weights [E, filters, 9c] and what the row of ones adds, as columns [E, 9c + 1,
    filters]."""
    return torch.cat((conv.mT, shift), 1)


def _sums(table: Tensor, gu: Tensor) -> tuple[Tensor, Tensor]:
    """gu' patches, [E, filters, 9c], and the sum of gu, [E, 1, filters]."""
    total = torch.bmm(table, gu)
    return total[:, :-1].mT, total[:, -1:]


def _features(z: Tensor, form: Form) -> Tensor:
    """[E, n, features] of the last block's map."""
    return z.mean((2, 3)) if form.mean else z.permute(0, 1, 4, 2, 3).flatten(2)


def _features_grad(gf: Tensor, z: Tensor, form: Form) -> Tensor:
    """Gradient before the last block's ReLU, [E, N, filters]; a new tensor."""
    e, n, h, w, filters = z.shape
    if form.mean:
        back = (gf / (h * w))[:, :, None, None].expand(z.shape)
    else:
        back = gf.view(e, n, filters, h, w).permute(0, 1, 3, 4, 2)
    return sites.mask(back.clone(memory_format=torch.contiguous_format).flatten(1, 3), z)
