"""Bilevel unrolling: the hypergradient through the inner solver's iterations.

Franceschi, Frasconi, Salzo, Grazzi, Pontil: Bilevel Programming for Hyperparameter Optimization and
Meta-Learning, ICML 2018, arXiv 1806.04910. Reverse mode (algorithm 1), truncated reverse mode, and
forward mode for few scalars. As in the authors' code the inner step size can be learned along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from metabench.contract.method import Context, Hypergradient
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Rate
from metabench.core.registry import method
from metabench.hypergradients import unrolled

RATE = "inner_lr"  # name of the learned step size


@method("bilevel")
@dataclass(frozen=True)
class Bilevel(unrolled.Unrolling):
    r"""Bilevel unrolling (Franceschi 2018): differentiate through the inner solver's iterations.

    Formula:
        \theta_{t+1} = \theta_t - \eta\, \nabla_\theta G(\lambda, \theta_t), \qquad t = 0, \dots,
        T - 1

        \frac{dF}{d\lambda} = \nabla_\lambda F + \left(\frac{d\theta_T}{d\lambda}\right)^{\top}
        \nabla_\theta F

    Loop:
        theta = start(lam)
        for t in range(inner_steps):
            theta = theta - inner_lr * grad(G(lam, theta), theta)
        lam = lam - outer_lr * grad(F(lam, theta), lam)  # through every inner step
    """

    mode: Literal["reverse", "forward"] = "reverse"
    truncate: Annotated[int, Field(ge=1)] | None = None
    """Differentiate the last K inner steps only (biased); reverse mode."""
    learn_rate: bool = False
    """Learn the inner step size too, from ``inner_lr`` on; it is kept at 0 or above."""

    exact_with: ClassVar[dict[str, Any]] = {"truncate": None}

    def __post_init__(self) -> None:
        if self.mode == "forward" and self.truncate is not None:
            raise ValueError("forward mode cannot be truncated: leave truncate unset")

    @property
    def capturable(self) -> bool:
        """In reverse mode."""
        return self.mode == "reverse"

    @property
    def needs(self) -> frozenset[str]:
        """Second derivatives; forward mode a small lam, truncation one that steps depend on."""
        own = {"small_lam"} if self.mode == "forward" else set()
        if self.truncate is not None and self.truncate < self.inner_steps:
            own.add("lam_in_inner_loss")
        return GRADIENTS | own

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """The step size, where it is learned."""
        if not self.learn_rate:
            return {}
        return {RATE: next(iter(lam.values())).new_tensor(self.inner_lr)}

    def rate(self, learned: Params) -> Rate:
        """One number, or the learned one."""
        return learned.get(RATE, self.inner_lr)

    def project_learned(self, learned: Params) -> Params:
        """No step uphill."""
        return {k: v.clamp(min=0.0) for k, v in learned.items()}

    def differentiated_steps(self) -> int:
        """The last ``truncate``; none in reverse where the mode is forward."""
        if self.mode == "forward":
            return 0
        return min(self.inner_steps, self.truncate or self.inner_steps)

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Through ``inner_steps`` iterations from the episode's start."""
        if self.mode == "forward":
            return unrolled.forward(
                ctx, lam, theta, episode, steps=self.inner_steps, rate=self.rate
            )
        return unrolled.reverse(
            ctx,
            lam,
            theta,
            episode,
            steps=self.inner_steps,
            rate=self.rate,
            truncate=self.truncate,
            mode=self.memory,
            memory_budget=self.memory_budget_gb * 1e9,
        )
