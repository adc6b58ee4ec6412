"""Convolutions of 3x3 on maps [n, h, w, channels]: by the library, or by products with patches.

On small maps the library's calls have a fixed cost that a product with the patch matrix has not. A
convolution weight is [filters, 9c], a row ordered by (row, column, channel).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5
"""Added to the variance in batch norm."""

UNROLL_ROWS = 512
"""Up to this many output pixels the patch matrix is the cheaper way (measured on one core)."""

_local = threading.local()
_aten = torch.ops.aten


@dataclass(frozen=True)
class Form:
    """How maps get smaller, and become features.

    ``pool``: a 2x2 max-pool ends a block; otherwise its convolution has stride 2. ``mean``:
    features are means over space; otherwise all entries, ordered (channel, row, column).
    """

    pool: bool = False
    mean: bool = False


def rows(weight: Tensor) -> Tensor:
    """[filters, c, 3, 3] as [filters, 9c]; a view where the layout is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def unrows(matrix: Tensor) -> Tensor:
    """[filters, 9c] as [filters, c, 3, 3] in channels-last layout."""
    return matrix.view(matrix.shape[0], 3, 3, -1).permute(0, 3, 1, 2)


def buffer(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor that this thread uses again and again, zeros at first; never handed to autograd."""
    held: dict[Any, Tensor] = _local.__dict__.setdefault("buffers", {})
    key = (name, shape, like.dtype)
    if key not in held:
        if len(held) >= 64:
            held.clear()
        held[key] = like.new_zeros(shape)
    return held[key]


def remembered(
    make: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor
) -> tuple[Tensor, Tensor]:
    """``make(images)``, known of the last two batches of this thread: every inner step reads the
    same ones, under vmap in a new tensor each time."""
    recent: list[Any] = _local.__dict__.setdefault("recent", [])
    for known, version, how, found in recent:
        if how is make and version == images._version and _is_same(known, images):
            return found  # type: ignore[no-any-return]
    del recent[:-1]  # before as much again is made
    new = make(images)
    recent.append((images, images._version, make, new))
    return new


def _is_same(known: Tensor, images: Tensor) -> bool:
    """Whether two tensors are one view of the same memory, which ``known`` keeps from being used
    for anything else."""
    return known is images or (
        known.data_ptr() == images.data_ptr()
        and known.dtype == images.dtype
        and known.shape == images.shape
        and known.stride() == images.stride()
    )


def patches(x: Tensor, extra: int = 0) -> Tensor:
    """The 3x3 neighbourhood of every pixel, [N, 9c + extra].

    The ``extra`` columns are left for the caller to fill.
    """
    n, h, w, c = x.shape
    padded = buffer("padded", (n, h + 2, w + 2, c), x)
    padded[:, 1:-1, 1:-1] = x  # the border stays zero
    a, b, e, _ = padded.stride()
    found = x.new_empty(n * h * w, 9 * c + extra)
    view = padded.as_strided((n, h, w, 3, 3 * c), (a, b, e, b, 1))
    found[:, : 9 * c].view(n, h, w, 3, 3 * c).copy_(view)
    return found


class Site:
    """A convolution over one map, by the library (``table`` None) or by the map's patches."""

    def __init__(self, x: Tensor, table: Tensor | None) -> None:
        self.x, self.table = x, table

    @classmethod
    def over(cls, x: Tensor) -> Site:
        """The cheaper way for a map [n, h, w, c]."""
        n, h, w, _ = x.shape
        return cls(x, patches(x) if n * h * w <= UNROLL_ROWS else None)

    def conv(self, w: Tensor, add: Tensor | None = None) -> Tensor:
        """[N, filters], added to ``add`` in place where given."""
        if self.table is not None:
            return self.table @ w.t() if add is None else add.addmm_(self.table, w.t())
        y = F.conv2d(self.x.permute(0, 3, 1, 2), unrows(w), None, 1, 1)
        y = y.permute(0, 2, 3, 1).reshape(-1, w.shape[0])
        return y if add is None else add.add_(y)

    def weight_grad(self, gy: Tensor, add: Tensor | None = None) -> Tensor:
        """[filters, 9c], added to ``add`` in place where given."""
        if self.table is not None:
            return gy.t() @ self.table if add is None else add.addmm_(gy.t(), self.table)
        shape = gy.new_empty(1).expand(gy.shape[1], self.x.shape[3], 3, 3)
        g = rows(library_gradient(self.x, gy, shape, 1))
        return g if add is None else add.add_(g)

    def input_grad(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """[n, h, w, c], new: sum over (gradient in y, weight)."""
        found = [library_gradient(self.x, gy, unrows(w), 0).permute(0, 2, 3, 1) for gy, w in pairs]
        for g in found[1:]:
            found[0].add_(g)
        return found[0].contiguous()


def library_gradient(x: Tensor, gy: Tensor, weight: Tensor, which: int, stride: int = 1) -> Tensor:
    """By the library's call: the gradient in the map ``x`` [n, h, w, c] (``which`` 0) or in the
    weight [filters, c, 3, 3] (1), of the gradient in every output pixel."""
    n, h, w, _ = x.shape
    g: Tensor = _aten.convolution_backward(
        gy.view(n, -(-h // stride), -(-w // stride), -1).permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight,
        None,
        [stride, stride],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [which == 0, which == 1, False],
    )[which]
    return g
