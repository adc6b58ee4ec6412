"""Central differences: the hypergradient from two trainings for every number in lam.

The oracle of last resort; needs no derivative with respect to lam, and pays for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metabench import (
    Context,
    Episode,
    GradientMethod,
    Hypergradient,
    Params,
    Positive,
    autodiff,
    inner_loop,
)


@dataclass(frozen=True)
class CentralDifferences(GradientMethod):
    """Central differences of whole trainings, two for every number in lam."""

    h: Positive = 1e-4
    """Half the distance between the two values of lam."""

    @property
    def needs(self) -> frozenset[str]:
        """Few numbers in lam."""
        return frozenset({"small_lam"})

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """(F(lam + h e_i) - F(lam - h e_i)) / 2h for every unit vector e_i."""

        def trained(at: Params) -> tuple[Tensor, Params]:
            start = ctx.problem.init_inner(at, episode) if theta is None else theta
            end, _ = inner_loop(
                ctx, at, autodiff.detach(start), episode, steps=self.inner_steps, lr=self.inner_lr
            )
            ctx.meter.add(trainings=1)
            return ctx.outer_value(at, end, episode.outer), autodiff.detach(end)

        def moved(name: str, i: int, by: float) -> Tensor:
            unit = torch.zeros(lam[name].numel(), dtype=lam[name].dtype, device=ctx.device)
            unit[i] = by
            return trained({**lam, name: lam[name] + unit.view_as(lam[name])})[0]

        g = {}
        for name, value in lam.items():
            n = value.numel()
            slopes = [moved(name, i, self.h) - moved(name, i, -self.h) for i in range(n)]
            g[name] = torch.stack(slopes).view_as(value) / (2 * self.h)
        value, end = trained(lam)
        return Hypergradient(value, g, end)
