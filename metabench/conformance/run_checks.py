"""Methods run on a task: finite numbers, whatever the threads, and nothing that is hidden."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metabench.conformance.harness import Harness, snapshot, stored, unchanged
from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.core.capabilities import why_not
from metabench.core.environment import optional_packages
from metabench.core.errors import Distrusted
from metabench.core.registry import methods
from metabench.run.evaluation import evaluate

LONGEST = 27
"""Inner steps of a method that is run on a task: enough for three rungs of a halving."""


def check_methods(task: Any, chosen: list[Any]) -> None:
    """Two outer steps and an adaptation of every method that applies, with and without threads. A
    method may stop because it does not trust its own hypergradient there (Distrusted)."""
    for method in chosen:
        at = Harness(method, task)
        ctx = at.context()
        try:
            state = at.run(ctx, 2)
        except Distrusted:
            continue
        theta = method.adapt(ctx, state, ctx.problem.episode("valid", 0))
        for params in (state.lam, theta):
            assert all(bool(torch.isfinite(v).all()) for v in params.values()), (
                "two steps end in numbers that are not finite"
            )
        check_nothing_hidden(at, ctx, state)
        threaded = at.run(at.context(ctx.problem, workers=3), 2)
        assert unchanged(snapshot(state), threaded), (
            "episodes in threads give other numbers: a loss keeps something between calls"
        )


def check_nothing_hidden(at: Harness, ctx: Context, state: State) -> None:
    """A saved state has the metrics on a problem freshly built that it has on the one used."""
    kept = stored(State(**autodiff.detach_tree(vars(state))))
    fresh = at.context(step=ctx.step, notes=dict(ctx.notes))
    used, again = (evaluate(c, at.method, kept, "valid", 1) for c in (ctx, fresh))
    for name, found in used.items():
        assert found.mean == again[name].mean, (
            f"{name} of a saved state is {again[name].mean:.10g} on a problem freshly built, "
            f"{found.mean:.10g} on the one used: it keeps something beside lam and theta"
        )


def applicable_methods(task: Any) -> list[Any]:
    """Every registered method with default settings that the task allows and whose packages can
    be imported; long inner trainings are cut to ``LONGEST`` steps."""
    known = [_brief(methods.get(name)()) for name in methods.names()]
    return [
        m
        for m in known
        if not any(optional_packages.why_not(name) for name in m.packages)
        and why_not(task, m) is None
    ]


def _brief(method: Any) -> Any:
    if (method.inner_steps or 0) <= LONGEST:
        return method
    try:
        return replace(method, inner_steps=LONGEST)
    except (TypeError, ValueError):  # no setting, or one that others rest on
        return method
