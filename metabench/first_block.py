"""The first block, by hand: from the patches of the images and their covariance.

The images are data, so the moments of every convolution output, and what batch norm adds to the
weight's gradient, follow from a [9c, 9c] matrix that is computed once for a batch of images: no
pass over the block's map for statistics. Symbols as in :mod:`metabench.blocks`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metabench.blocks import EPS, Block, Slopes, Tangent, Weights, mask_, pool, put
from metabench.convolution import Form, buffer, patches

BUFFER_BYTES = 1 << 20
"""What a pooled block works on at a time: about what a core's own cache holds."""

_local = threading.local()


def source(images: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Centred patches of images [n, c, h, w] and a column of ones, [N, 9c + 1]; their covariance
    [9c, 9c].

    Remembers the last two batches of this thread: every inner step reads the same ones.
    """
    recent: list[Any] = _local.__dict__.setdefault("recent", [])
    for known, version, known_form, found in recent:
        if known is images and version == images._version and known_form == form:
            return found  # type: ignore[no-any-return]
    table = patches(images.permute(0, 2, 3, 1), form, extra=1)
    table[:, -1] = 1.0
    k = table[:, :-1]
    # Plain sums over mostly equal values drift in float32: moments of strokes on black need more.
    k -= k.mean(0, dtype=torch.float64).to(k.dtype)
    exact = k.double()
    covariance = (exact.t() @ exact).div_(k.shape[0]).to(k.dtype)
    recent[:] = [*recent[-1:], (images, images._version, form, (table, covariance))]
    return table, covariance


def forward(images: Tensor, w: Weights, form: Form) -> Block:
    """The block on images [n, c, h, w]."""
    table, covariance = source(images, form)
    n = images.shape[0]
    h, wide = form.out_size(images.shape[2]), form.out_size(images.shape[3])
    r = ((w.conv @ covariance) * w.conv).sum(1).add_(EPS).rsqrt_()
    s = r * w.scale
    if not form.pool:
        z = (table @ _columns(s[:, None] * w.conv, w.shift)).relu_()
        return Block(z.view(n, h, wide, -1), r, table, covariance=covariance)
    z = table.new_empty(n, h, wide, w.conv.shape[0])
    winners = table.new_empty(z.shape, dtype=torch.int64)
    for dense, part in _pieces(table, _columns(w.conv, torch.zeros_like(s)), images.shape, form):
        pool(dense, w.scale, (z[part], winners[part]))
        torch.addcmul(w.shift, z[part], s, out=z[part]).relu_()
    winners = winners.view(n, h * wide, -1)
    return Block(z, r, table, winners=winners, covariance=covariance)


def backward(
    kept: Block, shape: torch.Size, w: Weights, gz: Tensor, form: Form
) -> tuple[Slopes, Tensor]:
    """Slopes and the gradient in w.conv; ``shape`` is the images'; ``gz`` is overwritten."""
    assert kept.covariance is not None
    gu = mask_(gz, kept.z)
    sums, gshift = _sums(kept, shape, gu, form)
    gscale = kept.r * (w.conv * sums).sum(1)
    s = kept.r * w.scale
    gconv = s[:, None] * sums - (s * kept.r * gscale)[:, None] * (w.conv @ kept.covariance)
    return Slopes(gu, gscale, gshift, sums=sums), gconv


def tangent(
    kept: Block, slopes: Slopes, w: Weights, v: Weights, shape: torch.Size, form: Form
) -> Tangent:
    """Tangent of :func:`forward` along v."""
    assert kept.covariance is not None and slopes.sums is not None and kept.table is not None
    r = kept.r
    s = r * w.scale
    mu = r * (v.conv * (w.conv @ kept.covariance)).sum(1)
    lift = torch.addcmul(v.scale, s, mu, value=-1).mul_(r)
    mix = _columns((s[:, None] * v.conv).addcmul_(lift[:, None], w.conv), v.shift)
    if kept.winners is None:
        du = kept.table @ mix
    else:
        du = torch.empty_like(slopes.gu)
        picked = du.view(kept.winners.shape)
        for dense, part in _pieces(kept.table, mix, shape, form):
            flat = dense.view(dense.shape[0], -1, dense.shape[3])
            torch.gather(flat, 1, kept.winners[part], out=picked[part])
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
    form: Form,
) -> Weights:
    """Tangent of :func:`backward` along what ``along`` was computed for and dgz (overwritten)."""
    assert kept.covariance is not None and slopes.sums is not None
    r = kept.r
    s, lift = r * w.scale, along.lift
    dgshift, dgscale = torch.zeros_like(along.mu), along.gu_dq
    dconv = lift[:, None] * slopes.sums
    if dgz is not None:
        dsums, dgshift = _sums(kept, shape, mask_(dgz, kept.z), form)
        dgscale = dgscale + r * (w.conv * dsums).sum(1)
        dconv.addcmul_(s[:, None], dsums)
    bend = s * r * slopes.gscale
    slope = r * (bend * along.mu - lift * slopes.gscale - s * dgscale)
    dconv.add_((slope[:, None] * w.conv - bend[:, None] * v.conv) @ kept.covariance)
    return Weights(dconv, dgscale, dgshift)


def _columns(conv: Tensor, shift: Tensor) -> Tensor:
    """Weights [filters, 9c] and what the column of ones adds, as columns [9c + 1, filters]."""
    return torch.cat((conv.t(), shift[None]))


def _at_once(filters: int, pixels: int, like: Tensor) -> int:
    """Images whose maps fit the buffer."""
    return max(1, BUFFER_BYTES // (filters * pixels * like.element_size()))


def _pieces(
    table: Tensor, columns: Tensor, shape: torch.Size, form: Form
) -> Iterator[tuple[Tensor, slice]]:
    """The product as maps [a few images, h, w, filters] in one buffer, and which images."""
    n, h, wide = shape[0], form.conv_size(shape[2]), form.conv_size(shape[3])
    filters, pixels = columns.shape[1], h * wide
    step = _at_once(filters, pixels, table)
    for start in range(0, n, step):
        stop = min(n, start + step)
        dense = buffer("first", (step * pixels, filters), table)[: (stop - start) * pixels]
        torch.mm(table[start * pixels : stop * pixels], columns, out=dense)
        yield dense.view(stop - start, h, wide, filters), slice(start, stop)


def _sums(kept: Block, shape: torch.Size, gu: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """put(gu)' patches, [filters, 9c], and the sum of gu, [filters]."""
    table, filters = kept.table, gu.shape[1]
    assert table is not None
    if kept.winners is None:
        total = table.t() @ gu
    else:
        n, pixels = shape[0], form.conv_size(shape[2]) * form.conv_size(shape[3])
        step = _at_once(filters, pixels, table)
        values = gu.view(n, -1, filters)
        total = table.new_zeros(table.shape[1], filters)
        for start in range(0, n, step):
            stop = min(n, start + step)
            dense = buffer("first", (step * pixels, filters), table)[: (stop - start) * pixels]
            put(dense.zero_(), kept.winners[start:stop], values[start:stop])
            total.addmm_(table[start * pixels : stop * pixels].t(), dense)
    return total[:-1].t(), total[-1]
