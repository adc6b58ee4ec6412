"""Hypergradients of several episodes at once by a derivation of the problem's own.

Of plain gradient descent from the initial theta, :meth:`Problem.descended` may know the outer loss
and its gradient without autograd. Values are those of :func:`unrolled.reverse` with the
whole graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import Hypergradient, State, split
from metabench.contract.parallel.at_once import beside
from metabench.contract.problem import Episode
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
    """Of as many as the problem takes at once, in order, their values and their mean gradient.

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

    def some(chunk: Sequence[Episode]) -> list[Hypergradient]:
        made = len(chunk) * steps
        products = made if second_order else 0
        ctx.meter.add(inner_gradients=made, outer_gradients=len(chunk), hvps=products)
        inner = [beside([e.batch(t) for e in chunk]) for t in range(steps)]
        values, grads = go(inner, beside([e.outer for e in chunk]))
        mean = {k: v / len(chunk) for k, v in grads.items()}
        return [Hypergradient(values, mean, {})]

    # Two at once have large maps: first order gains little by that, and has less memory to spare.
    return ctx.in_chunks(some, episodes, size if second_order or size > 2 else 1)
