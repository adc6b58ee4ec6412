"""A convolution block's values and gradients, and the tangents of both, by hand.

A block is a 3x3 convolution without bias, batch norm with the statistics of the batch, a 2x2
max-pool, and ReLU. Plain functions on tensors, for CPUs;
:mod:`metabench.tasks.models.convnet.fused` makes autograd functions of them. Faster than
differentiating library operations twice, because scale, shift, ReLU and what follows from them see
the data after the pool only, and because the double backward of a convolution is made of
convolutions of ordinary size.

Maps are [n, h, w, channels], or [rows, channels] where space does not matter. Symbols: y output of
the convolution, d = y - mean y, r = 1 / sqrt(mean d^2 + eps), s = r scale, p the winners of the
pool in d, u = s p + shift, z = max(u, 0), N rows in y. gz is the gradient in z, and
so on; a leading d as in dz or dgz means the tangent along a direction in input and weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .convolution import EPS, Site

_aten = torch.ops.aten


class Block(NamedTuple):
    """What a block's forward pass keeps; None where the first block has no use for it, or another
    one."""

    z: Tensor
    """[n, h, w, filters]"""
    r: Tensor
    """[filters]"""
    table: Tensor | None
    """Patches of the block's input, where the convolution goes by them."""
    winners: Tensor
    """[n, rows of z in an image, filters], positions in the map of an image."""
    d: Tensor | None = None
    """[N, filters]"""
    p: Tensor | None = None
    """[rows of z, filters]"""
    covariance: Tensor | None = None
    """[9c, 9c] of the first block's patches."""


class Slopes(NamedTuple):
    """What a block's backward pass keeps."""

    gu: Tensor
    gscale: Tensor
    gshift: Tensor
    gy: Tensor | None = None
    """[N, filters]"""
    sums: Tensor | None = None
    """First block: put(gu)' patches, [filters, 9c]."""


class Weights(NamedTuple):
    """A block's parameters, or a direction in them: conv as rows [filters, 9c], scale, shift."""

    conv: Tensor
    scale: Tensor
    shift: Tensor


class Tangent(NamedTuple):
    """What the tangent of a block's forward pass keeps."""

    dz: Tensor
    lift: Tensor
    """[filters], tangent of s."""
    mu: Tensor
    """[filters], mean of a x, where a is the tangent of y."""
    gu_dq: Tensor
    """[filters], sum of gu times the tangent of the normalised winners."""
    am: Tensor | None = None
    """[filters], mean of a."""
    a: Tensor | None = None
    """[N, filters]"""
    site: Site | None = None
    """Convolution over the tangent of the block's input."""


def signs(scale: Tensor) -> Tensor | None:
    """The signs of the scales; None where all are positive."""
    return None if bool((scale > 0).all()) else scale.sign()


def pool(y: Tensor, sign: Tensor | None, top: Tensor, where: Tensor) -> None:
    """Winners of sign * y in windows of 2x2: values of y into ``top``, positions in the map into
    ``where``.

    y is [n, filters, h, w], both outputs are [n, filters, h // 2, w // 2], all channels-last.
    """
    signed = y if sign is None else y * sign[:, None, None]
    _aten.max_pool2d_with_indices.out(signed, [2, 2], out=top, indices=where)
    if sign is not None:
        torch.gather(channels_last(y), 1, channels_last(where), out=channels_last(top))


