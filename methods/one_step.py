"""One-step lookahead: the outer loss after one more inner step, differentiated through that step.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, arXiv 1806.09055
(equations 6 to 8): grad_lam F(lam, w - xi grad_w G(lam, w)). Truncated unrolling with one step
kept, on a carried theta. Differs from DARTS: the step looked ahead is the one that theta then
takes, and any inner solver can take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.method import Context, GradientMethod, Hypergradient, Positive, inner_loop
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core.registry import method
from metabench.hypergradients import unrolled


@method("one_step")
@dataclass(frozen=True)
class OneStep(GradientMethod):
    """One-step lookahead (DARTS, Liu 2019): through the last inner step; exact or differences."""

    inner_steps: Annotated[int, Field(ge=1)] = 5
    """The last of them is looked through. DARTS takes one, on a carried theta; from fresh weights
    that are zero, one step sees nothing of a weight decay."""
    mixed: Literal["exact", "differences"] = "exact"
    """The product with d2 G / dlam dtheta: a second derivative, or DARTS's difference of two first
    ones."""
    epsilon: Positive = 0.01
    """Length of each difference's half step, in theta."""

    exact_with: ClassVar[dict[str, Any]] = {"inner_steps": 1}

    @property
    def needs(self) -> frozenset[str]:
        """lam in the inner loss; differences take first derivatives only. A game's last step may
        show lam to a player that the outer loss does not see."""
        own = {"outer_gradient", "lam_in_inner_loss", "inner_loss"}
        return frozenset(own) if self.mixed == "differences" else GRADIENTS | own

    def refuses(self, solver: Solver) -> str | None:
        """Differences look through a step of their own."""
        return why_no_noise(solver, "one_step by differences") if self.mixed != "exact" else None

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """grad_lam F + (d Phi / d lam)' grad_theta F at theta_T = Phi(theta_{T-1}, lam)."""
        lam = autodiff.detach(lam)
        start = autodiff.detach(ctx.problem.init_inner(lam, episode) if theta is None else theta)
        if self.mixed == "differences":
            return self.by_differences(ctx, lam, start, episode)
        return unrolled.reverse(
            ctx, lam, start, episode, steps=self.inner_steps, rate=self.rate, truncate=1
        )

    def by_differences(
        self, ctx: Context, lam: Params, theta: Params, episode: Episode
    ) -> Hypergradient:
        """With u = (d Phi / d g)' grad_theta F, g the inner gradient of the last step at theta:
        [grad_lam G(lam, theta + e u) - grad_lam G(lam, theta - e u)] / 2e, e = epsilon / |u|."""
        problem, last = ctx.problem, self.inner_steps - 1
        ready = problem.prepare(lam, episode)
        theta, state = inner_loop(ctx, lam, theta, ready, steps=last, lr=self.inner_lr)
        g = ctx.inner_grad(lam, theta, ready.batch(last), create_graph=False)
        end, to_g = autodiff.pullback(
            lambda x: ctx.solver.update(theta, x, state, self.inner_lr)[0], g
        )
        value, to_both = autodiff.pullback(
            lambda p, y: ctx.outer_loss(p, y, problem.prepare(p, episode).outer), lam, end
        )
        direct, v = to_both(torch.ones_like(value))
        (u,) = to_g(v)
        size = torch.linalg.vector_norm(autodiff.flatten(u))
        e = self.epsilon / torch.where(size == 0, 1.0, size)

        def slope(sign: float) -> Params:
            at = autodiff.axpy(sign * e, u, theta)
            return autodiff.grad(
                lambda p: ctx.inner_loss(p, at, problem.prepare(p, episode).batch(last)), lam
            )[1]

        up, down = slope(1.0), slope(-1.0)
        mixed = {k: (up[k] - down[k]) / (2 * e) for k in lam}
        return Hypergradient(value, autodiff.axpy(1.0, mixed, direct), end)
