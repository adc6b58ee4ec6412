"""Implicit differentiation: the hypergradient at the end of inner training, none through it.

Lorraine, Vicol, Duvenaud: Optimizing Millions of Hyperparameters by Implicit Differentiation,
AISTATS 2020, arXiv 1911.02590 (Neumann series, warm-started inner steps). Other inverses of the
Hessian: conjugate gradient (Pedregosa, ICML 2016, arXiv 1602.02355), and the identity (T1-T2:
Luketina, Berglund, Greff, Raiko, ICML 2016, arXiv 1511.06727). Differs: the outer loss's own
gradient in lam is always there; the inner solver starts anew at each outer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, Positive, Steps, inner_loop
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.core.registry import method
from metabench.hypergradients import implicit


@method("ift")
@dataclass(frozen=True)
class IFT(GradientMethod):
    r"""Implicit differentiation (Lorraine 2020): Neumann series, conjugate gradient, or T1-T2.

    Formula:
        \frac{dF}{d\lambda} = \nabla_\lambda F - \nabla^2_{\lambda\theta} G\, H^{-1} \nabla_\theta
        F, \qquad H = \nabla^2_{\theta\theta} G

        H^{-1} \approx \alpha \sum_{j=0}^{K} (I - \alpha H)^j

    Loop:
        for t in range(inner_steps):
            theta = theta - inner_lr * dG_dtheta(lam, theta)
        x = r = alpha * dF_dtheta(lam, theta)
        for j in range(terms):
            r = r - alpha * d2G_dtheta2(lam, theta) @ r
            x = x + r
        lam = lam - outer_lr * (dF_dlam(lam, theta) - d2G_dlam_dtheta(lam, theta) @ x)
    """

    inverse: Literal["neumann", "cg", "identity", "exact"] = "neumann"
    """"exact": pseudo-inverse of the whole Hessian, for a small theta."""
    terms: Steps = 20
    """Hessian products of a hypergradient (series, conjugate gradient)."""
    alpha: Positive | None = None
    """Step of the series; None: ``inner_lr``. The identity is multiplied by it; None: by 1."""
    damping: Annotated[float, Field(ge=0)] = 0.0
    """Added to every eigenvalue of the Hessian."""
    tolerance: Positive | None = None
    """Stop before ``terms`` where the relative residual is as small; looked at every few terms."""
    growth_limit: Positive = 10.0
    """The run ends where the series' last term is this many times its first."""
    indefinite: implicit.AtNegativeCurvature = "stop"
    """At negative curvature conjugate gradient ends the run, or keeps what it has so far."""

    by_examples: ClassVar[bool] = True
    exact_with: ClassVar[dict[str, Any]] = {
        "inverse": "neumann", "alpha": None, "terms": 400, "damping": 0.0, "tolerance": None,
        "inner_steps": 400, "inner_lr": 0.2,
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.inverse == "identity" and self.damping:
            raise ValueError("the identity has no eigenvalues to damp: leave damping at 0")
        if self.inverse == "cg" and not self.terms:
            raise ValueError("conjugate gradient starts at zero: it needs a term at least")
        if self.inverse not in ("neumann", "cg") and self.tolerance is not None:
            raise ValueError(f"{self.inverse} has no terms to stop before: leave tolerance unset")
        if self.inverse in ("cg", "exact") and self.alpha is not None:
            raise ValueError(f"{self.inverse} has no step to set: leave alpha unset")

    @property
    def needs(self) -> frozenset[str]:
        """lam must enter the inner loss: through where training starts, or how, nothing is seen."""
        return GRADIENTS | {"lam_in_inner_loss"}

    @property
    def batched(self) -> bool:
        """Episodes that stop each at its own term cannot be worked through at once."""
        return self.tolerance is None

    @property
    def adapts_batched(self) -> bool:
        """No term is taken for an adaptation."""
        return True

    @property
    def capturable(self) -> bool:
        """With a fixed number of terms."""
        return self.tolerance is None and self.inverse != "exact"

    @property
    def inner_batches(self) -> int:
        """One for every inner step, and one for the Hessian."""
        return self.inner_steps + 1

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """grad_lam F - (d2 G / dlam dtheta) H^-1 grad_theta F, after ``inner_steps``."""
        lam, ready = implicit.prepared(ctx, lam, episode)
        start = ctx.problem.init_inner(lam, episode) if theta is None else theta
        end, _ = inner_loop(
            ctx, lam, autodiff.detach(start), ready, steps=self.inner_steps, lr=self.inner_lr
        )
        at = implicit.linearise(
            ctx, lam, end, episode, ready, batch=self.inner_steps, damping=self.damping
        )
        x, diagnostics = self.inverse_of(at)
        g = autodiff.axpy(-1.0, at.mixed(x), at.direct)
        return Hypergradient(at.value, g, autodiff.detach(end), diagnostics)

    def inverse_of(self, at: implicit.Linearisation) -> implicit.Solved:
        """H^-1 grad_theta F, by the inverse that is set."""
        if self.inverse == "identity":
            return implicit.Solved((self.alpha or 1.0) * at.v, {})
        if self.inverse == "exact":
            return implicit.dense_inverse(at.product, at.v, symmetric=at.symmetric)
        if self.inverse == "cg":
            implicit.check_symmetric(at, 'inverse = "cg"')
            return implicit.conjugate_gradient(
                at.product, at.v, terms=self.terms, tolerance=self.tolerance
            )
        alpha = self.inner_lr if self.alpha is None else self.alpha
        return implicit.neumann(
            at.product, at.v, alpha=alpha, terms=self.terms, tolerance=self.tolerance
        )

    def check_diagnostics(self, ctx: Context, diagnostics: Mapping[str, float]) -> None:
        """A series that grows and negative curvature are noted, or end the run."""
        implicit.check_solution(
            ctx, diagnostics, growth_limit=self.growth_limit, indefinite=self.indefinite
        )
