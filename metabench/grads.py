"""Derivatives of pure functions on named tensors, by autograd or by torch.func, with one interface.

Autograd is the fast path on a CPU (and the one that Python threads can share). Inside
:func:`functional` the same calls use torch.func, so that vmap over episodes and forward mode apply.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

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


def detach_tree(tree: Any) -> Any:
    """Nested dicts, lists and tuples with every tensor in them without a graph."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


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
    return (value, g, rest) if create_graph else detach_tree((value, g, rest))


def pullback(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Outputs of ``f`` at ``primals``, and the map from their cotangents to the primals'.

    Primals and outputs are nested dicts and tuples of tensors; as torch.func.vjp, with zeros for
    what does not take part. Neither has a graph. The map may be used once; its argument must have
    the outputs' names in the outputs' order.
    """
    if is_functional():
        return torch.func.vjp(f, *primals)[:2]
    flat, spec = tree_flatten(primals)
    leaves = [x.detach().requires_grad_() for x in flat]
    with torch.enable_grad():
        outputs, out_spec = tree_flatten(f(*tree_unflatten(leaves, spec)))

    def back(cotangents: Any) -> tuple[Any, ...]:
        given, given_spec = tree_flatten(cotangents)
        if given_spec != out_spec:
            raise ValueError(f"cotangents are {given_spec}, outputs {out_spec}")
        bars: tuple[Any, ...] = tree_unflatten(_backward(outputs, leaves, given, False), spec)
        return bars

    return tree_unflatten([x.detach() for x in outputs], out_spec), back


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

    at = tree_map(own, primals)
    with torch.enable_grad():
        outputs, _ = tree_flatten(held := f(*at))

    def to(primal: Any) -> Callable[[Any], Any]:
        leaves, spec = tree_flatten(primal)

        def back(cotangents: Any) -> Any:
            given = tree_flatten(cotangents)[0]
            return tree_unflatten(_backward(outputs, leaves, given, False, keep=True), spec)

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
    return list(
        torch.autograd.grad(
            [outputs[i] for i in live],
            inputs,
            None if cotangents is None else [cotangents[i] for i in live],
            create_graph=again,
            retain_graph=keep or again,
            allow_unused=True,
            materialize_grads=True,
        )
    )


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


def mean(items: Iterable[Params]) -> Params:
    """Entry by entry mean, summed in the order given."""
    first, *others = items
    total = dict(first)
    for item in others:
        total = {k: total[k] + item[k] for k in total}
    return {k: v / (1 + len(others)) for k, v in total.items()}
