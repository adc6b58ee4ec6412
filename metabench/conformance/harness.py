"""A method on a task, run as the harness runs it, and ways to compare what comes out."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.contract.problem import Params, Problem
from metabench.contract.seeds import Seeds
from metabench.core.cell import Budget
from metabench.core.costs import Counts
from metabench.core.registry import solvers

STEPS = 3
"""Outer steps of a run."""


class NotTested(Exception):
    """A check that has nothing to test here; the text says why."""


@dataclass
class Harness:
    """A method on a task, on the CPU; every context starts anew from the same seeds."""

    method: Any
    task: Any
    seeds: Seeds = field(default_factory=lambda: Seeds.of(0))

    def problem(self) -> Problem:
        """Built from the seeds."""
        problem: Problem = self.task.build(self.seeds, torch.device("cpu"))
        return problem

    def context(
        self, problem: Problem | None = None, kind: type[Context] = Context, **more: Any
    ) -> Context:
        """As the harness makes it."""
        return kind(
            self.problem() if problem is None else problem,
            solvers.get(self.method.default_solver)(),
            self.seeds,
            self.task.offers,
            budget=Budget(outer_steps=STEPS),
            **more,
        )

    def run(self, ctx: Context, steps: int = STEPS) -> State:
        """The state after that many outer steps from the start."""
        state: State = self.method.init(ctx)
        for _ in range(steps):
            state = self.step(ctx, state)[0]
        return state

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One outer step, as the harness takes it."""
        new, log = self.method.step(ctx, state)
        ctx.step += 1
        return State(**autodiff.detach_tree(vars(new))), log

    @cached_property
    def plain(self) -> PlainRun:
        """A run that nothing happens to, which others are compared with; it is made once."""
        ctx = self.context()
        state = self.run(ctx)
        return PlainRun(ctx, state, snapshot(state), Counts(**ctx.meter.counts.as_dict()))


@dataclass(frozen=True)
class PlainRun:
    """Where a run ended, and what it had counted by then, whatever is done with both later."""

    ctx: Context
    state: State
    held: list[Any]
    """A :func:`snapshot` of the state."""
    counts: Counts


def adapted(at: Harness, ctx: Context, state: State) -> list[Params]:
    """theta for a few validation episodes, by the engine of the context."""
    method = at.method
    steps: int = (method.inner_steps if method.test_steps is None else method.test_steps) or 1
    n = min(3, ctx.problem.count("valid") or 3)
    thetas: list[Params] = ctx.over_episodes(
        lambda e: method.adapt(ctx, state, e),
        [ctx.problem.episode("valid", i) for i in range(n)],
        steps=steps,
    )
    return thetas


def stored(state: State) -> State:
    """The state, saved and loaded as a checkpoint is."""
    buffer = io.BytesIO()
    torch.save(dict(vars(state)), buffer)
    buffer.seek(0)
    return State(**torch.load(buffer, weights_only=True))


def snapshot(value: Any) -> list[Any]:
    """A copy of nested data to compare with later: its shape and leaves."""
    if isinstance(value, State):
        value = vars(value)
    leaves, shape = tree_flatten(value)
    return [
        shape,
        *((x.detach().clone(), x.requires_grad) if isinstance(x, Tensor) else x for x in leaves),
    ]


def unchanged(held: list[Any], value: Any) -> bool:
    """Whether ``value`` is bit for bit what it was when :func:`snapshot` gave ``held``."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, tuple) and isinstance(b, tuple) and isinstance(a[0], Tensor):
            (x, x_grad), (y, y_grad) = a, b
            if x_grad != y_grad or x.dtype != y.dtype or x.shape != y.shape:
                return False
            return bool(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True))
        return bool(a == b)

    now = snapshot(value)
    return len(now) == len(held) and all(map(equal, now, held))


def tolerance(params: dict[str, Tensor]) -> float:
    """How far two ways of computing the same may be apart, relative."""
    return 1e-10 if all(v.dtype == torch.float64 for v in params.values()) else 1e-3


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest distance of an entry, relative where the entries are large."""
    gaps = [(found[k] - v).abs().max() / (1 + v.abs().max()) for k, v in expected.items()]
    return float(torch.stack(gaps).max())
