"""Penalty-based bilevel gradient descent: the inner problem as a penalty on the outer loss.

Shen, Chen: On Penalty-based Bilevel Gradient Descent Method, ICML 2023, arXiv 2302.05185.

    min over lam, theta of  F(lam, theta) + gamma p(lam, theta)
    V-PBGD: p = G(lam, theta) - v(lam), v(lam) = min over omega of G(lam, omega)
    G-PBGD: p = 1/2 |grad_theta G(lam, theta)|^2

grad v(lam) is grad_lam G(lam, omega) at a minimiser omega (Danskin), which is followed by a few
steps on a copy of theta that is carried along: nothing is differentiated through omega, and V-PBGD
needs first derivatives only. As in the authors' code gamma rises by equal steps to its largest
value, both step sizes are scaled by min(1 / gamma, 1), and the squared gradient has a factor 1/2
that the paper's p has not. Differs: update rules come from the solver registry, plain gradient
descent by default.

Where every episode starts anew there is nothing to carry: theta first descends the penalised loss,
and lam moves by its gradient there. What theta has still to go then counts gamma times. In the
value gap it cancels with what omega has to go; in the squared gradient nothing cancels it, and lam
would follow theta's start, so theta goes on for longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    Hypergradient,
    InnerTraining,
    Positive,
    SolverName,
    State,
    Steps,
    inner_loop,
    outer_solver,
)
from metabench.contract.problem import Episode, Params
from metabench.contract.solver import Solver, SolverState, why_no_noise
from metabench.core.errors import Diverged
from metabench.core.registry import method


class Follower(NamedTuple):
    """A point that inner steps move, and its solver's state."""

    at: Params
    state: SolverState


NOWHERE = Follower({}, {})


class Descent(NamedTuple):
    """One episode's part of a step; ``grad`` and ``slope`` are those of the penalised loss in lam
    and in theta, ``parts`` [2] the outer loss and the penalty."""

    parts: Tensor
    grad: Params
    slope: Params
    theta: Follower
    omega: Follower


