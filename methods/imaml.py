"""iMAML: initial weights whose proximal adaptation is differentiated implicitly.

Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019, arXiv
1909.04630. phi = argmin L_S(phi) + mu/2 |phi - theta|^2, followed by inner steps, and

    g = (I + H / mu)^-1 grad L_Q(phi),    H the Hessian of L_S at phi,

by a few steps of conjugate gradient. As in the authors' code an extra ``damping`` can be added to
mu in this solve alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.method import Context, GradientMethod, Hypergradient, Positive, State, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core.registry import method
from metabench.hypergradients import implicit


@method("imaml")
@dataclass(frozen=True)
class IMAML(GradientMethod):
    """iMAML (Rajeswaran 2019): initial weights by the implicit gradient of a proximal problem."""

    inner_steps: Steps = 16
    mu: Positive = 2.0
    """Strength of the pull towards the initial weights."""
    terms: Annotated[int, Field(ge=1)] = 5
    """Steps of conjugate gradient."""
    damping: Annotated[float, Field(ge=0)] = 0.0
    """Added to mu in the solve; 1 in the authors' example. The result is then not exact."""
    indefinite: implicit.AtNegativeCurvature = "truncate"
    """At a curvature below -mu: end the run, or keep what conjugate gradient has so far."""

    exact_with: ClassVar[dict[str, Any]] = {
        "mu": 2.0, "damping": 0.0, "terms": 20, "inner_steps": 400, "inner_lr": 0.1
    }  # fmt: skip

    @property
    def needs(self) -> frozenset[str]:
        """lam = initial weights, and second derivatives."""
        return GRADIENTS | {"lam_is_initialisation", "inner_loss"}

    @property
    def inner_batches(self) -> int:
        """One for every inner step, and one for the Hessian."""
        return self.inner_steps + 1

    def refuses(self, solver: Solver) -> str | None:
        """The proximal minimiser is sought, no sample."""
        return why_no_noise(solver, "imaml")

    def adapted(
        self, ctx: Context, lam: Params, centre: Params, start: Params, episode: Episode, steps: int
    ) -> Params:
        """phi after inner steps on L_S(phi) + mu/2 |phi - centre|^2 from ``start``."""
        phi, state = start, ctx.solver.init(start)
        for t in range(steps):
            g = ctx.inner_grad(lam, phi, episode.batch(t), create_graph=False)
            g = autodiff.axpy(self.mu, autodiff.axpy(-1.0, centre, phi), g)
            phi, state = ctx.solver.update(phi, g, state, self.inner_lr)
        return autodiff.detach(phi)

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """(I + H / mu)^-1 grad L_Q(phi), carried back to lam through where phi starts."""
        lam, ready = implicit.prepared(ctx, lam, episode)
        centre, back = autodiff.pullback(lambda p: ctx.problem.init_inner(p, episode), lam)
        start = centre if theta is None else theta
        phi = self.adapted(ctx, lam, centre, start, ready, self.inner_steps)
        pull = self.mu + self.damping
        at = implicit.linearise(ctx, lam, phi, episode, ready, batch=self.inner_steps, damping=pull)
        x, diagnostics = implicit.conjugate_gradient(at.product, at.v, terms=self.terms)
        g = autodiff.axpy(1.0, back(autodiff.unflatten(pull * x, phi))[0], at.direct)
        if "lam_in_inner_loss" in ctx.offers:
            g = autodiff.axpy(-1.0, at.mixed(x), g)
        return Hypergradient(at.value, g, phi, diagnostics)

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The proximal inner steps that training takes, ``test_steps`` of them."""
        lam = autodiff.detach(state.lam)
        centre = autodiff.detach(ctx.problem.init_inner(lam, episode))
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        ready = ctx.problem.prepare(lam, episode)
        return self.adapted(ctx, lam, centre, state.theta or centre, ready, steps)

    def check_diagnostics(self, ctx: Context, diagnostics: Mapping[str, float]) -> None:
        """Negative curvature of the proximal problem is noted, or ends the run."""
        implicit.check_solution(ctx, diagnostics, indefinite=self.indefinite)
