"""Convolutions of 3x3 and stride 2 on maps of E networks, [E, n, h, w, channels].

Each network has weights of its own, [E, filters, 9c], rows ordered by (row, column, channel); those
that are expanded over E are one for all. As in :mod:`convolution`, the patch matrix stands for a
small map, the library's calls for a large one: these take networks one by one, but for convolutions
with the same weights.

Patches of a map are rows of pixels side by side, and the gradient in a pixel is the sum of rows of
gradients in patches. Both are an embedding bag, which on a CPU takes half the time of strided
copies, and with one product 0.3 (maps of 4x4) to 0.8 (14x14) of that of the library's gradient in
the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from . import convolution
from .convolution import buffer, library_gradient

_aten = torch.ops.aten


def rows(weight: Tensor) -> Tensor:
    """[E, filters, c, 3, 3] as [E, filters, 9c]; a view where the layout is channels-last."""
    return weight.movedim(-3, -1).flatten(-3)


def unrows(matrix: Tensor) -> Tensor:
    """[E, filters, 9c] as [E, filters, c, 3, 3] in channels-last layout."""
    taps: Tensor = matrix.unflatten(-1, (3, 3, -1))  # untyped in torch
    return taps.movedim(-1, -3)


def patches(images: Tensor, extra: int = 0) -> Tensor:
    """The 3x3 neighbourhoods of the output pixels of images [E, n, c, h, w], as columns
    [E, 9c + extra, N]: of few channels long rows are cheaper than many, to make and to multiply.

    The ``extra`` rows are left for the caller to fill.
    """
    e, n, c, h, w = images.shape
    out = -(-h // 2), -(-w // 2)
    padded = buffer("padded", (e, n, c, h + 2, w + 2), images)
    padded[..., 1:-1, 1:-1] = images  # the border stays zero
    network, image, channel, row, pixel = padded.stride()
    found = images.new_empty(e, 9 * c + extra, n * out[0] * out[1])
    shape = e, 3, 3, c, n, *out
    view = padded.as_strided(shape, (network, row, pixel, channel, image, 2 * row, 2 * pixel))
    found[:, : 9 * c].view(shape).copy_(view)
    return found


def over(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What further convolutions over a map start from, and its convolution [E, N, filters].

    The first is the map's patches [E, N, 9c], or where the library's calls are cheaper the map
    itself.
    """
    if _is_large(x):
        return x, conv(x, w)
    e, n, h, wide, c = x.shape
    table = _sums(x.view(-1, c), *_pixels_of_taps(e, n, h, wide)).view(e, -1, 9 * c)
    return table, conv(table, w)


def conv(source: Tensor, w: Tensor, add: Tensor | None = None) -> Tensor:
    """[E, N, filters] from what :func:`over` gave, added to ``add`` in place where given."""
    if source.dim() == 3:
        return _times(source, w.mT, add)
    if _are_one(w):
        y = conv(_as_one(source), w[:1]).view(len(source), -1, w.shape[1])
        return y if add is None else add.add_(y)
    each = (
        F.conv2d(x.permute(0, 3, 1, 2), k, None, 2, 1).permute(0, 2, 3, 1).flatten(0, 2)
        for x, k in zip(source, unrows(w), strict=True)
    )
    return _beside(each, len(w), add)


def weight_grad(
    source: Tensor, gy: Tensor, add: Tensor | None = None, total: bool = False
) -> Tensor:
    """[E, filters, 9c], added to ``add`` in place where given; with ``total`` the sum over
    networks, [filters, 9c]."""
    if source.dim() == 3:
        if not total:
            return _times(gy.mT, source, add)
        source, gy = source.flatten(0, 1), gy.flatten(0, 1)
        return gy.t() @ source if add is None else add.addmm_(gy.t(), source)
    weight = gy.new_empty(1).expand(gy.shape[2], source.shape[4], 3, 3)
    each = (
        convolution.rows(library_gradient(x, g, weight, 1, 2))
        for x, g in zip(source, gy, strict=True)
    )
    if not total:
        return _beside(each, len(gy), add)
    return reduce(Tensor.add_, each if add is None else chain((add,), each))