def channels_last(maps: Tensor) -> Tensor:
    """[n, filters, h, w] in channels-last layout as [n, h * w, filters], a view."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def pick(dense: Tensor, winners: Tensor) -> Tensor:
    """[N, filters] at the winners, [rows of z, filters]."""
    n, _, filters = winners.shape
    return dense.view(n, -1, filters).gather(1, winners).view(-1, filters)


def put(dense: Tensor, winners: Tensor, values: Tensor) -> Tensor:
    """Add ``values`` [rows of z, filters] to ``dense`` [N, filters] at the winners, in place."""
    n, _, filters = winners.shape
    dense.view(n, -1, filters).scatter_add_(1, winners, values.view(n, -1, filters))
    return dense


def mask_(g: Tensor, z: Tensor) -> Tensor:
    """g where z > 0, else 0, in place; as [rows of z, filters]."""
    g = g.view(-1, z.shape[3])
    _aten.threshold_backward.grad_input(g, z.view(-1, z.shape[3]), 0, grad_input=g)
    return g


def forward(x: Tensor, w: Weights) -> Block:
    """A block on a map x."""
    site = Site.over(x)
    d = site.conv(w.conv)
    d.sub_(d.mean(0))
    r = (d * d).mean(0).add_(EPS).rsqrt_()
    n, h, wide, _ = x.shape
    dense = d.view(n, h, wide, -1)
    p = d.new_empty(n, h // 2, wide // 2, d.shape[1])
    winners = d.new_empty(p.shape, dtype=torch.int64)
    y, top, where = (x.permute(0, 3, 1, 2) for x in (dense, p, winners))
    pool(y, signs(w.scale), top, where)
    shape, p, winners = p.shape, p.view(-1, d.shape[1]), winners.flatten(1, 2)
    z = torch.addcmul(w.shift, p, r * w.scale).relu_()
    return Block(z.view(shape), r, site.table, winners, d, p)


def backward(
    kept: Block, x: Tensor, w: Weights, gz: Tensor, again: bool = True
) -> tuple[Slopes, Tensor, Tensor]:
    """Slopes, gradient in w.conv, gradient in the input x; ``gz`` is overwritten, and where the
    block is not read ``again`` its d."""
    site, d, r = Site(x, kept.table), kept.d, kept.r
    assert d is not None and kept.p is not None
    gu = mask_(gz, kept.z)
    gshift = gu.sum(0)
    gscale = (gu * kept.p).sum(0).mul_(r)
    s = r * w.scale
    c = s * (-1 / d.shape[0])
    level, slope = c * gshift, c.mul_(r).mul_(gscale)
    gy = torch.addcmul(level, d, slope) if again else d.mul_(slope).add_(level)
    _add_winners(gy, kept, (gu, s))
    return (Slopes(gu, gscale, gshift, gy), site.weight_grad(gy), site.input_grad((gy, w.conv)))


def tangent(kept: Block, slopes: Slopes, x: Tensor, w: Weights, dx: Tensor, v: Weights) -> Tangent:
    """Tangent of :func:`forward` along (dx, v)."""
    d, r = kept.d, kept.r
    assert d is not None and kept.p is not None
    site = Site.over(dx)
    a = Site(x, kept.table).conv(v.conv, add=site.conv(w.conv))
    am = a.mean(0)
    mu = (a * d).mean(0).mul_(r)
    picked = pick(a, kept.winners)
    s = r * w.scale
    du = torch.addcmul(torch.addcmul(v.shift, s, am, value=-1), picked, s)
    lift = torch.addcmul(v.scale, s, mu, value=-1).mul_(r)
    du.addcmul_(kept.p, lift)
    gu_dq = (slopes.gu * picked).sum(0).addcmul_(am, slopes.gshift, value=-1)
    gu_dq.addcmul_(mu, slopes.gscale, value=-1).mul_(r)
    return Tangent(mask_(du, kept.z).view_as(kept.z), lift, mu, gu_dq, am, a, site)


def backward_tangent(
    kept: Block,
    slopes: Slopes,
    along: Tangent,
    x: Tensor,
    w: Weights,
    v: Weights,
    dgz: Tensor | None,
) -> tuple[Weights, Tensor]:
    """Tangent of :func:`backward` along what ``along`` was computed for and dgz.

    Returns the tangents of the parameters' gradients and of the input's.
    """
    d, r = kept.d, kept.r
    assert d is not None and slopes.gy is not None and along.a is not None
    assert along.am is not None and along.site is not None and kept.p is not None
    s, lift = r * w.scale, along.lift
    dgshift, dgscale, terms = torch.zeros_like(r), along.gu_dq, [(slopes.gu, lift)]
    if dgz is not None:
        dgu = mask_(dgz, kept.z)
        dgshift = dgu.sum(0)
        dgscale = torch.addcmul(dgscale, (dgu * kept.p).sum(0), r)
        terms.append((dgu, s))
    bend = (s * r).mul_(slopes.gscale).mul_(1 / d.shape[0])
    sn, liftn = s * (1 / d.shape[0]), lift * (1 / d.shape[0])
    const = (bend * along.am).addcmul_(liftn, slopes.gshift, value=-1)
    const.addcmul_(sn, dgshift, value=-1)
    slope = (bend * along.mu).addcmul_(liftn, slopes.gscale, value=-1)
    slope.addcmul_(sn, dgscale, value=-1).mul_(r)
    dgy = torch.addcmul(const, d, slope).addcmul_(along.a, bend, value=-1)
    _add_winners(dgy, kept, *terms)
    here = Site(x, kept.table)
    dconv = along.site.weight_grad(slopes.gy, add=here.weight_grad(dgy))
    dgx = here.input_grad((dgy, w.conv), (slopes.gy, v.conv))
    return Weights(dconv, dgscale, dgshift), dgx


def _add_winners(dense: Tensor, kept: Block, *terms: tuple[Tensor, Tensor]) -> None:
    """dense += put(sum of a * by over the terms (a, by))."""
    (a, by), *rest = terms
    values = a * by
    for a, by in rest:
        values.addcmul_(a, by)
    put(dense, kept.winners, values)
