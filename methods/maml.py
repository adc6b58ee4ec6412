"""MAML and its close relatives: learn the initial weights that adapt in a few gradient steps.

Finn, Abbeel, Levine, ICML 2017, arXiv 1703.03400 (second and first order). Options: ANIL (Raghu et
al. 2020, arXiv 1909.09157: inner steps move the head only), Meta-SGD (Li et al. 2017, arXiv
1707.09835: one learned step size a weight), and those of MAML++ (Antoniou, Edwards, Storkey, ICLR
2019, arXiv 1810.09502):

- one learned step size for each parameter tensor and inner step;
- a scale and a shift of every batch norm for each inner step, learned outside and left alone by
  inner steps; the outer loss after a step has that step's. Later steps at evaluation have the last
  step's, of both. Running statistics a step are left out: the authors' code writes and never reads
  them, for its batch norm always takes the batch's own;
- the outer loss sum_t v_t F(theta_t) over the S inner steps. In epoch e of E, v_t = (1 - e/E) / S
  but for the last, which has the rest; from epoch E on the last step counts alone. The authors'
  floor of 0.03 / S is left out: with their E of 10 or 15 it is never reached;
- first order in the first epochs, second order in the others. The cosine of the outer step size is
  an ``outer_decay``.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from metabench.contract.solver import Rate, SolverState
from metabench.core import settings
from metabench.core.registry import method
from metabench.hypergradients import descended, unrolled

RATE = "rate."  # prefix of learned step sizes
NORM = "norm."  # prefix of the batch norms' parameters in the inner steps after the first
BY_STEP = ("layer_step_rates", "step_norms")
"""Settings that have something learned for each inner step."""


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
    """Outer steps of an epoch."""
    step_norms: bool = settings.later(False)
    """Learn scales and shifts of batch norm for each inner step, which moves none (MAML++)."""
    first_order_epochs: Annotated[int, Field(ge=0)] = settings.later(0)
    """Epochs in first order, before those in second order (MAML++)."""

    def __post_init__(self) -> None:
        if self.first_order_epochs and self.order == "first":
            raise ValueError('first_order_epochs come before others: order = "second"')
        given = [n for n in (*BY_STEP, "multi_step_epochs") if getattr(self, n)]
        if not given:
            return
        if self.layer_step_rates and self.meta_sgd:
            raise ValueError("step sizes are learned by weight or by layer and step, not both")
        if self.step_norms and self.anil:
            raise ValueError("step_norms changes the body in inner steps, and anil does not")
        if not self.inner_steps:
            raise ValueError(f"{given[0]} needs an inner step at least")
        if self.memory in ("states", "checkpoints"):
            raise ValueError(
                f'memory = "{self.memory}" is not there for {given[0]}, which keeps the whole '
                'graph: memory = "graph"'
            )

    @property
    def exact_with(self) -> dict[str, Any] | None:
        """Second order, where the last step's loss is all of the outer loss."""
        return None if self.multi_step_epochs or self.first_order_epochs else {"order": "second"}

    @property
    def capturable(self) -> bool:
        """Every outer step does the same, but where it depends on the epoch."""
        return not (self.by_step or self.multi_step_epochs or self.first_order_epochs)

    @property
    def needs(self) -> frozenset[str]:
        """lam = initial weights; second derivatives unless first order; a named head for ANIL, or
        batch norms."""
        own = {"outer_gradient", "lam_is_initialisation"}
        if self.order == "second":
            own |= GRADIENTS
        if self.step_norms:
            own.add("batch_norms")
        return frozenset(own | ({"head"} if self.anil else set()))

    @property
    def by_step(self) -> bool:
        """Whether inner steps differ in what is learned for them."""
        return any(getattr(self, name) for name in BY_STEP)

    def second_order(self, ctx: Context) -> bool:
        """Whether this outer step differentiates inner gradients."""
        first = ctx.step < self.first_order_epochs * self.epoch_steps
        return self.order == "second" and not first

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """Step sizes: for Meta-SGD one for each weight that is moved, or [S] for each tensor; and
        with ``step_norms`` [S - 1, *shape] for each parameter of a batch norm: lam has the first
        step's."""
        if not (self.meta_sgd or self.by_step):
            return {}
        theta, n = ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)), self.inner_steps
        moving = {k: theta[k] for k in self.moving(ctx, theta)}
        learned = {}
        if self.meta_sgd:
            learned = {RATE + k: torch.full_like(v, self.inner_lr) for k, v in moving.items()}
        elif self.layer_step_rates:
            learned = {RATE + k: v.new_full((n,), self.inner_lr) for k, v in moving.items()}
        if self.step_norms and n > 1:
            for k in ctx.problem.batch_norms:
                learned[NORM + k] = theta[k].expand(n - 1, *theta[k].shape).clone()
        return learned

    def moving(self, ctx: Context, theta: Params) -> tuple[str, ...]:
        """The names of theta that inner steps move."""
        still = ctx.problem.batch_norms if self.step_norms else ()
        return tuple(k for k in self.only(ctx) or theta if k not in still)

    def rate(self, learned: Params) -> Rate:
        """One number, or the learned ones by weight."""
        return under(RATE, learned) if self.meta_sgd else self.inner_lr

    def rate_at(self, learned: Params, t: int) -> Rate:
        """Of inner step ``t``, below S."""
        if not self.layer_step_rates:
            return self.rate(learned)
        return {k: v[t] for k, v in under(RATE, learned).items()}

    def stepped(
        self,
        ctx: Context,
        lam: Params,
        learned: Params,
        at: tuple[Params, SolverState | None],
        ready: Episode,
        t: int,
        **how: Any,
    ) -> tuple[Params, SolverState]:
        """theta and solver state after inner step ``t``, with step sizes and batch norms of its
        own: the last step's from S on."""
        theta, solver_state = at
        own = min(t, self.inner_steps - 1)
        if own:
            theta = theta | {k: v[own - 1] for k, v in under(NORM, learned).items()}
        only = self.moving(ctx, theta) if self.step_norms else self.only(ctx)
        return inner_loop(
            ctx, lam, theta, ready, steps=1, start=t, lr=self.rate_at(learned, own),
            solver_state=solver_state, only=only, **how,
        )  # fmt: skip

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
        second = self.order == "second" and not self.by_step
        return self.inner_steps if second else 0

    def hypergradients(
        self, ctx: Context, state: State, episodes: Sequence[Episode]
    ) -> list[Hypergradient]:
        """Several at once by the problem's own derivation, where it has one for such steps."""
        found = None
        if not (self.by_step or ctx.step < self.multi_step_epochs * self.epoch_steps):
            found = descended.several(
                ctx,
                state,
                episodes,
                steps=self.inner_steps,
                rate=self.inner_lr,
                second_order=self.second_order(ctx),
                only=self.only(ctx),
                mode=self.memory,
                memory_budget=self.memory_budget_gb * 1e9,
            )
        return super().hypergradients(ctx, state, episodes) if found is None else found

    def is_at_optimum(
        self, ctx: Context, lam: Params, found: Sequence[Hypergradient], episodes: Sequence[Episode]
    ) -> bool:
        """As of others, adapting anew where the problem's own derivation has kept no theta."""

        def whole(e: Episode) -> Hypergradient:
            start = ctx.problem.init_inner(lam, e)
            theta, _ = inner_loop(ctx, lam, start, e, steps=self.inner_steps, lr=self.inner_lr)
            return Hypergradient(found[0].value, {}, theta)

        if not found[0].theta:
            with ctx.uncounted():
                found = [whole(e) for e in episodes]
        return super().is_at_optimum(ctx, lam, found, episodes)

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """[prod_t (I - alpha H_t)] grad L_Q(phi_T); first order drops the product."""
        if self.by_step or ctx.step < self.multi_step_epochs * self.epoch_steps:
            return self.step_by_step(ctx, lam, theta, episode)
        return unrolled.reverse(
            ctx,
            lam,
            theta,
            episode,
            steps=self.inner_steps,
            rate=self.rate,
            first_order=not self.second_order(ctx),
            only=self.only(ctx),
            mode=self.memory,
            memory_budget=self.memory_budget_gb * 1e9,
        )

    def step_by_step(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """The gradient of sum_t v_t F(theta_t), each step with what is learned for it."""
        second = self.second_order(ctx)
        ctx.notes["unroll"] = "graph" if second else "first order"
        mixed = self.step_norms or "lam_in_inner_loss" in ctx.offers
        products = {"hvps": int(second), "mixed_products": int(second and mixed)}

        def f(outer: Params) -> tuple[Tensor, Params]:
            own, learned = split(outer)
            ready = ctx.problem.prepare(own, episode, self.only(ctx))
            start = ctx.problem.init_inner(own, ready) if theta is None else theta
            at: tuple[Params, SolverState | None] = (start, None)
            losses = []
            for t, weight in enumerate(self.loss_weights(ctx.step)):
                at = self.stepped(ctx, own, learned, at, ready, t, create_graph=second, **products)
                if weight:
                    losses.append(weight * ctx.outer_loss(own, at[0], ready.outer))
            return torch.stack(losses).sum(), at[0]

        return Hypergradient(*autodiff.grad_and_rest(f, lam))

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """``test_steps`` inner steps, each with what is learned for it."""
        if not self.by_step:
            return super().adapt(ctx, state, episode)
        lam = autodiff.detach(state.lam)
        ready = ctx.problem.prepare_inner(lam, episode, self.only(ctx))
        at: tuple[Params, SolverState | None] = (ctx.problem.init_inner(lam, episode), None)
        for t in range(self.inner_steps if self.test_steps is None else self.test_steps):
            at = self.stepped(ctx, lam, state.learned, at, ready, t)
        return autodiff.detach(at[0])


def under(prefix: str, learned: Params) -> Params:
    """What is learned under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in learned.items() if k.startswith(prefix)}
