"""One-step lookahead: the outer loss after one more inner step, differentiated through that step.

Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019, arXiv 1806.09055
(equations 6 to 8): grad_lam F(lam, w - xi grad_w G(lam, w)). Truncated unrolling with one step
kept, on a carried theta. Differs from DARTS: the step looked ahead is the one that theta then
takes, and any inner solver can take it.

With ``real_step`` theta takes the step anew under the lam that has just moved, as in Shu et al.:
Meta-Weight-Net, NeurIPS 2019, arXiv 1902.07379, and the authors' MW-Net.py (on one batch):

    lookahead  w' = w - xi grad_w G(lam, w)
    outer      lam <- lam - outer solver(grad_lam F(lam, w'))
    real       v <- m v + grad_w G(lam, w) + d w,   w <- w - xi v

SAMA (Choe et al.: Making Scalable Meta Learning Practical, NeurIPS 2023, arXiv 2310.05674) is the
form by differences with the inner solver Adam and ``keep_moments``: J v with the diagonal D of the
derivative of Adam's update in its gradient before v. Differs from the authors' code (Betty,
sama.py): D is the derivative of the step that is taken, with Adam's bias correction and its eps
(theirs has no correction, and (sqrt + eps)^3 below); the step size is in it for every solver
(theirs: for Adam only); the two gradients are taken where the step looked through starts (theirs:
where it ends), and on a copy (theirs leaves theta at w - e D v). Their R = 1 is ``epsilon`` = 1.
With Adam's memory empty their D is exactly 0, and here what eps leaves of it,
xi eps / (|g| + eps)^2, which float32 may round to 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import (
    Context,
    Hypergradient,
    Positive,
    State,
    inner_loop,
    outer_solver,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, SolverState, why_no_noise
from metabench.core import settings
from metabench.core.registry import method, solvers
from metabench.hypergradients import unrolled

INNER = "inner"
"""In ``State.memory``: the inner solver's state."""