@method("pbgd")
@dataclass(frozen=True)
class PBGD(InnerTraining):
    r"""Penalty-based bilevel descent (Shen 2023): V-PBGD (value gap) or G-PBGD (gradient norm).

    Formula:
        \min_{\lambda,\, \theta}\; F(\lambda, \theta) + \gamma\, p(\lambda, \theta)

        p = G(\lambda, \theta) - \min_{\omega} G(\lambda, \omega) \quad \text{(value gap)}, \qquad
        p = \tfrac12 \|\nabla_\theta G(\lambda, \theta)\|^2 \quad \text{(gradient norm)}

    Loop:
        for t in range(inner_steps):  # the value gap's form
            omega = omega - inner_lr * dG_dtheta(lam, omega)
        scale = 1 / max(gamma, 1)  # gamma rises from gamma_first to gamma_max
        d_lam = dF_dlam(lam, theta) + gamma * (dG_dlam(lam, theta) - dG_dlam(lam, omega))
        d_theta = dF_dtheta(lam, theta) + gamma * dG_dtheta(lam, theta)
        lam, theta = lam - outer_lr * scale * d_lam, theta - theta_lr * scale * d_theta
    """

    penalty: Literal["value", "gradient"] = "value"
    gamma_first: Annotated[float, Field(ge=0)] = 0.0
    gamma_max: Positive = 10.0
    ramp_steps: Steps = 20
    """Outer steps from ``gamma_first`` to ``gamma_max``, in equal steps."""
    outer_lr: Positive = 0.1
    outer_solver: SolverName = "sgd"
    theta_lr: Positive = 0.1
    """Of theta on the penalised loss; ``inner_lr`` and ``inner_steps`` are omega's (V-PBGD)."""
    ahead: Steps | None = None
    """Steps of theta alone before the one that moves lam. None: none where theta is carried, which
    is the paper's method; where every episode starts anew ``inner_steps``, or ten times as many
    for the squared gradient."""

    @property
    def needs(self) -> frozenset[str]:
        """lam must enter the inner loss: the penalty is all that tells lam of theta's training.

        A lam that is only where theta starts has no penalty gradient. The value gap takes first
        derivatives; the squared gradient is differentiated, and needs second ones.
        """
        second = {"second_order"} if self.penalty == "gradient" else set()
        return frozenset({"outer_gradient", "lam_in_inner_loss", "inner_loss"} | second)

    def __post_init__(self) -> None:
        if self.gamma_first > self.gamma_max:
            raise ValueError(
                f"the penalty constant rises: gamma_first = {self.gamma_first:g} is above "
                f"gamma_max = {self.gamma_max:g}"
            )

    def refuses(self, solver: Solver) -> str | None:
        """theta descends the penalised loss."""
        return why_no_noise(solver, "pbgd")

    def gamma(self, step: int) -> float:
        """The penalty constant of an outer step."""
        if step >= self.ramp_steps:
            return self.gamma_max
        return self.gamma_first + (self.gamma_max - self.gamma_first) * step / self.ramp_steps

    def init(self, ctx: Context) -> State:
        """The first lam; where theta is carried, theta and omega at the same start."""
        lam = ctx.problem.init_outer()
        theta = self.first_theta(ctx, lam)
        memory: dict[str, object] = {"outer": outer_solver(self.outer_solver).init(lam)}
        if theta is not None:
            memory["theta"] = ctx.solver.init(theta)
            if self.penalty == "value":
                memory["omega"] = {k: v.clone() for k, v in theta.items()}
                memory["omega_solver"] = ctx.solver.init(theta)
        return State(lam, theta, memory)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """omega follows the inner minimiser; lam and theta descend the penalised loss together."""
        gamma, held = self.gamma(ctx.step), state.memory
        scale = 1.0 / max(gamma, 1.0)
        theta = omega = None
        if state.theta is not None:
            theta = Follower(state.theta, held["theta"])
            omega = Follower(held["omega"], held["omega_solver"]) if "omega" in held else NOWHERE
        found = ctx.over_episodes(
            lambda e: self.descend(ctx, state.lam, theta, omega, e, gamma),
            ctx.training_episodes(),
            steps=max(self.inner_steps, self._ahead(theta)) + 1,
        )
        g = autodiff.mean(d.grad for d in found)
        log = self._log(g, torch.stack([d.parts for d in found]), gamma, ctx.step)
        lam, outer = outer_solver(self.outer_solver).update(
            state.lam, g, held["outer"], self.outer_lr * scale
        )
        lam, memory = ctx.problem.project(lam), {"outer": outer}
        if theta is None:
            return State(lam, None, memory), log
        last = found[-1]
        end, memory["theta"] = ctx.solver.update(
            last.theta.at, last.slope, last.theta.state, self.theta_lr * scale
        )
        if last.omega.at:
            memory["omega"], memory["omega_solver"] = last.omega
        return State(lam, end, memory), log

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """The gradient of the penalised loss in lam, with omega starting where theta does.

        With theta at its minimiser it is the hypergradient but for O(1 / gamma).
        """
        start = None if theta is None else Follower(theta, ctx.solver.init(theta))
        d = self.descend(ctx, lam, start, start, episode, self.gamma(ctx.step))
        return Hypergradient(d.parts[0], d.grad, d.theta.at)

    def descend(
        self,
        ctx: Context,
        lam: Params,
        theta: Follower | None,
        omega: Follower | None,
        episode: Episode,
        gamma: float,
    ) -> Descent:
        """``inner_steps`` of omega, the steps ahead of theta, then both gradients in one pass."""
        lam = autodiff.detach(lam)
        ready = ctx.problem.prepare(lam, episode)
        ahead = self._ahead(theta)
        if theta is None:
            start = autodiff.detach(ctx.problem.init_inner(lam, episode))
            theta = omega = Follower(start, ctx.solver.init(start))
        follower = NOWHERE
        if self.penalty == "value":
            assert omega is not None
            follower = Follower(
                *autodiff.detach_tree(
                    inner_loop(ctx, lam, omega.at, ready, steps=self.inner_steps,
                               lr=self.inner_lr, solver_state=omega.state)
                )
            )  # fmt: skip
        for t in range(ahead):
            _, back = autodiff.pullback(
                lambda y, t=t: self.parts(ctx, lam, y, {}, ready, t), theta.at
            )
            (slope,) = back(_weights(lam, gamma))
            rate = self.theta_lr / max(gamma, 1.0)
            theta = Follower(*ctx.solver.update(theta.at, slope, theta.state, rate))

        def both(x: Params, y: Params) -> tuple[Tensor, Tensor]:
            here = ctx.problem.prepare(x, episode)
            t = max(self.inner_steps, ahead)
            return self.parts(ctx, x, y, follower.at, here, t, mixed_products=1)

        parts, back = autodiff.pullback(both, lam, theta.at)
        grad, slope = back(_weights(lam, gamma))
        return Descent(torch.stack(parts).detach(), grad, slope, theta, follower)

    def parts(
        self,
        ctx: Context,
        lam: Params,
        theta: Params,
        omega: Params,
        episode: Episode,
        t: int,
        mixed_products: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Outer loss and penalty on inner batch ``t``, the same for theta and omega.

        With an empty omega the value gap lacks v(lam), which theta's gradient does not need.
        """
        batch, inner = episode.batch(t), ctx.inner_loss
        outer = ctx.outer_loss(lam, theta, episode.outer)
        if self.penalty == "gradient":
            slope = ctx.inner_grad(lam, theta, batch, hvps=1, mixed_products=mixed_products)
            return outer, 0.5 * autodiff.dot(slope, slope)
        gap = inner(lam, theta, batch)
        return outer, gap - inner(lam, omega, batch) if omega else gap

    def _ahead(self, theta: Follower | None) -> int:
        if self.ahead is not None:
            return self.ahead
        if theta is not None:
            return 0
        return self.inner_steps * (1 if self.penalty == "value" else 10)

    def _log(self, g: Params, parts: Tensor, gamma: float, step: int) -> dict[str, float]:
        """Numbers of a step, brought from the device at once; raises Diverged."""
        mean = parts.mean(0).double()
        outer, penalty, size = torch.stack([*mean, autodiff.norm(g).to(mean)]).tolist()
        if not math.isfinite(size):
            raise Diverged(f"the gradient of the penalised loss at outer step {step} is not finite")
        name = "value_gap" if self.penalty == "value" else "squared_gradient"
        return {"outer_loss": outer, name: penalty, "gamma": gamma, "hypergradient_norm": size}


def _weights(lam: Params, gamma: float) -> tuple[Tensor, Tensor]:
    """What outer loss and penalty count in the penalised loss."""
    like = next(iter(lam.values()))
    return like.new_ones(()), like.new_full((), gamma)
