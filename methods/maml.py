"""MAML and its close relatives: learn the initial weights that adapt in a few gradient steps.

Finn, Abbeel, Levine, ICML 2017, arXiv 1703.03400 (second and first order). Options: ANIL (Raghu et
al. 2020, arXiv 1909.09157: inner steps move the head only), Meta-SGD (Li et al. 2017, arXiv
1707.09835: one learned step size a weight), and two of MAML++ (Antoniou, Edwards, Storkey, ICLR
2019, arXiv 1810.09502):

- one learned step size for each parameter tensor and inner step; later steps at evaluation have the
  last step's;
- the outer loss sum_t v_t F(theta_t) over the S inner steps. In epoch e of E, v_t = (1 - e/E) / S
  but for the last, which has the rest; from epoch E on the last step counts alone. The authors'
  floor of 0.03 / S is left out: with their E of 10 or 15 it is never reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    Hypergradient,
    Positive,
    State,
    Steps,
    inner_loop,
    split,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Rate
from metabench.core import settings
from metabench.core.registry import method
from metabench.hypergradients import unrolled

RATE = "rate."  # prefix of learned step sizes


@method("maml")
@dataclass(frozen=True)
class MAML(unrolled.Unrolling):
    r"""MAML (Finn 2017): learn initial weights; options first order, ANIL, Meta-SGD, MAML++.

    Formula:
        \phi_i = \lambda - \alpha \nabla G_i(\lambda)

        \lambda \leftarrow \lambda - \beta\, \nabla_\lambda \frac{1}{n} \sum_{i=1}^{n} F_i(\phi_i)

    Loop:
        g = 0
        for F, G in episodes:
            phi = lam
            for t in range(inner_steps):
                phi = phi - inner_lr * grad(G(phi), phi)
            g = g + grad(F(phi), lam) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_steps: Steps = 1
    inner_lr: Positive = 0.4
    order: Literal["second", "first"] = "second"
    anil: bool = False
    """Inner steps move the head only."""
    meta_sgd: bool = False
    """Learn a step size for every weight that moves, from ``inner_lr`` on."""

    layer_step_rates: bool = settings.later(False)
    """Learn a step size for each parameter tensor and inner step, from ``inner_lr`` on (MAML++)."""
    multi_step_epochs: Annotated[int, Field(ge=0)] = settings.later(0)
    """E, the epochs in which losses after earlier inner steps count too, less and less (MAML++)."""
    epoch_steps: Annotated[int, Field(ge=1)] = settings.later(500)
    """Outer steps of such an epoch."""

    def __post_init__(self) -> None:
        if not (self.layer_step_rates or self.multi_step_epochs):
            return
        if self.layer_step_rates and self.meta_sgd:
            raise ValueError("step sizes are learned by weight or by layer and step, not both")
        if not self.inner_steps:
            raise ValueError("layer_step_rates and multi_step_epochs need an inner step at least")
        if self.memory in ("states", "checkpoints"):
            raise ValueError(
                f'memory = "{self.memory}" is not there for layer_step_rates and '
                'multi_step_epochs, which keep the whole graph: memory = "graph"'
            )

    @property
    def exact_with(self) -> dict[str, Any] | None:
        """Second order, where the last step's loss is all of the outer loss."""
        return None if self.multi_step_epochs else {"order": "second"}

    @property
    def capturable(self) -> bool:
        """Every outer step does the same, but where losses are weighted by epoch."""
        return not (self.layer_step_rates or self.multi_step_epochs)

    @property
    def needs(self) -> frozenset[str]:
        """lam = initial weights; second derivatives unless first order; ANIL a named head."""
        own = {"outer_gradient", "lam_is_initialisation"}
        if self.order == "second":
            own |= GRADIENTS
        return frozenset(own | ({"head"} if self.anil else set()))

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """For Meta-SGD a step size for each weight that is moved; or [S] for each tensor."""
        if not (self.meta_sgd or self.layer_step_rates):
            return {}
        theta = ctx.problem.init_inner(lam, ctx.problem.episode("train", 0))
        moving = {k: theta[k] for k in self.only(ctx) or theta}
        if self.meta_sgd:
            return {RATE + k: torch.full_like(v, self.inner_lr) for k, v in moving.items()}
        shape = (self.inner_steps,)
        return {RATE + k: v.new_full(shape, self.inner_lr) for k, v in moving.items()}

    def rate(self, learned: Params) -> Rate:
        """One number, or the learned ones by weight."""
        if not self.meta_sgd:
            return self.inner_lr
        return {k.removeprefix(RATE): v for k, v in learned.items()}

    def rate_at(self, learned: Params, t: int) -> Rate:
        """Of inner step ``t``: the last step's from S on."""
        if not self.layer_step_rates:
            return self.rate(learned)
        t = min(t, self.inner_steps - 1)
        return {k.removeprefix(RATE): v[t] for k, v in learned.items()}

    def loss_weights(self, step: int) -> list[float]:
        """v_1 to v_S at an outer step."""
        n, epoch = self.inner_steps, step // self.epoch_steps
        if epoch >= self.multi_step_epochs:
            return [0.0] * (n - 1) + [1.0]
        early = (1 - epoch / self.multi_step_epochs) / n
        return [early] * (n - 1) + [1 - (n - 1) * early]

    def only(self, ctx: Context) -> tuple[str, ...] | None:
        """The head for ANIL."""
        return ctx.problem.head if self.anil else None

    def differentiated_steps(self) -> int:
        """None in first order; none to choose a memory for where the whole graph is kept."""
        second = self.order == "second" and not self.layer_step_rates
        return self.inner_steps if second else 0

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """[prod_t (I - alpha H_t)] grad L_Q(phi_T); first order drops the product."""
        if self.layer_step_rates or ctx.step < self.multi_step_epochs * self.epoch_steps:
            return self.step_by_step(ctx, lam, theta, episode)
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

    def step_by_step(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """The gradient of sum_t v_t F(theta_t), each step with step sizes of its own."""
        second, only = self.order == "second", self.only(ctx)
        ctx.notes["unroll"] = "graph" if second else "first order"
        products = {
            "hvps": int(second),
            "mixed_products": int(second and "lam_in_inner_loss" in ctx.offers),
        }

        def f(outer: Params) -> tuple[Tensor, Params]:
            own, learned = split(outer)
            ready = ctx.problem.prepare(own, episode, only)
            at = ctx.problem.init_inner(own, ready) if theta is None else theta
            solver_state, losses = None, []
            for t, weight in enumerate(self.loss_weights(ctx.step)):
                at, solver_state = inner_loop(
                    ctx, own, at, ready, steps=1, start=t, lr=self.rate_at(learned, t),
                    solver_state=solver_state, create_graph=second, only=only, **products,
                )  # fmt: skip
                if weight:
                    losses.append(weight * ctx.outer_loss(own, at, ready.outer))
            return torch.stack(losses).sum(), at

        return Hypergradient(*autodiff.grad_and_rest(f, lam))

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """``test_steps`` inner steps, each with its own step sizes."""
        if not self.layer_step_rates:
            return super().adapt(ctx, state, episode)
        lam, only = autodiff.detach(state.lam), self.only(ctx)
        ready = ctx.problem.prepare_inner(lam, episode, only)
        theta, solver_state = ctx.problem.init_inner(lam, episode), None
        for t in range(self.inner_steps if self.test_steps is None else self.test_steps):
            theta, solver_state = inner_loop(
                ctx, lam, theta, ready, steps=1, start=t, lr=self.rate_at(state.learned, t),
                solver_state=solver_state, only=only,
            )  # fmt: skip
        return autodiff.detach(theta)
