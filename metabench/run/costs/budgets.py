"""How a run keeps to its budget: what is spent, when to evaluate, and what may not go beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from metabench.core.cell import Budget
from metabench.core.costs import COUNT_NAMES, Meter
from metabench.run.attempts.checkpoint import Boundary


def spent(budget: Budget, at: Boundary, seconds: float) -> float:
    """The largest part of any of the budget's limits that is used up, after ``seconds`` of
    training."""
    used = {**at.counts, "outer_steps": at.step, "seconds": seconds}
    return max(budget.spent(used), default=0.0)


def advanced(budget: Budget, before: Boundary, after: Boundary) -> bool:
    """Whether a step has brought any limit of the budget nearer, be it not the nearest one; that of
    seconds comes nearer by itself."""
    if budget.seconds is not None:
        return True
    used = ({**at.counts, "outer_steps": at.step} for at in (before, after))
    then, now = map(budget.spent, used)
    return any(b > a for a, b in zip(then, now, strict=True))


def is_due(budget: Budget, at: Boundary) -> bool:
    """Whether an evaluation is planned at this step."""
    every = budget.eval_every_cost
    if every is None:
        return at.step % budget.eval_every == 0
    if not at.curve:
        return True
    then = {name: at.curve[f"cost/{name}"][-1] or 0 for name in COUNT_NAMES}
    now, before = (budget.cost_of(counts) // every for counts in (at.counts, then))
    return now > before


def limited(budget: Budget, meter: Meter, kept_back: float = 0.0) -> AbstractContextManager[None]:
    """Inside, nothing that ``meter`` counts may go beyond its limit in the budget, nor all of it
    together beyond the budget's cost less what is ``kept_back``."""
    limits = {name: getattr(budget, name) for name in COUNT_NAMES}
    limits = {name: most for name, most in limits.items() if most is not None}
    priced: tuple[Mapping[str, float], float] | None = None
    if budget.cost is not None:
        priced = budget.prices or {}, budget.cost - kept_back
    return meter.limited(limits, priced)
