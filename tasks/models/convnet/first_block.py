"""The first block, by hand: from the patches of the images and their covariance.

The images are data, so the moments of every convolution output, and what batch norm adds to the
weight's gradient, follow from a [9c, 9c] matrix that is computed once for a batch of images: no
pass over the block's map for statistics. Symbols as in
:mod:`metabench.tasks.models.convnet.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .blocks import Block, Slopes, Tangent, Weights, mask_, pool, put, signs
from .convolution import EPS, buffer, patches, remembered

ROWS_AT_ONCE = 8192
"""Of patches in float64, which all at once would be the largest tensor of a step."""
BUFFER_BYTES = 1 << 20
"""What a pooled block works on at a time: about what a core's own cache holds."""


def source(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centred patches of images [n, c, h, w] and a column of ones, [N, 9c + 1]; their covariance
    [9c, 9c]."""
    table = patches(images.permute(0, 2, 3, 1), extra=1)
    table[:, -1] = 1.0
    # Plain sums over mostly equal values drift in float32: moments of strokes on black need more.
    moments = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows in table.split(ROWS_AT_ONCE):
        exact = rows.double()
        moments.addmm_(exact.t(), exact)
    moments.div_(table.shape[0])
    mean = moments[-1, :-1]
    covariance = (moments[:-1, :-1] - mean[:, None] * mean).to(table.dtype)
    table[:, :-1] -= mean.to(table.dtype)
    return table, covariance


def forward(images: Tensor, w: Weights) -> Block:
    """The block on images [n, c, h, w]."""
    table, covariance = remembered(source, images)
    n = images.shape[0]
    h, wide = images.shape[2] // 2, images.shape[3] // 2
    r = ((w.conv @ covariance) * w.conv).sum(1).add_(EPS).rsqrt_()
    s = r * w.scale
    z = table.new_empty(n, h, wide, w.conv.shape[0])
    winners = table.new_empty(z.shape, dtype=torch.int64)
    sign = signs(w.scale)
    columns, size = w.conv.t(), images.shape
    maps = z.permute(0, 3, 1, 2), winners.permute(0, 3, 1, 2)
    for dense, rows, top, where in _pieces(table[:, :-1], size, z.shape[3], *maps):
        torch.mm(rows, columns, out=dense)
        y = dense.view(len(top), size[2], -1, z.shape[3])
        pool(y.permute(0, 3, 1, 2), sign, top, where)
    torch.addcmul(w.shift, z, s, out=z).relu_()
    winners = winners.view(n, h * wide, -1)
    return Block(z, r, table, winners, covariance=covariance)


def backward(kept: Block, shape: torch.Size, w: Weights, gz: Tensor) -> tuple[Slopes, Tensor]:
    """Slopes and the gradient in w.conv; ``shape`` is the images'; ``gz`` is overwritten."""
    assert kept.covariance is not None
    gu = mask_(gz, kept.z)
    sums, gshift = _sums(kept, shape, gu)
    gscale = kept.r * (w.conv * sums).sum(1)
    s = kept.r * w.scale
    gconv = s[:, None] * sums - (s * kept.r * gscale)[:, None] * (w.conv @ kept.covariance)
    return Slopes(gu, gscale, gshift, sums=sums), gconv


def tangent(kept: Block, slopes: Slopes, w: Weights, v: Weights, shape: torch.Size) -> Tangent:
    """Tangent of :func:`forward` along v."""
    assert kept.covariance is not None and slopes.sums is not None and kept.table is not None
    r = kept.r
    s = r * w.scale
    mu = r * (v.conv * (w.conv @ kept.covariance)).sum(1)
    lift = torch.addcmul(v.scale, s, mu, value=-1).mul_(r)
    mix = _columns((s[:, None] * v.conv).addcmul_(lift[:, None], w.conv), v.shift)
    du = torch.empty_like(slopes.gu)
    maps = kept.winners, du.view(kept.winners.shape)
    for dense, rows, winners, out in _pieces(kept.table, shape, du.shape[1], *maps):
        torch.mm(rows, mix, out=dense)
        torch.gather(dense.view(len(out), -1, du.shape[1]), 1, winners, out=out)
    gu_dq = r * ((v.conv * slopes.sums).sum(1) - mu * slopes.gscale)
    return Tangent(mask_(du, kept.z).view_as(kept.z), lift, mu, gu_dq)


def backward_tangent(
    kept: Block,
    slopes: Slopes,
    along: Tangent,
    w: Weights,
    v: Weights,
    dgz: Tensor | None,
    shape: torch.Size,
) -> Weights:
    """Tangent of :func:`backward` along what ``along`` was computed for and dgz (overwritten)."""
    assert kept.covariance is not None and slopes.sums is not None
    r = kept.r
    s, lift = r * w.scale, along.lift
    dgshift, dgscale = torch.zeros_like(along.mu), along.gu_dq
    dconv = lift[:, None] * slopes.sums
    if dgz is not None:
        dsums, dgshift = _sums(kept, shape, mask_(dgz, kept.z))
        dgscale = dgscale + r * (w.conv * dsums).sum(1)
        dconv.addcmul_(s[:, None], dsums)
    bend = s * r * slopes.gscale
    slope = r * (bend * along.mu - lift * slopes.gscale - s * dgscale)
    dconv.add_((slope[:, None] * w.conv - bend[:, None] * v.conv) @ kept.covariance)
    return Weights(dconv, dgscale, dgshift)


def _columns(conv: Tensor, shift: Tensor) -> Tensor:
    """Weights [filters, 9c] and what the column of ones adds, as columns [9c + 1, filters]."""
    return torch.cat((conv.t(), shift[None]))


def _pieces(
    table: Tensor, shape: torch.Size, filters: int, *maps: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """A few images at a time: a buffer for their maps [rows, filters], their rows of the table,
    and their parts of ``maps``, [n, ...] each."""
    pixels = shape[2] * shape[3]
    step = max(1, BUFFER_BYTES // (filters * pixels * table.element_size()))
    whole = buffer("first", (step * pixels, filters), table)
    # Cut once: Python threads wait for each other at every small operation.
    parts = (torch.split(x, step) for x in maps)
    for rows, *some in zip(torch.split(table, len(whole)), *parts, strict=True):
        yield whole if len(rows) == len(whole) else whole[: len(rows)], rows, *some


def _sums(kept: Block, shape: torch.Size, gu: Tensor) -> tuple[Tensor, Tensor]:
    """put(gu)' patches, [filters, 9c], and the sum of gu, [filters]."""
    table, filters = kept.table, gu.shape[1]
    assert table is not None
    total = table.new_zeros(table.shape[1], filters)
    values = gu.view(kept.winners.shape)
    for dense, rows, winners, some in _pieces(table, shape, filters, kept.winners, values):
        total.addmm_(rows.t(), put(dense.zero_(), winners, some))
    return total[:-1].t(), total[-1]
