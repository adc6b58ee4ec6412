"""Reptile: move the initial weights towards where inner training ends.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv 1803.02999:
theta <- theta - beta mean_i (theta - phi_i). No query set, no derivative of the outer loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    GradientMethod,
    Hypergradient,
    Positive,
    SolverName,
    inner_loop,
)
from metabench.contract.problem import Episode, Params
from metabench.core.registry import method


@method("reptile")
@dataclass(frozen=True)
class Reptile(GradientMethod):
    """Reptile (Nichol 2018): move the initial weights towards where inner training ends."""

    inner_lr: Positive = 1e-3
    outer_lr: Positive = 1.0
    outer_solver: SolverName = "sgd"
    outer_decay: Literal["none", "linear"] = "linear"

    @property
    def needs(self) -> frozenset[str]:
        """Only a lam that is the initial value of theta."""
        return frozenset({"lam_is_initialisation"})

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """theta - phi_T, in lam's names, in the place of a gradient; the outer loss is looked at
        only, and counted."""
        start, back = autodiff.pullback(lambda p: ctx.problem.init_inner(p, episode), lam)
        end, _ = inner_loop(
            ctx, autodiff.detach(lam), start, episode, steps=self.inner_steps, lr=self.inner_lr
        )
        value = ctx.outer_value(autodiff.detach(lam), end, episode.outer)
        (gap,) = back(autodiff.axpy(-1.0, end, start))
        return Hypergradient(value, gap, end)
