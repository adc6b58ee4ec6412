"""MAML's gradient by hand, without autograd: plain gradient steps and back.

Back through a step theta' = theta - rate * gradient, a gradient v in theta' is v - rate * H v in
theta: a recursion over the sweeps of :mod:`strided`, which take E episodes at once, or of
:mod:`pooled`, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from . import pooled, strided
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
    if not form.pool:
        theta = [p.expand(e, *p.shape) for p in strided.rows(params)]
        values, total = _there_and_back(strided, theta, inner, outer, rate, form, second_order)
        return values, strided.unrows(total)
    theta, values, total = pooled.rows(params), outer[0].new_empty(e), []
    for i in range(e):
        way = [(images[i], labels[i]) for images, labels in inner]
        one = outer[0][i], outer[1][i]
        values[i], grads = _there_and_back(pooled, theta, way, one, rate, form, second_order)
        total = [a.add_(b) for a, b in zip(total, grads, strict=True)] if total else grads
    return values, pooled.unrows(total)


def _there_and_back(
    sweeps: ModuleType,
    theta: Sequence[Tensor],
    inner: Sequence[tuple[Tensor, Tensor]],
    outer: tuple[Tensor, Tensor],
    rate: float,
    form: Form,
    second_order: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The same of parameters as :mod:`strided` has them, for several networks, or :mod:`pooled`,
    for one: then no tensor has a dimension of E."""
    one = outer[0].new_ones(outer[1].shape[:-1])
    summed = {"total": True} if one.dim() else {}
    way = []
    for images, labels in inner:
        _, kept = sweeps.forward(images, labels, theta, form)
        g, slopes = sweeps.gradient(kept, one, theta, form, again=second_order)
        if second_order:
            way.append((theta, kept, slopes))
            theta = list(torch._foreach_add(list(theta), g, alpha=-rate))
        else:  # nothing reads the gradient again: theta takes its place
            theta = [torch.add(p, x, alpha=-rate, out=x) for p, x in zip(theta, g, strict=True)]
        del kept, slopes, g  # before the next sweep takes as much again
    value, kept = sweeps.forward(*outer, theta, form)
    v, _ = sweeps.gradient(kept, one, theta, form, again=False, **({} if way else summed))
    del kept, theta, _
    while way:
        at, kept, slopes = way.pop()
        last = {} if way else summed
        _, product = sweeps.product(kept, slopes, one, at, v, form, again=False, **last)
        v = [x.sum(0) for x in v] if last else v
        torch._foreach_add_(v, product, alpha=-rate)
    return value, v


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Have the C library keep for the next sweep what this one frees.

    glibc gives large blocks back to the system, and a step would spend a sixth of its time on
    getting them again page by page. From which size on follows the largest block that was freed, up
    to 32 MiB (mallopt(3), M_MMAP_THRESHOLD); this one is never written to, and takes no memory.
    """
    torch.empty(30 << 20, dtype=torch.uint8)
