"""What it costs a run of an arena to reach its problem's target, and who is how much dearer.

The target is four fifths of the way from no learning to the bound, on the split that states are
chosen by. The cost is that of the first look that has it: between two looks nothing is known, and a
line between them would claim that something is. A run that ends without it is censored: the cap, or
whatever ended it, says no more than that it would have cost more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metabench.analysis import stats
from metabench.core.costs import COUNT_NAMES, equivalents
from metabench.store.record import Curve
from metabench.suites.arena.definition import ArenaProblem

Costs = Mapping[str, Mapping[str, float | None]]
"""Problem to method to its cost to the target, in inner gradients; None: it did not get there."""


def cost_to_target(problem: ArenaProblem, curve: Curve, metric: str) -> float | None:
    """What a run had spent, in inner gradients, at its first look with the target; None: never."""
    split = "selection" if problem.select == "best_selection" else "valid"
    for i, value in enumerate(curve.get(f"{split}/{metric}", [])):
        if value is not None and problem.score(value) >= problem.score(problem.target):
            counts = {name: curve[f"cost/{name}"][i] or 0.0 for name in COUNT_NAMES}
            return equivalents(counts, problem.prices)
    return None


def median_cost(costs: Sequence[float | None]) -> float | None:
    """The median over seeds of a cost to target, a run that never had it being the dearest; None
    where half of them, or more, never had it."""
    ordered = sorted(math.inf if c is None else c for c in costs)
    n = len(ordered)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return middle if middle < math.inf else None


def cost_ratios(costs: Costs) -> dict[str, dict[str, float]]:
    """Method to problem to its cost in units of the least of any method there, at least 1; infinite
    where the method does not reach the target, or another reaches it for nothing."""
    out: dict[str, dict[str, float]] = {}
    for problem, of in costs.items():
        least = min((c for c in of.values() if c is not None), default=math.inf)
        for method, mine in of.items():
            if mine is None:
                ratio = math.inf
            elif mine == least:
                ratio = 1.0
            else:
                ratio = mine / least if least else math.inf
            out.setdefault(method, {})[problem] = ratio
    return out


def median_ratio(ratios: Mapping[str, float]) -> float | None:
    """The median over problems of one method's ratios; None where it is infinite."""
    return median_cost([None if math.isinf(r) else r for r in ratios.values()])


def cost_profile(costs: Costs, ratios: Sequence[float]) -> dict[str, list[float]]:
    """Method to the share of problems on which its cost to target is at most each ratio times the
    least of any method (Dolan, Moré: Benchmarking Optimization Software with Performance Profiles,
    2002). Problems whose target nobody has, or that a method does not have, count as unsolved."""
    out = {}
    for method, of in cost_ratios(costs).items():
        solved = [mine for mine in of.values() if mine < math.inf]
        out[method] = [sum(mine <= ratio for mine in solved) / len(costs) for ratio in ratios]
    return out


def reached(costs: Sequence[float | None]) -> float:
    """The share of runs that have the target."""
    return stats.mean([float(c is not None) for c in costs])
