"""Hyperband: successive halving from several first lengths in turn, as no one knows the right one.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband, JMLR 18, 2018. With R = ``inner_steps``
and s_max the largest s with R // eta^s >= ``least_steps``, brackets s = s_max, ..., 0 follow each
other, again and again:

    n = ceil((s_max + 1) / (s + 1) eta^s) points;   rung i: n // eta^i with R // eta^(s - i) steps.

s = 0 is random search. As in the paper, n is rounded up (HpBandSter rounds (s_max + 1) / (s + 1)
down, and has fewer); logarithms are counted in integers, which floating point gets wrong at R = 243
(there and in Optuna).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from metabench.core.registry import method
from metabench.hypergradients.search.halving import Brackets


@method("hyperband")
@dataclass(frozen=True)
class Hyperband(Brackets):
    r"""Hyperband (Li 2018): brackets of successive halving, from short first trainings to full.

    Formula:
        n = \left\lceil \frac{s_{\max} + 1}{s + 1}\, \eta^{s} \right\rceil, \qquad s = s_{\max},
        \dots, 0

        \lfloor n\, \eta^{-i} \rfloor \text{ points with } \lfloor R\, \eta^{-(s - i)} \rfloor
        \text{ inner steps on rung } i = 0, \dots, s

    Loop:
        for s in range(s_max, -1, -1):
            n = ceil((s_max + 1) / (s + 1) * eta**s)
            alive = [draw() for i in range(n)]
            for i in range(s + 1):
                steps = inner_steps // eta ** (s - i)
                alive = sorted(alive[: n // eta**i], key=lambda p: F(p, train(p, steps)))
            lam = better(lam, alive[0])
    """

    least_steps: Annotated[int, Field(ge=1)] = 1
    """Of the shortest first trainings."""

    def __post_init__(self) -> None:
        if self.least_steps > max(self.inner_steps, 1):
            raise ValueError(
                f"least_steps is {self.least_steps}: the longest training has inner_steps, "
                f"{self.inner_steps}"
            )

    @property
    def halvings(self) -> int:
        """s_max."""
        s = 0
        while self.inner_steps // self.eta ** (s + 1) >= self.least_steps:
            s += 1
        return s

    def rungs(self, bracket: int) -> list[tuple[int, int]]:
        """Of s = s_max, s_max - 1, ..., 0, and from the start."""
        most = self.halvings
        s = most - bracket % (most + 1)
        n = -(-(most + 1) * self.eta**s // (s + 1))
        return [(n // self.eta**i, self.inner_steps // self.eta ** (s - i)) for i in range(s + 1)]
