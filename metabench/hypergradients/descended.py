"""Hypergradients of several episodes at once by a derivation of the problem's own.

Of plain gradient descent from the initial theta, :meth:`Problem.descended` may know the outer loss
and its gradient without autograd. Values are those of :func:`unrolled.reverse` with the
whole graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import Hypergradient, State, split
from metabench.contract.parallel.at_once import beside
from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.solver import Rate
from metabench.hypergradients.unrolled import Checkpointing, Path, choose


def several(
    ctx: Context,
    state: State,
    episodes: Sequence[Episode],
    *,
    steps: int,
    rate: Rate,
    second_order: bool,
    only: Sequence[str] | None,
    mode: Checkpointing,
    memory_budget: float,
) -> list[Hypergradient] | None:
    """Their values, in order, and their mean gradient, added up over as many as the problem takes
    at once.

    None where the problem has no such derivation, or not for such steps: of another solver, with
    learned step sizes, of some parameters only, from a carried theta, or so many that the whole
    graph is not kept.
    """
    size, (lam, learned) = ctx.problem.descends_at_once, split(autodiff.detach(state.outer))
    if not size or learned or only is not None or state.theta is not None:
        return None
    solver, rate = ctx.inner_rule(lam, rate)
    if (
        not (solver.plain and isinstance(rate, float))
        or {"own_step", "lam_in_inner_loss"} & ctx.offers
    ):
        return None
    if not second_order or steps <= 1:
        mode = "graph"
    elif mode == "auto":
        mode = choose(Path(ctx, None, episodes[0], lambda _: rate), lam, steps, memory_budget)
    if mode != "graph":
        return None
    ctx.notes["unroll"] = "graph" if second_order else "first order"
    go = partial(ctx.problem.descended, lam, rate=rate, second_order=second_order)

    def some(chunk: Sequence[Episode]) -> tuple[Tensor, Params]:
        made = len(chunk) * steps
        products = made if second_order else 0
        ctx.meter.add(inner_gradients=made, outer_gradients=len(chunk), hvps=products)
        found: tuple[Tensor, Params] = go(
            _inner_batches(chunk, steps), beside([e.outer for e in chunk])
        )
        return found

    values, total = ctx.in_chunks(some, episodes, size, _added)
    return [Hypergradient(values, {k: v / len(episodes) for k, v in total.items()}, {})]


def _inner_batches(episodes: Sequence[Episode], steps: int) -> list[Batch]:
    """Of every step, of several episodes; one and the same where no step has its own, so that what
    a problem computes of a batch alone it need not compute again."""
    if any(callable(e.inner) for e in episodes):
        return [beside([e.batch(t) for e in episodes]) for t in range(steps)]
    return [beside([e.batch(0) for e in episodes])] * steps


def _added(one: tuple[Tensor, Params], more: tuple[Tensor, Params]) -> tuple[Tensor, Params]:
    """Values end to end, and sums of gradients."""
    return torch.cat((one[0], more[0])), {k: v + more[1][k] for k, v in one[1].items()}
