"""Bilevel unrolling: the hypergradient through the inner solver's iterations.

Franceschi, Frasconi, Salzo, Grazzi, Pontil: Bilevel Programming for Hyperparameter Optimization and
Meta-Learning, ICML 2018, arXiv 1806.04910. Reverse mode (equations of its algorithm 1), truncated
reverse mode, and forward mode for few scalars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from metabench import unroll
from metabench.method import Context, GradientMethod, Hypergradient, Positive
from metabench.problem import GRADIENTS, Episode, Params
from metabench.registry import methods


@methods.register("bilevel")
@dataclass(frozen=True)
class Bilevel(GradientMethod):
    """Bilevel unrolling (Franceschi 2018): differentiate through the inner solver's iterations."""

    mode: Literal["reverse", "forward"] = "reverse"
    truncate: Annotated[int, Field(ge=1)] | None = None
    """Differentiate the last K inner steps only (biased)."""
    memory: unroll.MemoryMode = "auto"
    memory_budget_gb: Positive = 4.0

    @property
    def needs(self) -> frozenset[str]:
        """Second derivatives; forward mode a small lam too."""
        return GRADIENTS | ({"small_lam"} if self.mode == "forward" else set())

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Through ``inner_steps`` iterations from the episode's start."""
        if self.mode == "forward":
            return unroll.forward(
                ctx, lam, theta, episode, steps=self.inner_steps, rate=self.rate
            )
        return unroll.reverse(
            ctx, lam, theta, episode,
            steps=self.inner_steps, rate=self.rate, truncate=self.truncate, mode=self.memory,
            memory_budget=self.memory_budget_gb * 1e9,
        )
