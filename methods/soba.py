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

SABA (Dagréou et al. 2022 too) is ``reduction`` = "saga" with constant steps: what the three
directions take of G comes from a block of examples and is corrected by SAGA, each piece by itself
(:mod:`metabench.hypergradients.single_loop.saga`). So is F where the problem draws outer batches
and has them by number (:attr:`Problem.outer_blocks`). Differs from the reference code: elsewhere F
is taken as the episode has it, and SAGA is exact only if that is on all examples; a diagonal
penalty of G is taken exactly in each step, and is not part of the blocks; blocks are drawn
uniformly, while the sampler there deals the last block of each pass twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, Positive, SolverName, State
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core import settings
from metabench.core.registry import method
from metabench.hypergradients.single_loop import saga, stochastic

BLOCK = 64


@method("soba")
@dataclass(frozen=True)
class SOBA(GradientMethod):
    r"""SOBA, SABA (Dagréou 2022), MA-SOBA (Chen 2024): one loop for both levels and the adjoint.

    Formula:
        \theta \leftarrow \theta - \rho\, \nabla_\theta G

        v \leftarrow v - \rho \left( \nabla^2_{\theta\theta} G\, v + \nabla_\theta F \right)

        \lambda \leftarrow \lambda - \gamma \left( \nabla^2_{\lambda\theta} G\, v + \nabla_\lambda
        F \right)

    Loop:
        d_theta = dG_dtheta(lam, theta)
        d_v = d2G_dtheta2(lam, theta) @ v + dF_dtheta(lam, theta)
        d_lam = d2G_dlam_dtheta(lam, theta) @ v + dF_dlam(lam, theta)
        theta = theta - inner_lr * d_theta
        v = v - inner_lr * d_v
        lam = lam - outer_lr * d_lam
    """

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
    reduction: Literal["none", "saga"] = settings.later("none")
    """"saga" (SABA): joint steps take ``block`` examples in place of an inner batch, corrected by
    what each block said when it was last drawn."""
    block: Annotated[int, Field(ge=1)] = settings.later(BLOCK)
    """Examples of a step of "saga"; 64 as in the reference code."""
    first_tables: Literal["zero", "full"] = settings.later("zero")
    """What "saga" has of each block before it is first drawn: zeros, as in the reference code, or
    a pass over all examples at the first point, which is counted."""

    def __post_init__(self) -> None:
        if self.reduction == "none" and (self.block, self.first_tables) != (BLOCK, "zero"):
            raise ValueError('block and first_tables need reduction = "saga"')

    @property
    def needs(self) -> frozenset[str]:
        """One training along the run: v is an estimate that outer steps improve. Blocks need
        examples that can be taken by number."""
        own = {"lam_in_inner_loss", "carried"}
        return GRADIENTS | (own | {"example_losses"} if self.reduction == "saga" else own)

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
        tables = memory.get("saga")
        if self.reduction == "saga" and tables is None:
            tables = saga.first_tables(ctx, lam, theta, v, self.block, self.first_tables == "full")
        for t in range(self.inner_steps):
            if tables is None:
                outer = stochastic.outer(ctx, lam, theta, episode)
                at = stochastic.adjoint(ctx, lam, theta, v, episode, t)
            else:
                outer, tables = saga.outer(ctx, lam, theta, episode, t, tables)
                at, tables = saga.adjoint(ctx, lam, theta, v, t, self.block, tables)
            theta, inner = ctx.solver.update(theta, at.slope, inner, rho)
            v = autodiff.axpy(-rho, autodiff.axpy(1.0, outer.theta, at.curved), v)
        g = autodiff.axpy(1.0, at.mixed, outer.lam)
        kept: dict[str, Any] = {"v": v, "inner": inner}
        if tables is not None:
            kept["saga"] = tables
        if self.average is not None:
            h = memory["h"] if "h" in memory else stochastic.zeros(lam)
            kept["h"] = {k: x + self.average * (g[k] - x) for k, x in h.items()}
            g = h
        return Hypergradient(outer.value, g, theta, memory=kept)
