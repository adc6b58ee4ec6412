"""Warm-started minibatch steps for theta, then for the linear system, then one of lam.

AmIGO: Arbel, Mairal: Amortized Implicit Differentiation for Stochastic Bilevel Optimization, ICLR
2022, arXiv 2111.14580. An outer step:

    theta  <-  theta - rho grad_theta G                              ``inner_steps`` times
    v      <-  v - sigma [(d2 G / dtheta2) v + grad_theta F]         ``linear_steps`` times
    lam    <-  lam - gamma [(d2 G / dlam dtheta) v + grad_lam F]

each on a minibatch of its own; theta and v go on from where the last outer step left them. Where
every episode starts anew so do they, and v is the Neumann series of ``linear_steps`` terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    GradientMethod,
    Hypergradient,
    Positive,
    SolverName,
    State,
    Steps,
    inner_loop,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.core.registry import method
from metabench.hypergradients import stochastic


@method("amigo")
@dataclass(frozen=True)
class AmIGO(GradientMethod):
    """AmIGO (Arbel 2022): warm-started stochastic steps for theta and for the linear system."""

    inner_steps: Steps = 10
    linear_steps: Steps = 10
    """Minibatch steps on v in an outer step."""
    linear_lr: Positive | None = None
    """sigma; None: ``inner_lr``."""
    outer_lr: Positive = 0.01
    outer_solver: SolverName = "sgd"

    warm: ClassVar[bool] = True
    """Whether a carried v goes on from the last outer step."""

    @property
    def needs(self) -> frozenset[str]:
        """lam must enter the inner loss, as for all implicit methods."""
        return GRADIENTS | {"lam_in_inner_loss"}

    @property
    def inner_batches(self) -> int:
        """One for every step of theta and of v, and one for lam."""
        return self.inner_steps + self.linear_steps + 1

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """At a point: v starts from zero."""
        return self.hypergradient_from(ctx, State(lam, theta), episode)

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """Train theta, step v, and say where lam should go."""
        lam = autodiff.detach(state.lam)
        ready = ctx.problem.prepare(lam, episode)
        start = ctx.problem.init_inner(lam, episode) if state.theta is None else state.theta
        theta, _ = inner_loop(
            ctx, lam, autodiff.detach(start), ready, steps=self.inner_steps, lr=self.inner_lr
        )
        theta = autodiff.detach(theta)
        outer = stochastic.outer(ctx, lam, theta, episode)
        rate = self.inner_lr if self.linear_lr is None else self.linear_lr
        v = state.memory.get("v") or self.first(outer.theta, rate)
        for t in range(self.inner_steps, self.inner_steps + self.linear_steps):
            curved = stochastic.curved(ctx, lam, theta, v, ready, t)
            v = autodiff.axpy(-rate, autodiff.axpy(1.0, outer.theta, curved), v)
        mixed = stochastic.mixed(ctx, lam, theta, v, episode, self.inner_batches - 1)
        kept = {"v": v} if self.warm and ctx.problem.carried else {}
        return Hypergradient(outer.value, autodiff.axpy(1.0, mixed, outer.lam), theta, memory=kept)

    def first(self, slope: Params, rate: float) -> Params:
        """The v that linear steps start from, given grad_theta F: zero."""
        return stochastic.zeros(slope)
