"""Trainings and linear systems by a few minibatch steps each: what AmIGO and stocBiO share.

v, the solution of the linear system, is an estimate of -(d2 G / dtheta2)^-1 grad_theta F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import (
    Context,
    Hypergradient,
    Positive,
    SolverName,
    State,
    Steps,
    inner_loop,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.hypergradients.single_loop import stochastic


@dataclass(frozen=True)
class LinearSteps(GradientMethod):
    """Minibatch steps of theta, then of v, then one of lam, each on a minibatch of its own."""

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
