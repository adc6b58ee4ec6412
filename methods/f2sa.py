"""Fully first-order bilevel descent: two inner trainings, one of them pulled by the outer loss.

Kwon, Kwon, Wright, Nowak: A Fully First-Order Method for Stochastic Bilevel Optimization, ICML
2023, arXiv 2301.10945 (F2SA). With a multiplier mu_k that grows,

    y    <-  y - a [grad_theta F(y) + mu_k grad_theta G(y)]          ``inner_steps`` times
    z    <-  z - c grad_theta G(z)                                   ``inner_steps`` times
    lam  <-  lam - x [grad_lam F(y) + mu_k (grad_lam G(y) - grad_lam G(z))]

each inner step on a minibatch of its own. It is V-PBGD (method ``pbgd``) with a multiplier that
never stops rising and z trained as often as y. y and z are carried, or start anew with an episode.
Differs: G(y) and G(z) of lam's direction see the same batch (as in ScaleBiO; two batches in
benchopt/benchmark_bilevel, whose difference mu multiplies); the power of mu's law is a setting: mu
grows as k^(6/7) in that code, and the paper's rates fit k^(1/7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import (
    Context,
    Hypergradient,
    Positive,
    SolverName,
    State,
    inner_loop,
)
from metabench.contract.problem import Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core.registry import method


@method("f2sa")
@dataclass(frozen=True)
class F2SA(GradientMethod):
    r"""F2SA (Kwon 2023): hypergradients from two trainings, first derivatives alone.

    Formula:
        y \leftarrow y - a \left( \nabla_\theta F(\lambda, y) + \mu_k \nabla_\theta G(\lambda, y)
        \right), \qquad z \leftarrow z - c\, \nabla_\theta G(\lambda, z)

        \lambda \leftarrow \lambda - x \left( \nabla_\lambda F(\lambda, y) + \mu_k \left(
        \nabla_\lambda G(\lambda, y) - \nabla_\lambda G(\lambda, z) \right) \right)

    Loop:
        mu = first_multiplier * (1 + growth * k) ** power  # at outer step k
        for t in range(inner_steps):
            z = z - inner_lr * dG_dtheta(lam, z)
            y = y - inner_lr / max(mu, 1) * (dF_dtheta(lam, y) + mu * dG_dtheta(lam, y))
        lam = lam - outer_lr * (dF_dlam(lam, y) + mu * (dG_dlam(lam, y) - dG_dlam(lam, z)))
    """

    inner_steps: Annotated[int, Field(ge=1)] = 10
    """Of y and of z in an outer step."""
    inner_lr: Positive = 0.1
    """c, of z; y has a = ``inner_lr`` / max(mu, 1), so that both keep pace."""
    outer_lr: Positive = 0.01
    outer_solver: SolverName = "sgd"
    first_multiplier: Positive = 1.0
    """mu_0."""
    growth: Annotated[float, Field(ge=0)] = 1.0
    """d: mu_k = mu_0 (1 + d k)^p at outer step k."""
    power: Annotated[float, Field(ge=0, le=1)] = 6 / 7
    """p."""

    @property
    def needs(self) -> frozenset[str]:
        """First derivatives of both losses."""
        return frozenset({"outer_gradient", "lam_in_inner_loss", "inner_loss"})

    def refuses(self, solver: Solver) -> str | None:
        """y descends a loss of its own."""
        return why_no_noise(solver, "f2sa")

    @property
    def inner_batches(self) -> int:
        """One for every inner step, and one for lam."""
        return self.inner_steps + 1

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """With y and z from the same start."""
        return self.hypergradient_from(ctx, State(lam, theta), episode)

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """Train z and y; the direction of lam is the difference of their first derivatives."""
        lam, held = autodiff.detach(state.lam), state.memory
        mu = self.multiplier(ctx.step)
        ready = ctx.problem.prepare(lam, episode)
        start = ctx.problem.init_inner(lam, episode) if state.theta is None else state.theta
        y = autodiff.detach(start)
        z, _ = inner_loop(
            ctx, lam, held.get("z", y), ready, steps=self.inner_steps, lr=self.inner_lr
        )
        z, solver_state = autodiff.detach(z), ctx.solver.init(y)
        for t in range(self.inner_steps):
            _, back = autodiff.pullback(lambda p, t=t: self.parts(ctx, lam, p, ready, t), y)
            (slope,) = back(_weights(lam, mu))
            y, solver_state = ctx.solver.update(y, slope, solver_state, self.inner_lr / max(mu, 1))

        def difference(x: Params) -> tuple[Tensor, Tensor]:
            here = ctx.problem.prepare(x, episode)
            outer, inner = self.parts(ctx, x, y, here, self.inner_steps)
            return outer, inner - ctx.inner_loss(x, z, here.batch(self.inner_steps))

        (value, _), back = autodiff.pullback(difference, lam)
        (g,) = back(_weights(lam, mu))
        return Hypergradient(value, g, y, memory={"z": z} if ctx.problem.carried else {})

    def multiplier(self, step: int) -> float:
        """mu of an outer step."""
        return float(self.first_multiplier * (1.0 + self.growth * step) ** self.power)

    def parts(
        self, ctx: Context, lam: Params, theta: Params, episode: Episode, t: int
    ) -> tuple[Tensor, Tensor]:
        """Outer loss, and inner loss on batch ``t``."""
        outer = ctx.outer_loss(lam, theta, episode.outer)
        return outer, ctx.inner_loss(lam, theta, episode.batch(t))


def _weights(lam: Params, mu: float) -> tuple[Tensor, Tensor]:
    like = next(iter(lam.values()))
    return like.new_ones(()), like.new_full((), mu)
