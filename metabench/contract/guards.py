"""Whether a hypergradient means anything: not a number, zero, or zero for a good reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params
from metabench.core.errors import Diverged
from metabench.core.text import type_of

MOST_NAMES = 4
"""Of wrong tensors in an error."""
ZERO_STEPS = 3
"""Outer steps in a row with a hypergradient of zero that end a run whose theta is carried."""


def check_like(what: str, found: object, like: Params) -> None:
    """Raise TypeError, by name, unless ``found`` has the names, shapes and types of ``like``:
    another shape may broadcast, and another type cut numbers off, without a word."""
    if not isinstance(found, dict):
        raise TypeError(f"{what} is {type_of(found)}, not a dict of tensors")
    wrong = [f"no {name!r}" for name in like if name not in found]
    wrong += [f"{name!r}, which is not asked for" for name in found if name not in like]
    for name, x in like.items():
        given = found.get(name)
        if not isinstance(given, Tensor):
            wrong += [f"{name!r} as {type(given).__name__}, not a tensor"] if name in found else []
        elif given.shape != x.shape:
            wrong.append(f"{name!r} as {list(given.shape)}, not {list(x.shape)}")
        elif given.dtype != x.dtype:
            wrong.append(f"{name!r} as {given.dtype}, not {x.dtype}")
    if wrong:
        raise TypeError(f"{what} has {'; '.join(wrong[:MOST_NAMES])}")


def name_of(part: object) -> str:
    """The name under which a task, method or solver is registered, which is what people type; that
    of its class where it is not."""
    return getattr(part, "registered_name", type(part).__name__)


def check_episodes(who: str, found: Sequence[Any], lam: Params, theta: Params | None) -> None:
    """Raise TypeError where the hypergradients of a step's episodes, of the method called ``who``,
    are none, or not of what lam and a carried theta hold."""
    for h in found:
        if not hasattr(h, "grad"):
            raise TypeError(f"hypergradient of {who} gives {type_of(h)}, not a Hypergradient")
        check_like(f"the grad that hypergradient of {who} gives", h.grad, lam)
        if theta is not None:
            check_like(f"the theta that hypergradient of {who} gives", h.theta, theta)


def zero_may_pass(ctx: Context) -> bool:
    """Whether a hypergradient of zero at this step may be the start's alone: a carried theta moves
    on, away from a 0 that it may start at. Counted, and noted, in ``ctx.notes``."""
    before = ctx.notes.get("zero_hypergradient", {})
    if not ctx.problem.carried:
        return False
    in_a_row = before["in_a_row"] + 1 if before.get("last_step") == ctx.step - 1 else 1
    ctx.notes["zero_hypergradient"] = {"last_step": ctx.step, "in_a_row": in_a_row}
    return in_a_row < min(ZERO_STEPS, ctx.horizon or ZERO_STEPS)


def is_stationary(ctx: Context, lam: Params, theta: Params, episode: Episode) -> bool:
    """Whether the outer loss has a gradient of exactly zero in theta. Not counted as cost."""
    judged = partial(ctx.problem.outer_loss, lam, batch=episode.outer)
    return float(autodiff.norm(autodiff.grad(judged, theta)[1])) == 0.0


def check_hypergradient(
    g: Params,
    step: int,
    is_right: Callable[[], bool] = lambda: False,
    size: float | None = None,
) -> float:
    """The norm of a hypergradient (``size`` where it is known); raises :class:`Diverged` where it
    is no number, or exactly 0 with ``is_right`` false: a run at its optimum has no hypergradient
    and has not diverged."""
    size = float(autodiff.norm(g)) if size is None else size
    if not math.isfinite(size):
        bad = [k for k, v in g.items() if not bool(torch.isfinite(v).all())]
        where = f" (in {', '.join(bad)})" if bad else ""
        raise Diverged(f"the hypergradient at outer step {step} is not finite{where}")
    if size == 0.0 and not is_right():
        raise Diverged(
            f"the hypergradient at outer step {step} is exactly zero: through this method the "
            "outer loss does not depend on lam"
        )
    return size
