"""Regret, rankings and accounts of arms: what a search reports, and what a task says of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

from metabench.conformance.derivative_checks import build
from metabench.conformance.harness import Harness, NotTested
from metabench.conformance.test_problems import Asked
from metabench.contract.method import State
from metabench.contract.problem import Problem
from metabench.hypergradients.search.arms import PULLS
from metabench.hypergradients.search.gradient_free import ARMS, Search

PULLED = 80
"""Rounds of a search that are accounted for: more than the kit's arms."""


def check_account(at: Harness) -> None:
    """A search reports the regret of all that it has judged, ranks no lam twice, and counts every
    pull of its arms, or every one since it has forgotten all."""
    problem = Asked(at.problem())
    ctx = at.context(problem.as_problem())
    if not isinstance(at.method, Search) or not reported(ctx.problem):
        raise NotTested("the problem knows no regret, or the method is no search")
    state, total, judged = at.method.init(ctx), 0.0, 0
    for _ in range(PULLED):
        problem.lams.clear()
        judged = 0 if ctx.step == getattr(at.method, "forget_at", None) else judged
        episodes = ctx.training_episodes()
        state, _ = at.step(ctx, state)
        pairs = zip(problem.lams, itertools.cycle(episodes), strict=False)
        total += sum(ctx.problem.regret(lam, e) or 0.0 for lam, e in pairs) / len(episodes)
        judged += len(problem.lams) // len(episodes)
    found = at.method.report(ctx, state)
    if not found:
        raise NotTested("the method takes steps of its own and reports no regret")
    assert abs(found["cumulative_regret"] - total) <= 1e-9 * (1 + abs(total)), (
        f"it reports a regret of {found['cumulative_regret']:g}; what it judged has {total:g}"
    )
    ranking = [[v.tolist() for v in lam.values()] for lam in at.method.ranking(ctx, state)]
    assert not any(ranking.count(lam) > 1 for lam in ranking), "it ranks a lam twice"
    for pulls in _pulls(state):
        assert pulls == judged, (
            f"its arms were pulled {pulls:g} times, and {judged} lam were judged"
        )


def _pulls(state: State) -> list[float]:
    """The sums of what a search's memory counts of its arms, where it does."""
    sums = [float(state.memory[PULLS].sum())] if PULLS in state.memory else []
    arms = state.memory.get(ARMS)
    return sums if arms is None else [*sums, sum(arm["count"] for arm in arms)]


def check_regret(task: Any) -> None:
    """Where regret is known it is finite and never negative."""
    problem = build(task)
    if not reported(problem):
        raise NotTested("it knows no regret")
    regret = problem.regret(problem.init_outer(), problem.episode("train", 0))
    assert regret is not None and 0 <= regret < math.inf, f"the regret of the first lam is {regret}"


def reported(problem: Problem) -> list[str]:
    """The names that a search's report has on a problem; none where it knows no regret."""
    lam = problem.init_outer()
    if problem.regret(lam, problem.episode("train", 0)) is None:
        return []
    return ["cumulative_regret", "mean_regret", *problem.ranking_metrics([lam])]
