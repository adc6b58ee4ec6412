"""Derivatives of pure functions on named tensors, by autograd or by torch.func, with one interface.

Autograd is the fast path on a CPU (and the one that Python threads can share). Inside
:func:`functional` the same calls use torch.func, so that vmap over episodes and forward mode apply.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metabench.contract.problem import Params

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


def detach_tree(tree: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor in them without a graph."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {k: detach_tree(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return _rebuilt(tree, [detach_tree(v) for v in tree])
    return tree


# Nested dicts, lists and tuples of tensors, without torch's pytrees: those take longer than the
# operations of a small inner step.


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested dicts, lists and tuples, in the order of names and places."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, Tensor):
            found.append(part)
        else:
            found += tensors(part)
    return found


def with_tensors(tree: Any, new: Iterable[Tensor]) -> Any:
    """A tree like ``tree`` that holds ``new``, in the order of :func:`tensors`."""
    return _refilled(tree, iter(new))


def _refilled(tree: Any, new: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(new)
    if isinstance(tree, dict):
        return {k: _refilled(v, new) for k, v in tree.items()}
    return _rebuilt(tree, [_refilled(v, new) for v in tree])


def _rebuilt(like: Any, parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def _outline(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return list(tree.shape)
    if isinstance(tree, dict):
        return {k: _outline(v) for k, v in tree.items()}
    return [_outline(v) for v in tree]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return isinstance(b, Tensor)
    return type(a) is type(b) and len(a) == len(b) and all(map(_alike, a, b))


def grad(
    f: Callable[[Params], Tensor], x: Params, *, create_graph: bool = False
) -> tuple[Tensor, Params]:
    """Value and gradient of a scalar function at ``x``; zeros for what it does not depend on.

    With ``create_graph`` both can be differentiated again, in ``x`` and in whatever else ``f``
    closes over; without it, both come back without a graph.
    """
    value, g, _ = grad_and_rest(lambda p: (f(p), ()), x, create_graph=create_graph)
    return value, g


def grad_and_rest(
    f: Callable[[Params], tuple[Tensor, Any]], x: Params, *, create_graph: bool = False
) -> tuple[Tensor, Params, Any]:
    """As :func:`grad` for an ``f`` that returns more beside its value: nested dicts of tensors."""
    if is_functional():
        g, (value, rest) = torch.func.grad_and_value(f, has_aux=True)(
            x if create_graph else detach(x)
        )
    else:
        # A view, where the graph goes on: f may close over the very tensors of x (lam itself where
        # theta starts at lam), and that second way into f is no part of this derivative.
        at = {
            k: v.view_as(v) if create_graph and v.requires_grad else v.detach().requires_grad_()
            for k, v in x.items()
        }
        with torch.enable_grad():
            value, rest = f(at)
        g = dict(zip(at, _backward([value], list(at.values()), None, create_graph), strict=True))
    if create_graph:
        return value, g, rest
    return value.detach(), detach(g) if is_functional() else g, detach_tree(rest)


def pullback(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Outputs of ``f`` at ``primals``, and the map from their cotangents to the primals'.

    Primals and outputs are nested dicts and tuples of tensors; as torch.func.vjp, with zeros for
    what does not take part. Neither has a graph. The map may be used once; its argument must have
    the outputs' names in the outputs' order.
    """
    if is_functional():
        return torch.func.vjp(f, *primals)[:2]
    leaves = [x.detach().requires_grad_() for x in tensors(primals)]
    with torch.enable_grad():
        held = f(*with_tensors(primals, leaves))
    outputs = tensors(held)
    found = detach_tree(held)

    def back(cotangents: Any) -> tuple[Any, ...]:
        if not _alike(cotangents, found):
            raise ValueError(f"cotangents are {_outline(cotangents)}, outputs {_outline(found)}")
        bars = _backward(outputs, leaves, tensors(cotangents), False)
        whole: tuple[Any, ...] = with_tensors(primals, bars)
        return whole

    return found, back


