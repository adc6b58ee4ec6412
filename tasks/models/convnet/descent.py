"""MAML's gradient for strided networks by hand, without autograd: plain gradient steps and back.

Back through a step theta' = theta - rate * gradient, a gradient v in theta' is v - rate * H v in
theta: a recursion over the sweeps of :mod:`strided`, which take E episodes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import strided
from .convolution import Form


def meta_gradients(
    params: Sequence[Tensor],
    inner: Sequence[tuple[Tensor, Tensor]],
    outer: tuple[Tensor, Tensor],
    rate: float,
    form: Form,
    second_order: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Losses [E] on ``outer`` after a step on each of ``inner``; their gradients in ``params``,
    summed over the episodes.

    ``inner`` and ``outer``: images [E, n, channels, h, w] and labels [E, n]. Without
    ``second_order`` the gradients of steps are constants.
    """
    _keep_freed_memory()
    e = len(outer[0])
    one = outer[0].new_ones(e)
    theta = [p.expand(e, *p.shape) for p in strided.rows(params)]
    way = []
    for images, labels in inner:
        _, kept = strided.forward(images, labels, theta, form)
        g, slopes = strided.gradient(kept, one, theta, form, again=second_order)
        if second_order:
            way.append((theta, kept, slopes))
        if second_order:
            theta = list(torch._foreach_add(theta, g, alpha=-rate))
        else:  # nothing reads the gradient again: theta takes its place
            theta = [torch.add(p, x, alpha=-rate, out=x) for p, x in zip(theta, g, strict=True)]
        del kept, slopes, g  # before the next sweep takes as much again
    value, kept = strided.forward(*outer, theta, form)
    v, _ = strided.gradient(kept, one, theta, form, total=not way, again=False)
    del kept, theta, _
    while way:
        at, kept, slopes = way.pop()
        first = not way
        _, product = strided.product(kept, slopes, one, at, v, form, total=first, again=False)
        v = [x.sum(0) for x in v] if first else v
        torch._foreach_add_(v, product, alpha=-rate)
    return value, strided.unrows(v)


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Have the C library keep for the next sweep what this one frees.

    glibc gives large blocks back to the system, and a step would spend a sixth of its time on
    getting them again page by page. From which size on follows the largest block that was freed, up
    to 32 MiB (mallopt(3), M_MMAP_THRESHOLD); this one is never written to, and takes no memory.
    """
    torch.empty(30 << 20, dtype=torch.uint8)
