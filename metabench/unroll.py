"""Hypergradients through the iterations of an inner solver: reverse, truncated, forward.

Franceschi, Frasconi, Salzo, Grazzi, Pontil, ICML 2018 (algorithm: card equations 2 to 7); Franceschi
et al. 2017 for forward mode. Reverse mode has three ways to remember the iterations, equal in
value: the whole graph; the states, rebuilding one step's graph at a time; every sqrt(T)-th state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metabench import grads
from metabench.method import Context, Hypergradient, inner_loop
from metabench.problem import Episode, Params
from metabench.solver import Memory, Rate

MemoryMode = Literal["auto", "graph", "states", "checkpoints"]


def reverse(
    ctx: Context,
    lam: Params,
    theta: Params | None,
    episode: Episode,
    *,
    steps: int,
    rate: Callable[[Params], Rate],
    truncate: int | None = None,
    first_order: bool = False,
    only: Sequence[str] | None = None,
    mode: MemoryMode = "auto",
    memory_budget: float = 4e9,
) -> Hypergradient:
    """The hypergradient of F(lam, theta_T(lam)) by reverse mode.

    ``theta`` is where the inner steps start, None for ``problem.init_inner(lam)``, which is then
    differentiated too. ``truncate`` keeps the last K steps only (biased). ``first_order`` treats
    inner gradients as constants. ``memory_budget`` in bytes is what "auto" chooses a mode
    against; the choice goes to ``ctx.notes``.
    """
    problem = ctx.problem
    kept = steps if truncate is None else min(truncate, steps)
    skipped = steps - kept
    starts = theta is None

    def start(lam: Params) -> Params:
        return problem.init_inner(lam, episode) if theta is None else theta

    first, memory = None, None
    if skipped:
        first, memory = inner_loop(
            ctx, grads.detach(lam), grads.detach(start(grads.detach(lam))), episode,
            steps=skipped, lr=_detached(rate(grads.detach(lam))), only=only,
        )
        first, memory = grads.detach(first), _detach_memory(memory)

    if mode == "auto":
        mode = _choose(ctx, lam, first or start(lam), episode, kept, rate, only, memory_budget,
                       first_order)
    ctx.notes["unroll"] = "first order" if first_order else mode
    _count(ctx, kept, first_order, starts and not skipped)
    if mode == "graph" or first_order or kept <= 1:

        def value_of(lam: Params) -> tuple[Tensor, Params]:
            begin = start(lam) if first is None else first
            end, _ = inner_loop(
                ctx, lam, begin, episode, steps=kept, start=skipped, lr=rate(lam),
                memory=memory, create_graph=not first_order, only=only,
            )
            return problem.outer_loss(lam, end, episode.outer), end

        return _value_and_grad(value_of, lam)
    return _replayed(ctx, lam, start, first, memory, episode, kept, skipped, rate, only, mode)


def _value_and_grad(
    f: Callable[[Params], tuple[Tensor, Params]], lam: Params
) -> Hypergradient:
    ends: list[Params] = []

    def value(lam: Params) -> Tensor:
        v, end = f(lam)
        ends.append(end)
        return v

    if grads.is_functional():
        g, (v, end) = torch.func.grad(lambda p: (lambda o: (o[0], o))(f(p)), has_aux=True)(lam)
        return Hypergradient(v.detach(), grads.detach(g), grads.detach(end))
    v, g = grads.grad(value, lam)
    return Hypergradient(v, g, grads.detach(ends[0]))


def _replayed(
    ctx: Context,
    lam: Params,
    start: Callable[[Params], Params],
    first: Params | None,
    memory: Memory | None,
    episode: Episode,
    kept: int,
    skipped: int,
    rate: Callable[[Params], Rate],
    only: Sequence[str] | None,
    mode: MemoryMode,
) -> Hypergradient:
    """Reverse mode over stored states: one step's graph alive at a time."""
    problem = ctx.problem
    lam = grads.detach(lam)
    begin = grads.detach(start(lam)) if first is None else first
    moving = {k: begin[k] for k in (only or begin)}
    still = {k: v for k, v in begin.items() if k not in moving}
    memory = ctx.solver.init(moving) if memory is None else memory

    def step(t: int, create_graph: bool) -> Callable[..., tuple[Params, Memory]]:
        def f(
            moving: Params, still: Params, memory: Memory, lam: Params
        ) -> tuple[Params, Memory]:
            end, after = inner_loop(
                ctx, lam, {**still, **moving}, episode, steps=1, start=skipped + t,
                lr=rate(lam), memory=memory, create_graph=create_graph, only=only,
            )
            return {k: end[k] for k in moving}, after

        return f

    every = 1 if mode == "states" else max(1, math.isqrt(kept))
    saved: dict[int, tuple[Params, Memory]] = {}
    now: tuple[Params, Memory] = (moving, memory)
    for t in range(kept):
        if t % every == 0:
            saved[t] = now
        now = _plain(step(t, False)(now[0], still, now[1], lam))

    end = {**still, **now[0]}
    value, outer_back = grads.pullback(
        lambda p, e: problem.outer_loss(p, e, episode.outer), lam, end
    )
    g, alpha = outer_back(torch.ones_like(value))
    alpha_still = {k: alpha[k] for k in still}
    cotangent: Any = (
        {k: alpha[k] for k in moving},
        torch.utils._pytree.tree_map(torch.zeros_like, now[1]),
    )
    for segment in sorted(saved, reverse=True):
        states = [saved.pop(segment)]
        last = min(segment + every, kept) - 1
        for t in range(segment, last):
            states.append(_plain(step(t, False)(states[-1][0], still, states[-1][1], lam)))
        for t in range(last, segment - 1, -1):
            at, held = states.pop()
            _, back = grads.pullback(step(t, True), at, still, held, lam)
            at_bar, still_bar, held_bar, lam_bar = back(cotangent)
            cotangent = (at_bar, held_bar)
            alpha_still = grads.axpy(1.0, still_bar, alpha_still)
            g = grads.axpy(1.0, lam_bar, g)
    if first is None:
        _, start_back = grads.pullback(start, lam)
        start_bar = {**alpha_still, **cotangent[0]}
        g = grads.axpy(1.0, start_back(start_bar)[0], g)
    return Hypergradient(value, g, end)


