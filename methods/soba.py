"""Single-loop bilevel descent: theta, the linear system's solution v and lam move together.

SOBA: Dagréou, Ablin, Vaiter, Moreau: A framework for bilevel optimization that enables stochastic
and global variance reduction algorithms, NeurIPS 2022, arXiv 2201.13409. MA-SOBA: Chen, Xiao,
Balasubramanian: Optimal Algorithms for Stochastic Bilevel Optimization under Relaxed Smoothness
Conditions, JMLR 2024, arXiv 2306.12067 (``average``). Every direction is taken at the same old
(theta, v, lam), on one minibatch of each level:

    theta  <-  theta - rho grad_theta G
    v      <-  v - rho [(d2 G / dtheta2) v + grad_theta F]
    lam    <-  lam - gamma [(d2 G / dlam dtheta) v + grad_lam F]

v starts at zero. With ``average`` = m, lam moves along h instead, and then
h <- (1 - m) h + m [(d2 G / dlam dtheta) v + grad_lam F], with h at zero first. The reference code
(benchopt/benchmark_bilevel) divides all step sizes by the square root of the outer step's number
(``decay``); MA-SOBA's are constant there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    GradientMethod,
    Hypergradient,
    Positive,
    SolverName,
    State,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core.registry import method
from metabench.hypergradients import stochastic


@method("soba")
@dataclass(frozen=True)
class SOBA(GradientMethod):
    """SOBA (Dagréou 2022) and MA-SOBA (Chen 2024): one loop for both levels and the adjoint."""

    inner_steps: Annotated[int, Field(ge=1)] = 1
    """Joint steps of theta and v for each step of lam, each on a minibatch of its own; lam's
    direction is taken where the last of them starts."""
    inner_lr: Positive = 0.1
    """rho, of theta and v."""
    outer_lr: Positive = 0.01
    outer_solver: SolverName = "sgd"
    average: Annotated[float, Field(gt=0, le=1)] | None = None
    """m of the moving average (MA-SOBA); None: none (SOBA)."""
    decay: Literal["none", "sqrt"] = "none"
    """"sqrt": rho is divided by the square root of the outer step's number. ``outer_decay`` does
    the same for lam."""

    @property
    def needs(self) -> frozenset[str]:
        """One training along the run: v is an estimate that outer steps improve."""
        return GRADIENTS | {"lam_in_inner_loss", "carried"}

    def refuses(self, solver: Solver) -> str | None:
        """v belongs to a training without noise."""
        return why_no_noise(solver, "soba")

    def is_at_optimum(
        self, ctx: Context, lam: Params, found: Sequence[Hypergradient], episodes: Sequence[Episode]
    ) -> bool:
        """A direction of zero is right in the first steps, too: v and h start there."""
        return ctx.step < 2 or super().is_at_optimum(ctx, lam, found, episodes)

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """lam's direction, and theta and v moved."""
        lam, theta, memory = state.lam, state.theta, state.memory
        assert theta is not None
        v = memory["v"] if "v" in memory else stochastic.zeros(theta)
        inner = memory["inner"] if "inner" in memory else ctx.solver.init(theta)
        rho = self.inner_lr / (math.sqrt(ctx.step + 1) if self.decay == "sqrt" else 1.0)
        for t in range(self.inner_steps):
            outer = stochastic.outer(ctx, lam, theta, episode)
            at = stochastic.adjoint(ctx, lam, theta, v, episode, t)
            theta, inner = ctx.solver.update(theta, at.slope, inner, rho)
            v = autodiff.axpy(-rho, autodiff.axpy(1.0, outer.theta, at.curved), v)
        g = autodiff.axpy(1.0, at.mixed, outer.lam)
        kept = {"v": v, "inner": inner}
        if self.average is not None:
            h = memory["h"] if "h" in memory else stochastic.zeros(lam)
            kept["h"] = {k: x + self.average * (g[k] - x) for k, x in h.items()}
            g = h
        return Hypergradient(outer.value, g, theta, memory=kept)
