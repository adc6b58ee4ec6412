"""Bilevel optimisation made easy: first derivatives only, and a multiplier in closed form.

Liu, Ye, Wright, Stone, Liu: BOME! Bilevel Optimization Made Easy: A Simple First-Order Approach,
NeurIPS 2022, arXiv 2209.08709. With theta_T after T inner steps from theta, held constant,

    q(lam, theta) = G(lam, theta) - G(lam, theta_T)
    m = max(phi - <grad F, grad q>, 0) / |grad q|^2,    phi = eta |grad q|^2  or  eta q
    (lam, theta)  <-  (lam, theta) - step (grad F + m grad q)

gradients in lam and theta together. The two step sizes may differ. m is 0 where q has no gradient:
some code divides there, 0 / 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    InnerTraining,
    Positive,
    SolverName,
    State,
    inner_loop,
    outer_solver,
)
from metabench.contract.problem import Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core.errors import Diverged
from metabench.core.registry import method
from metabench.hypergradients.single_loop import stochastic


@method("bome")
@dataclass(frozen=True)
class BOME(InnerTraining):
    r"""BOME (Liu 2022): a value-gap constraint whose multiplier is set anew at every step.

    Formula:
        q(\lambda, \theta) = G(\lambda, \theta) - G(\lambda, \theta_T), \qquad m =
        \frac{\max\left( \eta\, \|\nabla q\|^2 - \langle \nabla F, \nabla q \rangle,\, 0
        \right)}{\|\nabla q\|^2}

        (\lambda, \theta) \leftarrow (\lambda, \theta) - \alpha \left( \nabla F + m\, \nabla q
        \right)

    Loop:
        ahead = theta
        for t in range(inner_steps):
            ahead = ahead - inner_lr * dG_dtheta(lam, ahead)
        q_lam, q_theta = dG_dlam(lam, theta) - dG_dlam(lam, ahead), dG_dtheta(lam, theta)
        f_lam, f_theta = dF_dlam(lam, theta), dF_dtheta(lam, theta)
        square = q_lam @ q_lam + q_theta @ q_theta
        m = max(eta * square - f_lam @ q_lam - f_theta @ q_theta, 0) / square
        lam = lam - outer_lr * (f_lam + m * q_lam)
        theta = theta - theta_lr * (f_theta + m * q_theta)
    """

    eta: Positive = 0.5
    """How fast the gap is to fall."""
    barrier: Literal["slope", "gap"] = "slope"
    """phi: eta |grad q|^2 (the toy experiments' code), or eta q (data cleaning's)."""
    theta_lr: Positive = 0.1
    """Of theta; ``inner_lr`` and ``inner_steps`` are those of theta_T."""
    outer_lr: Positive = 0.1
    outer_solver: SolverName = "sgd"

    @property
    def needs(self) -> frozenset[str]:
        """First derivatives, of one training along the run."""
        return frozenset({"outer_gradient", "lam_in_inner_loss", "inner_loss", "carried"})

    def refuses(self, solver: Solver) -> str | None:
        """theta descends a loss of its own."""
        return why_no_noise(solver, "bome")

    def init(self, ctx: Context) -> State:
        """The first lam and theta, and the states of the solvers that move them."""
        lam = ctx.problem.init_outer()
        theta = self.first_theta(ctx, lam)
        assert theta is not None
        outer = outer_solver(self.outer_solver).init(lam)
        return State(lam, theta, {"outer": outer, "inner": ctx.solver.init(theta)})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Follow the inner minimiser, weigh both gradients, move lam and theta together."""
        assert state.theta is not None
        episode = ctx.training_episodes()[0]
        lam, theta = autodiff.detach(state.lam), state.theta
        ready = ctx.problem.prepare(lam, episode)
        ahead, _ = inner_loop(ctx, lam, theta, ready, steps=self.inner_steps, lr=self.inner_lr)
        ahead = autodiff.detach(ahead)
        outer = stochastic.outer(ctx, lam, theta, episode)

        def gap(x: Params, y: Params) -> Tensor:
            batch = ctx.problem.prepare(x, episode).batch(self.inner_steps)
            return ctx.inner_loss(x, y, batch) - ctx.inner_loss(x, ahead, batch)

        q, back = autodiff.pullback(gap, lam, theta)
        to_lam, to_theta = back(torch.ones_like(q))
        m = self.multiplier(
            q,
            autodiff.dot(to_lam, to_lam) + autodiff.dot(to_theta, to_theta),
            autodiff.dot(outer.lam, to_lam) + autodiff.dot(outer.theta, to_theta),
        )
        g, slope = autodiff.axpy(m, to_lam, outer.lam), autodiff.axpy(m, to_theta, outer.theta)
        log = {
            "outer_loss": float(outer.value), "value_gap": float(q), "multiplier": float(m),
            "hypergradient_norm": float(autodiff.norm(g)),
        }  # fmt: skip
        if not math.isfinite(log["hypergradient_norm"]):
            raise Diverged(f"the direction of lam at outer step {ctx.step} is not finite")
        rule, held = outer_solver(self.outer_solver), state.memory
        moved, memory = rule.update(lam, g, held["outer"], self.outer_lr)
        end, inner = ctx.solver.update(theta, slope, held["inner"], self.theta_lr)
        return State(ctx.problem.project(moved), end, {"outer": memory, "inner": inner}), log

    def multiplier(self, q: Tensor, square: Tensor, along: Tensor) -> Tensor:
        """m, from q, |grad q|^2 and <grad F, grad q>."""
        phi = self.eta * (square if self.barrier == "slope" else q)
        m = (phi - along).clamp(min=0.0) / torch.where(square > 0, square, 1.0)
        return torch.where(square > 0, m, 0.0)