def forward(
    ctx: Context,
    lam: Params,
    theta: Params | None,
    episode: Episode,
    *,
    steps: int,
    rate: Callable[[Params], Rate],
) -> Hypergradient:
    """The same value by forward mode: Z_{t+1} = A_t Z_t + B_t, one column a scalar of lam.

    Memory does not grow with ``steps``; time grows with the number of scalars in lam.
    """
    problem = ctx.problem
    lam = grads.detach(lam)
    basis = _basis(lam)
    n = next(iter(basis.values())).shape[0]

    def start(lam: Params) -> tuple[Params, Memory]:
        begin = problem.init_inner(lam, episode) if theta is None else theta
        # A start that does not use lam must still carry a (zero) tangent.
        begin = {k: v.clone() for k, v in begin.items()}
        return begin, ctx.solver.init(begin)

    def along(
        f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]
    ) -> tuple[Any, Any]:
        with grads.functional():
            out = torch.func.vmap(
                lambda *t: torch.func.jvp(f, primals, t), out_dims=(None, 0)
            )(*tangents)
        return out  # type: ignore[no-any-return]

    (now, memory), (z, z_memory) = along(start, (lam,), (basis,))
    for t in range(steps):

        def update(moving: Params, memory: Memory, lam: Params, t: int = t) -> Any:
            return inner_loop(
                ctx, lam, moving, episode, steps=1, start=t, lr=rate(lam), memory=memory,
                create_graph=True,
            )

        (now, memory), (z, z_memory) = along(update, (now, memory, lam), (z, z_memory, basis))
        ctx.meter.add(hvps=n, mixed_products=n)

    ctx.meter.add(outer_gradients=1)
    ctx.notes["unroll"] = "forward"
    value, columns = along(
        lambda p, e: problem.outer_loss(p, e, episode.outer), (lam, now), (basis, z)
    )
    g, at = {}, 0
    for name, tensor in lam.items():
        g[name] = columns[at : at + tensor.numel()].reshape(tensor.shape)
        at += tensor.numel()
    return Hypergradient(value, g, now)


def _basis(lam: Params) -> Params:
    """Unit directions, stacked: name -> [n, *shape] with n the number of scalars in lam."""
    n = sum(v.numel() for v in lam.values())
    basis, at = {}, 0
    for name, value in lam.items():
        block = torch.zeros(n, value.numel(), dtype=value.dtype, device=value.device)
        block[at : at + value.numel()] = torch.eye(
            value.numel(), dtype=value.dtype, device=value.device
        )
        basis[name] = block.reshape(n, *value.shape)
        at += value.numel()
    return basis


def _choose(
    ctx: Context,
    lam: Params,
    theta: Params,
    episode: Episode,
    steps: int,
    rate: Callable[[Params], Rate],
    only: Sequence[str] | None,
    budget: float,
    first_order: bool,
) -> MemoryMode:
    """The cheapest mode whose estimated peak fits the budget, from one measured step."""
    if grads.is_functional() or first_order or steps <= 1:
        return "graph"
    known = ctx.notes.get("graph_bytes_per_step")
    if known is None:
        with ctx.uncounted():
            known = _graph_bytes(ctx, lam, theta, episode, rate, only)
        ctx.notes["graph_bytes_per_step"] = known
    moving = {k: theta[k] for k in (only or theta)}
    state = sum(v.numel() * v.element_size() for v in moving.values())
    state *= 1 + len(ctx.solver.init(moving))
    share = budget / max(1, ctx.workers)
    if steps * known <= share:
        return "graph"
    return "states" if steps * state + known <= share else "checkpoints"


def _graph_bytes(
    ctx: Context,
    lam: Params,
    theta: Params,
    episode: Episode,
    rate: Callable[[Params], Rate],
    only: Sequence[str] | None,
) -> int:
    """Bytes of the distinct tensors that the graph of one differentiable inner step keeps."""
    lam, theta = grads.leaf(lam), grads.leaf(theta)
    given = {v.untyped_storage().data_ptr() for v in [*lam.values(), *theta.values()]}
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in given:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        end = inner_loop(
            ctx, lam, theta, episode, steps=1, lr=rate(lam), create_graph=True, only=only
        )
    del end
    return sum(seen.values())


def _count(ctx: Context, kept: int, first_order: bool, through_start: bool) -> None:
    second = 0 if first_order else kept
    reaches_lam = through_start and "lam_is_initialisation" in ctx.offers
    ctx.meter.add(
        outer_gradients=1,
        hvps=second if reaches_lam else max(0, second - 1),
        mixed_products=second if "lam_in_inner_loss" in ctx.offers else 0,
    )


def _plain(state: tuple[Params, Memory]) -> tuple[Params, Memory]:
    return grads.detach(state[0]), _detach_memory(state[1])


def _detach_memory(memory: Memory) -> Memory:
    return {k: grads.detach(v) for k, v in memory.items()}


def _detached(rate: Rate) -> Rate:
    if isinstance(rate, dict):
        return grads.detach(rate)
    return rate.detach() if isinstance(rate, Tensor) else rate