def input_grad(z: Tensor, *pairs: tuple[Tensor, Tensor], again: bool = True) -> Tensor:
    """[E, h * w of all images, c] of the map z [E, n, h, w, c] that a ReLU gave: the gradient
    before the ReLU of the sum over (gradient in y, weight). Where z is not read ``again`` it is
    overwritten."""
    e, n, h, wide, c = z.shape
    gy, w = pairs[0]
    if _is_large(z):
        if len(pairs) > 1:  # one convolution with the filters of all
            gy, w = torch.cat([g for g, _ in pairs], 2), torch.cat([k for _, k in pairs], 1)
        each = (
            library_gradient(one, g, k, 0, 2).permute(0, 2, 3, 1).flatten(0, 2)
            for one, g, k in zip(z, gy, unrows(w), strict=True)
        )
        out = (torch.empty_like(z) if again else z).flatten(1, 3)
        for place, one in zip(out, z, strict=True):
            mask(next(each), one, place)  # named, it would live on beside the next one
        return out
    # Products with every tap, of which each pixel of the map takes the sum of its own.
    found = torch.bmm(gy, w)
    for gy, w in pairs[1:]:
        found.baddbmm_(gy, w)
    taps, ends = _taps_of_pixels(e, n, h, wide)
    return mask(_sums(found.view(-1, c), taps, ends).view(e, -1, c), z)


def mask(g: Tensor, z: Tensor, out: Tensor | None = None) -> Tensor:
    """g where the map z > 0, else 0, in place or into ``out``: both are rows [..., N, c] of z's
    pixels."""
    out = g if out is None else out
    _aten.threshold_backward.grad_input(g, z.view(g.shape), 0, grad_input=out)
    return out


def _are_one(w: Tensor) -> bool:
    """Whether several networks have the same weights."""
    return len(w) > 1 and w.stride(0) == 0


def _as_one(x: Tensor) -> Tensor:
    """Of several networks, as of one that has the images of all."""
    return x.flatten(0, 1).unsqueeze(0)


def _is_large(x: Tensor) -> bool:
    """Whether a map [E, n, h, w, c] has so many output pixels that the library is cheaper."""
    _, n, h, w, _ = x.shape
    return bool(n * -(-h // 2) * -(-w // 2) > convolution.UNROLL_ROWS)


def _sums(rows: Tensor, index: Tensor, ends: Tensor) -> Tensor:
    """Sums of rows [N, c]: of those that ``index`` names from one of ``ends`` to the next."""
    return torch.embedding_bag(rows, index, ends, include_last_offset=True)[0]


@lru_cache(maxsize=64)
def _pixels_of_taps(e: int, n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """For :func:`_sums` over E maps [n, h, w]: the pixel at each tap of the patches, none where
    that is beyond the border."""
    pixels = _pixels(e, n, h, w)
    inside = pixels >= 0
    return pixels[inside], _ends(inside)


@lru_cache(maxsize=64)
def _taps_of_pixels(e: int, n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The other way round: of each pixel the taps at which it is."""
    pixels = _pixels(e, n, h, w)
    outside = int((pixels < 0).sum())
    taps = pixels.argsort(stable=True)[outside:].int()
    return taps, _ends(pixels[taps].bincount(minlength=e * n * h * w))


def _pixels(e: int, n: int, h: int, w: int) -> Tensor:
    """Of E maps [n, h, w], the pixel at each tap of the patches; -1 beyond the border."""
    padded = torch.full((e * n, h + 2, w + 2), -1, dtype=torch.int32)
    padded[:, 1:-1, 1:-1] = torch.arange(e * n * h * w).view(-1, h, w)
    steps = ((i, j) for i in range(3) for j in range(3))
    return torch.stack([padded[:, i : i + h : 2, j : j + w : 2] for i, j in steps], -1).flatten()


def _ends(counts: Tensor) -> Tensor:
    """Where groups of so many begin, and the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0)).int()


def _times(a: Tensor, b: Tensor, add: Tensor | None) -> Tensor:
    """Products network by network, added to ``add`` in place where given."""
    return torch.bmm(a, b) if add is None else add.baddbmm_(a, b)


def _beside(each: Iterator[Tensor], networks: int, add: Tensor | None) -> Tensor:
    """Stacked, or added to ``add``; of several networks only one lies beside the result at a
    time."""
    if add is not None:
        for place, x in zip(add, each, strict=True):
            place.add_(x)
        return add
    first = next(each)
    if networks == 1:
        return first.contiguous().unsqueeze(0)
    out = first.new_empty(networks, *first.shape)
    out[0] = first
    for place, x in zip(out[1:], each, strict=True):
        place.copy_(x)
    return out