def pullbacks(f: Callable[..., Any], *primals: Any) -> tuple[Any, tuple[Callable[[Any], Any], ...]]:
    """As :func:`pullback`, with one map for each primal, which may be used any number of times.

    By autograd the graph is built once, here; primals that are leaves already stay themselves, so
    ``f`` may close over what was computed of them. By torch.func it is built once a map: at once
    for the last primal, for another when its map is first used.
    """
    if is_functional():
        outputs, last = _vjp_at(f, primals, len(primals) - 1)

        def lazy(i: int) -> Callable[[Any], Any]:
            built = functools.cache(lambda: _vjp_at(f, primals, i)[1])
            return lambda cotangents: built()(cotangents)[0]

        return outputs, (*map(lazy, range(len(primals) - 1)), lambda c: last(c)[0])

    def own(x: Tensor) -> Tensor:
        return x if x.requires_grad and x.is_leaf else x.detach().requires_grad_()

    at = with_tensors(primals, map(own, tensors(primals)))
    with torch.enable_grad():
        held = f(*at)
    outputs = tensors(held)

    def to(primal: Any) -> Callable[[Any], Any]:
        leaves = tensors(primal)

        def back(cotangents: Any) -> Any:
            bars = _backward(outputs, leaves, tensors(cotangents), False, keep=True)
            return with_tensors(primal, bars)

        return back

    return detach_tree(held), tuple(map(to, at))


def _vjp_at(f: Callable[..., Any], primals: tuple[Any, ...], i: int) -> Any:
    before, after = primals[:i], primals[i + 1 :]
    return torch.func.vjp(lambda x: f(*before, x, *after), primals[i])


def _backward(
    outputs: list[Tensor],
    inputs: list[Tensor],
    cotangents: list[Tensor] | None,
    again: bool,
    *,
    keep: bool = False,
) -> list[Tensor]:
    """Vector-Jacobian products, zero where nothing depends on an input.

    ``again`` makes them differentiable; ``keep`` leaves the graph for another use.
    """
    live = [i for i, x in enumerate(outputs) if x.requires_grad]
    if not live:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        [outputs[i] for i in live],
        inputs,
        None if cotangents is None else [cotangents[i] for i in live],
        create_graph=again,
        retain_graph=keep or again,
        allow_unused=True,
    )
    # Not by materialize_grads: up to torch 2.8 its zeros require a gradient.
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def axpy(a: float | Tensor, x: Params, y: Params) -> Params:
    """a x + y."""
    return {k: y[k] + a * x[k] for k in y}


def dot(x: Params, y: Params) -> Tensor:
    """Sum of elementwise products over all names."""
    return torch.stack([(x[k] * y[k]).sum() for k in x]).sum()


def flatten(x: Params) -> Tensor:
    """All entries as one vector [n], in the order of the names."""
    return torch.cat([v.reshape(-1) for v in x.values()])


def unflatten(flat: Tensor, like: Params) -> Params:
    """Views of a vector [n] with the names and shapes of ``like``."""
    parts = torch.split(flat, [v.numel() for v in like.values()])
    return {k: part.view(v.shape) for (k, v), part in zip(like.items(), parts, strict=True)}


def norm(x: Params) -> Tensor:
    """Euclidean norm over all names, summed in float64."""
    parts = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in x.values()]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return whole


def clip_norm(x: Params, most: float, *, batch: int = 0) -> Params:
    """x, scaled down where its Euclidean norm over all names exceeds ``most``, by the factor of
    torch.nn.utils.clip_grad_norm_: min(1, most / (norm + 1e-6)).

    The first ``batch`` dimensions of every tensor count members, each with a norm of its own.
    """
    if not x:
        return {}
    parts = [torch.linalg.vector_norm(v.reshape(*v.shape[:batch], -1), dim=-1) for v in x.values()]
    factor = (most / (torch.linalg.vector_norm(torch.stack(parts), dim=0) + 1e-6)).clamp(max=1.0)
    return {
        k: v * factor.to(v.dtype).view((*factor.shape, *[1] * (v.dim() - batch)))
        for k, v in x.items()
    }


def mean(items: Iterable[Params], counts: Sequence[int] | None = None) -> Params:
    """Entry by entry mean, summed in the order given; with ``counts`` each item is itself a mean,
    of so many."""
    items = list(items)
    if len(items) == 1:
        return items[0]
    counts = [1] * len(items) if counts is None else counts
    total: Params = {}
    for item, n in zip(items, counts, strict=True):
        some = item if n == 1 else {k: v * n for k, v in item.items()}
        total = {k: total[k] + v for k, v in some.items()} if total else some
    return {k: v / sum(counts) for k, v in total.items()}
