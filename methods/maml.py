"""MAML and its close relatives: learn the initial weights that adapt in a few gradient steps.

Finn, Abbeel, Levine, ICML 2017, arXiv 1703.03400 (second and first order). Options: ANIL (Raghu et
al. 2020, arXiv 1909.09157: inner steps move the head only), Meta-SGD (Li et al. 2017, arXiv
1707.09835: one learned step size a weight).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from metabench.contract.method import Context, Hypergradient, Positive, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Rate
from metabench.core.registry import method
from metabench.hypergradients import unrolled

RATE = "rate."  # prefix of Meta-SGD's step sizes


@method("maml")
@dataclass(frozen=True)
class MAML(unrolled.Unrolling):
    """MAML (Finn 2017): learn initial weights; options first order, ANIL, Meta-SGD."""

    inner_steps: Steps = 1
    inner_lr: Positive = 0.4
    order: Literal["second", "first"] = "second"
    anil: bool = False
    """Inner steps move the head only."""
    meta_sgd: bool = False
    """Learn a step size for every weight that moves, from ``inner_lr`` on."""

    exact_with: ClassVar[dict[str, Any]] = {"order": "second"}

    @property
    def needs(self) -> frozenset[str]:
        """lam = initial weights; second derivatives unless first order; ANIL a named head."""
        own = {"outer_gradient", "lam_is_initialisation"}
        if self.order == "second":
            own |= GRADIENTS
        return frozenset(own | ({"head"} if self.anil else set()))

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """For Meta-SGD a step size for each weight that is moved."""
        if not self.meta_sgd:
            return {}
        theta = ctx.problem.init_inner(lam, ctx.problem.episode("train", 0))
        moving = self.only(ctx) or tuple(theta)
        return {RATE + k: torch.full_like(theta[k], self.inner_lr) for k in moving}

    def rate(self, learned: Params) -> Rate:
        """One number, or the learned ones by weight."""
        if not self.meta_sgd:
            return self.inner_lr
        return {k.removeprefix(RATE): v for k, v in learned.items()}

    def only(self, ctx: Context) -> tuple[str, ...] | None:
        """The head for ANIL."""
        return ctx.problem.head if self.anil else None

    def differentiated_steps(self) -> int:
        """None in first order."""
        return self.inner_steps if self.order == "second" else 0

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """[prod_t (I - alpha H_t)] grad L_Q(phi_T); first order drops the product."""
        return unrolled.reverse(
            ctx,
            lam,
            theta,
            episode,
            steps=self.inner_steps,
            rate=self.rate,
            first_order=self.order == "first",
            only=self.only(ctx),
            mode=self.memory,
            memory_budget=self.memory_budget_gb * 1e9,
        )
