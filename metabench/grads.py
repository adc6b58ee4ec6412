"""Derivatives of pure functions on named tensors, by autograd or by torch.func, with one interface.

Autograd is the fast path on a CPU (and the one that Python threads can share). Inside
:func:`functional` the same calls use torch.func, so that vmap over episodes and forward mode apply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metabench.problem import Params

_local = threading.local()


@contextmanager
def functional() -> Iterator[None]:
    """Inside, derivatives are torch.func's; models must use operations that it can transform."""
    before = is_functional()
    _local.functional = True
    try:
        yield
    finally:
        _local.functional = before


def is_functional() -> bool:
    """Whether this thread is inside :func:`functional`."""
    return bool(getattr(_local, "functional", False))


def leaf(params: Params) -> Params:
    """The same values as fresh leaves that gradients stop at."""
    return {k: v.detach().requires_grad_() for k, v in params.items()}


def detach(params: Params) -> Params:
    """The same values without a graph."""
    return {k: v.detach() for k, v in params.items()}


def grad(
    f: Callable[[Params], Tensor], x: Params, *, create_graph: bool = False
) -> tuple[Tensor, Params]:
    """Value and gradient of a scalar function at ``x``; zeros for what it does not depend on.

    With ``create_graph`` the gradient can be differentiated again, in ``x`` and in whatever else
    ``f`` closes over; without it, it comes back without a graph.
    """
    if is_functional():
        at = x if create_graph else detach(x)
        g, value = torch.func.grad_and_value(f)(at)
        return value, g if create_graph else detach(g)
    at = {k: v if create_graph and v.requires_grad else v.detach().requires_grad_()
          for k, v in x.items()}
    with torch.enable_grad():
        value = f(at)
    if not value.requires_grad:
        return value, {k: torch.zeros_like(v) for k, v in x.items()}
    grads = torch.autograd.grad(
        value, list(at.values()), create_graph=create_graph, materialize_grads=True,
        allow_unused=True,
    )
    return value if create_graph else value.detach(), dict(zip(at, grads, strict=True))


def pullback(
    f: Callable[..., Any], *primals: Any
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Outputs of ``f`` at ``primals`` and the map from their cotangents to the primals'.

    Primals and outputs are nested dicts of tensors; as torch.func.vjp, with zeros for what does
    not take part. The map may be used once.
    """
    if is_functional():
        out, back = torch.func.vjp(f, *primals)
        return out, back
    flat, spec = torch.utils._pytree.tree_flatten(primals)
    leaves = [x.detach().requires_grad_() for x in flat]
    with torch.enable_grad():
        out = f(*torch.utils._pytree.tree_unflatten(leaves, spec))
    outs, out_spec = torch.utils._pytree.tree_flatten(out)

    def back(cotangents: Any) -> tuple[Any, ...]:
        given = torch.utils._pytree.tree_leaves(cotangents)
        pairs = [(o, c) for o, c in zip(outs, given, strict=True) if o.requires_grad]
        if not pairs:
            grads: Sequence[Tensor] = [torch.zeros_like(x) for x in leaves]
        else:
            grads = torch.autograd.grad(
                [o for o, _ in pairs], leaves, [c for _, c in pairs],
                allow_unused=True, materialize_grads=True,
            )
        result = torch.utils._pytree.tree_unflatten(list(grads), spec)
        assert isinstance(result, tuple)
        return result

    values = torch.utils._pytree.tree_unflatten([o.detach() for o in outs], out_spec)
    return values, back


def axpy(a: float | Tensor, x: Params, y: Params) -> Params:
    """a x + y."""
    return {k: y[k] + a * x[k] for k in y}


def dot(x: Params, y: Params) -> Tensor:
    """Sum of elementwise products over all names."""
    return torch.stack([(x[k] * y[k]).sum() for k in x]).sum()


def norm(x: Params) -> Tensor:
    """Euclidean norm over all names."""
    return dot(x, x).sqrt()


def mean(items: Iterable[Params]) -> Params:
    """Entry by entry mean, summed in the order given."""
    listed = list(items)
    total = dict(listed[0])
    for item in listed[1:]:
        total = {k: total[k] + item[k] for k in total}
    return {k: v / len(listed) for k, v in total.items()}
