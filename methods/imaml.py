"""iMAML: initial weights whose proximal adaptation is differentiated implicitly.

Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019, arXiv
1909.04630. phi = argmin L_S(phi) + mu/2 |phi - theta|^2, followed by inner steps, and

    g = (I + H / mu)^-1 grad L_Q(phi),    H the Hessian of L_S at phi,

by a few steps of conjugate gradient. That is the text. The authors' code (imaml_dev, its Omniglot
example) differs, and ``form = "code"`` with two constants follows it:

    inner training       plain steps without the pull, then one step of the pull alone
    the solve            ((1 + c) I + H / (mu + d)) x = grad L_Q: ``identity`` c is its cg_damping,
                         ``damping`` d its lam_damping (10 by default)
    a test episode       plain steps

With its README's mu = 2, c = 1 and d = 10 the system is (2 I + H / 12) x = g. The outer Adam's eps
of 1e-3 is ``outer_eps``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, Positive, State, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, why_no_noise
from metabench.core import settings
from metabench.core.registry import method
from metabench.hypergradients import implicit


@method("imaml")
@dataclass(frozen=True)
class IMAML(GradientMethod):
    r"""iMAML (Rajeswaran 2019): initial weights by the implicit gradient of a proximal problem.

    Formula:
        \phi_i = \operatorname*{arg\,min}_{\phi}\; G_i(\phi) + \tfrac{\mu}{2} \|\phi - \lambda\|^2

        g = \frac{1}{n} \sum_{i=1}^{n} \left( I + \tfrac{1}{\mu} \nabla^2 G_i(\phi_i) \right)^{-1}
        \nabla F_i(\phi_i)

    Loop:
        g = 0
        for F, G in episodes:
            phi = lam
            for t in range(inner_steps):
                phi = phi - inner_lr * (grad(G(phi), phi) + mu * (phi - lam))
            g = g + solve(eye + hessian(G, phi) / mu, grad(F(phi), phi)) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_steps: Steps = 16
    mu: Positive = 2.0
    """Strength of the pull towards the initial weights."""
    terms: Annotated[int, Field(ge=1)] = 5
    """Steps of conjugate gradient."""
    damping: Annotated[float, Field(ge=0)] = 0.0
    """d: added to mu in the solve. The result is then not exact."""
    indefinite: implicit.AtNegativeCurvature = "truncate"
    """At a curvature below -mu: end the run, or keep what conjugate gradient has so far."""

    identity: Annotated[float, Field(ge=0)] = settings.later(0.0)
    """c: added to the identity of the solve. The result is then shorter, and not exact."""
    form: Literal["text", "code"] = settings.later("text")
    """Of the inner training: the pull in every step, or after all of them and in training alone."""

    exact_with: ClassVar[dict[str, Any]] = {
        "identity": 0.0, "form": "text",
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
        """phi after inner steps on L_S(phi) + mu/2 |phi - centre|^2 from ``start``, in the form of
        the code on L_S alone."""
        phi, state = start, ctx.solver.init(start)
        for t in range(steps):
            g = ctx.inner_grad(lam, phi, episode.batch(t), create_graph=False)
            if self.form == "text":
                g = autodiff.axpy(1.0, g, self.pull(phi, centre))
            phi, state = ctx.solver.update(phi, g, state, self.inner_lr)
        return autodiff.detach(phi)

    def pull(self, phi: Params, centre: Params) -> Params:
        """The gradient of mu/2 |phi - centre|^2."""
        return {k: self.mu * (v - centre[k]) for k, v in phi.items()}

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """(I + H / mu)^-1 grad L_Q(phi), carried back to lam through where phi starts."""
        lam, ready = implicit.prepared(ctx, lam, episode)
        centre, back = autodiff.pullback(lambda p: ctx.problem.init_inner(p, episode), lam)
        start = centre if theta is None else theta
        phi = self.adapted(ctx, lam, centre, start, ready, self.inner_steps)
        if self.form == "code":
            phi = autodiff.axpy(-self.inner_lr, self.pull(phi, centre), phi)
        pull = self.mu + self.damping
        at = implicit.linearise(
            ctx, lam, phi, episode, ready,
            batch=self.inner_steps, damping=(1.0 + self.identity) * pull,
        )  # fmt: skip
        x, diagnostics = implicit.conjugate_gradient(at.product, at.v, terms=self.terms)
        g = autodiff.axpy(1.0, back(autodiff.unflatten(pull * x, phi))[0], at.direct)
        if "lam_in_inner_loss" in ctx.offers:
            g = autodiff.axpy(-1.0, at.mixed(x), g)
        return Hypergradient(at.value, g, phi, diagnostics)

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The inner steps that training takes, ``test_steps`` of them; in the form of the code
        without a pull."""
        lam = autodiff.detach(state.lam)
        centre = autodiff.detach(ctx.problem.init_inner(lam, episode))
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        ready = ctx.problem.prepare_inner(lam, episode)
        return self.adapted(ctx, lam, centre, state.theta or centre, ready, steps)

    def check_diagnostics(self, ctx: Context, diagnostics: Mapping[str, float]) -> None:
        """Negative curvature of the proximal problem is noted, or ends the run."""
        implicit.check_solution(ctx, diagnostics, indefinite=self.indefinite)
