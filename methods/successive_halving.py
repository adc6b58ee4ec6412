"""Successive halving: train many points a little, the best third three times longer, and so on.

Jamieson, Talwalkar: Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS
2016, arXiv 1502.07943. With n points, R = ``inner_steps`` and K = 1 + floor(log_eta n) rungs,

    rung i has n // eta^i points with R // eta^(K - 1 - i) inner steps,   i = 0 .. K - 1 .

Brackets of new points follow each other until the budget ends. Written here and not taken from
Optuna, whose pruner stops a trial for good while others are still missing from its rung: that is no
successive halving, and cannot go on from where a trial was paused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from metabench.core.registry import method
from metabench.hypergradients.search.halving import Brackets, lengths


@method("successive_halving")
@dataclass(frozen=True)
class SuccessiveHalving(Brackets):
    r"""Successive halving (Jamieson 2016): the best of each rung are trained longer.

    Formula:
        \lfloor n\, \eta^{-i} \rfloor \text{ points with } \lfloor R\, \eta^{-(K - 1 - i)} \rfloor
        \text{ inner steps on rung } i = 0, \dots, K - 1

        K = 1 + \lfloor \log_\eta n \rfloor

    Loop:
        rungs = 1 + floor(log(points, eta))
        alive = [draw() for i in range(points)]
        for i in range(rungs):
            steps = inner_steps // eta ** (rungs - 1 - i)
            alive = sorted(alive[: points // eta**i], key=lambda p: F(p, train(p, steps)))
        lam = alive[0]
    """

    points: Annotated[int, Field(ge=1)] = 27
    """n, of a bracket's first rung."""

    def __post_init__(self) -> None:
        self.rungs(0)

    def rungs(self, bracket: int) -> list[tuple[int, int]]:
        """All brackets are the same."""
        counts = [self.points]
        while counts[-1] >= self.eta:
            counts.append(counts[-1] // self.eta)
        return list(zip(counts, lengths(self.inner_steps, self.eta, len(counts)), strict=True))
