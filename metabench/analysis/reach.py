"""What it costs a run until its learning curve first has a level of a validation metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metabench.store.record import Curve
from metabench.suites.schema import DERIVATIVES, Reach

Curves = Mapping[tuple[str, str], Mapping[int, Curve]]
"""(row, column) to seed to learning curve."""


@dataclass(frozen=True)
class Reached:
    """``cost`` up to the first row of the curve that has the level; where none has (``reached``
    False) what the run was allowed, or has taken, which is then a lower bound."""

    cost: float
    reached: bool


def reached(
    reach: Reach, goal: str, curves: Curves, budgets: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[tuple[str, str], dict[int, Reached]]:
    """Of every curve that has the metric and the cost; ``budgets``: the limits of each place."""
    sign = 1.0 if goal == "max" else -1.0
    best: dict[tuple[str, int], float] = {}
    for (_, column), by_seed in curves.items():
        for seed, curve in by_seed.items():
            for value in _known(curve.get(f"valid/{reach.metric}", ())):
                best[column, seed] = max(best.get((column, seed), -math.inf), sign * value)
    out: dict[tuple[str, str], dict[int, Reached]] = {}
    for at, by_seed in curves.items():
        for seed, curve in by_seed.items():
            if reach.level is not None:
                level = sign * reach.level
            else:
                top = best.get((at[1], seed), -math.inf)
                level = top - (reach.within or 0.0) * abs(top)
            found = _first(curve, reach, sign, level)
            if found is None:
                continue
            if not found.reached:
                allowed = budgets.get(at, {}).get(reach.cost) or 0
                found = Reached(max(found.cost, allowed), False)
            out.setdefault(at, {})[seed] = found
    return out


def _known(values: Iterable[float | None]) -> list[float]:
    return [v for v in values if v is not None]


def _first(curve: Curve, reach: Reach, sign: float, level: float) -> Reached | None:
    values = curve.get(f"valid/{reach.metric}")
    names = DERIVATIVES if reach.cost == "derivatives" else (reach.cost,)
    parts = [curve[f"cost/{n}"] for n in names if f"cost/{n}" in curve]
    if values is None or not parts:
        return None
    costs = [sum(_known(row)) for row in zip(*parts, strict=True)]
    for value, cost in zip(values, costs, strict=True):
        if value is not None and sign * value >= level:
            return Reached(cost, True)
    return Reached(costs[-1], False)