@method("one_step")
@dataclass(frozen=True)
class OneStep(GradientMethod):
    r"""One-step lookahead (DARTS, Liu 2019; SAMA, Choe 2023): through the last inner step.

    Formula:
        \theta^+ = \theta - \eta\, \nabla_\theta G(\lambda, \theta)

        \frac{dF(\lambda, \theta^+)}{d\lambda} = \nabla_\lambda F(\lambda, \theta^+) - \eta\,
        \nabla^2_{\lambda\theta} G(\lambda, \theta)\, \nabla_\theta F(\lambda, \theta^+)

    Loop:
        for t in range(inner_steps - 1):
            theta = theta - inner_lr * dG_dtheta(lam, theta)
        ahead = theta - inner_lr * dG_dtheta(lam, theta)
        mixed = d2G_dlam_dtheta(lam, theta) @ dF_dtheta(lam, ahead)
        lam, theta = lam - outer_lr * (dF_dlam(lam, ahead) - inner_lr * mixed), ahead
    """

    inner_steps: Annotated[int, Field(ge=1)] = 5
    """The last of them is looked through. DARTS takes one, on a carried theta; from fresh weights
    that are zero, one step sees nothing of a weight decay."""
    mixed: Literal["exact", "differences"] = "exact"
    """The product with d2 G / dlam dtheta: a second derivative, or DARTS's difference of two first
    ones."""
    epsilon: Positive = 0.01
    """Length of each difference's half step, in theta."""

    real_step: bool = settings.later(False)
    """Once lam has moved, theta takes its inner steps again, from where it was and on the same
    batches, by torch.optim.SGD's rule, whose velocity goes on from outer step to outer step. The
    inner solver takes the lookahead alone."""
    real_momentum: Annotated[float, Field(ge=0, lt=1)] = settings.later(0.0)
    real_nesterov: bool = settings.later(False)
    real_decay: Annotated[float, Field(ge=0)] = settings.later(0.0)
    """Weight decay of the real steps alone."""
    inner_drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = settings.later(())
    """Parts of the budget after each of which the inner step size is a tenth of what it was."""
    outer_weight_decay: Positive | None = settings.later(None)
    """Of the outer solver, which must have one (torch.optim's L2 form in an Adam); None: none."""
    keep_moments: bool = settings.later(False)
    """Of differences: the inner solver's memory goes on from outer step to outer step, with a
    carried theta. SAMA needs it of an Adam: one that starts anew says next to nothing of its first
    step's gradient, of which it takes the sign."""

    exact_with: ClassVar[dict[str, Any]] = {"inner_steps": 1}

    def __post_init__(self) -> None:
        real = (self.real_momentum, self.real_nesterov, self.real_decay)
        if any(real) and not self.real_step:
            raise ValueError(
                "real_momentum, real_nesterov and real_decay are of the real steps: set real_step "
                "to true"
            )
        if self.keep_moments and (self.mixed == "exact" or self.real_step):
            raise ValueError(
                'keep_moments needs mixed = "differences", and no real_step: the exact form starts '
                "the inner solver anew, and real steps have a velocity of their own"
            )

    @property
    def needs(self) -> frozenset[str]:
        """lam in the inner loss; differences take first derivatives only. A game's last step may
        show lam to a player that the outer loss does not see."""
        own = {"outer_gradient", "lam_in_inner_loss", "inner_loss"}
        return frozenset(own) if self.mixed == "differences" else GRADIENTS | own

    def refuses(self, solver: Solver) -> str | None:
        """Differences look through a step of their own."""
        return why_no_noise(solver, "one_step by differences") if self.mixed != "exact" else None

    def outer_rule(self) -> Solver:
        """With the decay that is set."""
        return outer_solver(
            self.outer_solver, eps=self.outer_eps, weight_decay=self.outer_weight_decay
        )

    @property
    def real_solver(self) -> Solver:
        """What takes the real steps."""
        made: Solver = solvers.get("momentum")(
            momentum=self.real_momentum,
            nesterov=self.real_nesterov,
            weight_decay=self.real_decay,
        )
        return made

    def init(self, ctx: Context) -> State:
        """With the velocity of the real steps, where there are any."""
        state = super().init(ctx)
        if self.keep_moments and state.theta is None:
            ctx.notes["keep_moments"] = "none: every episode starts anew, and its solver with it"
        if not self.real_step:
            return state
        if state.theta is None:
            ctx.notes["real_step"] = "none: every episode starts anew, so that no step is kept"
            return state
        return replace(state, memory={**state.memory, "real": self.real_solver.init(state.theta)})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """The lookahead and lam's step, then the real steps where they are set."""
        now = self.after_drops(ctx)
        new, log = super(OneStep, now).step(ctx, state)
        if state.theta is None or not self.real_step:
            return new, log
        theta, real = inner_loop(
            replace(ctx, solver=self.real_solver),
            new.lam,
            state.theta,
            ctx.problem.prepare(new.lam, ctx.training_episodes()[-1]),
            steps=self.inner_steps,
            lr=now.inner_lr,
            solver_state=state.memory["real"],
        )
        memory = {**new.memory, "real": autodiff.detach_tree(real)}
        return replace(new, theta=autodiff.detach(theta), memory=memory), log

    def after_drops(self, ctx: Context) -> OneStep:
        """With the inner step size of this outer step."""
        progress = ctx.progress
        if self.inner_drops and progress is None:
            ctx.notes["inner_drops"] = "none: only time limits the run"
        passed = sum(progress is not None and progress >= part for part in self.inner_drops)
        return replace(self, inner_lr=self.inner_lr * 0.1**passed) if passed else self

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """From the inner solver's memory, where it is kept."""
        if not self.keep_moments or state.theta is None:
            return super().hypergradient_from(ctx, state, episode)
        lam, theta = autodiff.detach(state.outer), autodiff.detach(state.theta)
        return self.by_differences(ctx, lam, theta, episode, state.memory.get(INNER))

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
        self,
        ctx: Context,
        lam: Params,
        theta: Params,
        episode: Episode,
        memory: SolverState | None = None,
    ) -> Hypergradient:
        """With u = (d Phi / d g)' grad_theta F, g the inner gradient of the last step at theta:
        [grad_lam G(lam, theta + e u) - grad_lam G(lam, theta - e u)] / 2e, e = epsilon / |u|.
        ``memory``: the inner solver's before the first step; None: it starts anew."""
        problem, last = ctx.problem, self.inner_steps - 1
        ready = problem.prepare(lam, episode)
        theta, state = inner_loop(
            ctx, lam, theta, ready, steps=last, lr=self.inner_lr, solver_state=memory
        )
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
        kept = {}
        if self.keep_moments:
            kept[INNER] = ctx.solver.update(theta, g, state, self.inner_lr)[1]
        return Hypergradient(value, autodiff.axpy(1.0, mixed, direct), end, memory=kept)
