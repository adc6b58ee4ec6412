"""What the evaluations on the way cost, where a budget charges them: a column of the curve."""

from __future__ import annotations

from metabench.store.record import Curve

COST = "looks/cost"
"""The column: what all evaluations so far have cost, in inner gradients."""


def costs(curve: Curve) -> list[float]:
    """The column after a 0, which is what the none before the first has cost."""
    return [0.0, *(x or 0.0 for x in curve.get(COST, []))]


def last(curve: Curve) -> float:
    """What the last one cost; 0 where there is none, and where none is charged."""
    known = costs(curve)
    return known[-1] - known[-2] if len(known) > 1 else 0.0
