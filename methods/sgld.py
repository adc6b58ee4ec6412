"""Hypergradients from a Langevin chain: the outer loss expected under p(theta | lam).

Kim, Hospedales: A Stochastic Approach to Bi-Level Optimization for Hyperparameter Optimization and
Meta Learning, AAAI 2025, arXiv 2410.10417. Certain, from its abstract and summaries: theta is
sampled by stochastic gradient Langevin dynamics (the inner solver ``langevin``); the hypergradient
is a Monte Carlo mean of a recursion along the chain, akin to forward mode; a first-order form of it
needs memory O(dim theta + dim lam). Reconstructed: that form (its recurrence was not found), the
covariance estimator, and every default. With p proportional to exp(-G / temperature) and the noise
held fixed, as lr moves theta along the gradient g of G:

    forward      J <- (I - lr H) J - lr dg/dlam ;   dF/dlam = mean of  grad_lam F + J' grad_theta F
    first_order  h <- kappa h - lr grad_lam <g, s>,  s = grad_theta F at the new theta ;
                 dF/dlam = mean of  grad_lam F + h
    covariance   dF/dlam = mean of grad_lam F - Cov(F, grad_lam G) / temperature

The covariance form holds for the law that p stands for. Langevin steps of size lr sample another,
O(lr) away, and the estimate has a bias of that order, however many samples there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, State
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver
from metabench.core.registry import method
from metabench.hypergradients.langevin import estimators as chain_estimators
from metabench.hypergradients.langevin.chains import Chains, stacked

CHAINS = "chains"  # in the method's memory: every chain's theta, where one is carried


@method("sgld")
@dataclass(frozen=True)
class SGLD(GradientMethod):
    r"""HPO-SGLD (Kim 2025): the outer loss expected over theta that Langevin dynamics samples.

    Formula:
        \frac{d}{d\lambda}\, \mathbb{E}_{\theta \sim p(\theta \mid \lambda)} F(\lambda, \theta),
        \qquad p(\theta \mid \lambda) \propto \exp(-G(\lambda, \theta) / \tau)

        h \leftarrow \kappa\, h - \eta\, \nabla^2_{\lambda\theta} G\, \nabla_\theta F \quad
        \text{(first order)}

    Loop:
        h, g, kept = 0, 0, 0  # the estimator "first_order"
        for t in range(inner_steps):
            new = theta - inner_lr * dG_dtheta(lam, theta) + noise(t)
            h = kappa * h - inner_lr * d2G_dlam_dtheta(lam, theta) @ dF_dtheta(lam, new)
            theta = new
            if t >= int(burn_in * inner_steps):
                g, kept = g + dF_dlam(lam, theta) + h, kept + 1
        lam = lam - outer_lr * g / kept
    """

    estimator: Literal["forward", "first_order", "covariance"] = "first_order"
    """``covariance`` has a bias of O(inner_lr): it is true for samples of exp(-G / temperature),
    and Langevin steps of a finite size sample a wider law (a Gaussian of precision a with
    inner_lr a = 0.055: -0.4328, the derivative is -0.4090)."""
    inner_steps: Annotated[int, Field(ge=1)] = 20
    """Langevin steps a chain and outer step."""
    burn_in: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The part of the steps whose samples are not kept."""
    thin: Annotated[int, Field(ge=1)] = 1
    """Of the rest, one in so many is kept, counted from the last; ``first_order`` also takes its
    product once in so many steps, as if it were the same in all of them."""
    chains: Annotated[int, Field(ge=1)] = 1
    """Independent chains, all at once (vmap)."""
    kappa: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What I - lr H is replaced by in ``first_order``; 1 is the purely first-order choice."""

    exact_with: ClassVar[dict[str, Any]] = {
        "estimator": "forward", "chains": 1, "inner_steps": 7, "thin": 7, "burn_in": 0.0
    }  # fmt: skip
    default_solver: ClassVar[str] = "langevin"
    reconstruction: ClassVar[str] = (
        "the paper's first-order recurrence and settings were not found: estimators first_order "
        "and covariance are derived from its stated formulation, and all defaults are guesses"
    )

    def __post_init__(self) -> None:
        kept = sum(self.keeps(t) for t in range(self.inner_steps))
        if self.estimator == "covariance" and self.chains * kept < 2:
            raise ValueError(
                f"estimator covariance needs two samples; {kept} of {self.inner_steps} steps kept "
                f"in {self.chains} chain(s) give fewer: lower burn_in or thin, or add chains"
            )

    @property
    def needs(self) -> frozenset[str]:
        """lam in the inner loss; second derivatives but for covariance; forward a small lam."""
        own = {"outer_gradient", "lam_in_inner_loss", "inner_loss"}
        if self.estimator != "covariance":
            own |= GRADIENTS
        return frozenset(own | ({"small_lam"} if self.estimator == "forward" else set()))

    @property
    def batched(self) -> bool:
        """Episodes all at once only where chains are not."""
        return self.chains == 1

    def refuses(self, solver: Solver) -> str | None:
        """One that the estimator is not true for."""
        if solver.init({"theta": torch.zeros((), dtype=torch.float32)}):
            return (
                "sgld moves theta along the gradient itself; solver "
                f"{solver.registered_name} keeps a memory: use langevin, or sgd for no noise"
            )
        if self.estimator == "covariance" and solver.sampled_temperature == 0.0:
            return (
                "sgld's estimator covariance divides by the temperature, which solver "
                f"{solver.registered_name} lacks: use langevin with temperature and noise above 0"
            )
        return None

    def init(self, ctx: Context) -> State:
        """As every gradient method; a carried theta once for every chain."""
        state = super().init(ctx)
        if ctx.solver.sampled_temperature == 0.0:
            name = type(ctx.solver).registered_name
            ctx.notes["langevin_noise"] = f"none: inner solver {name}"
        if state.theta is None or self.chains == 1:
            return state
        return replace(state, memory={**state.memory, CHAINS: stacked(state.theta, self.chains)})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """As every gradient method; of several carried chains the first is what is evaluated."""
        if CHAINS not in state.memory:
            return super().step(ctx, state)
        new, log = super().step(ctx, replace(state, theta=state.memory[CHAINS]))
        assert new.theta is not None
        first = {k: v[0] for k, v in new.theta.items()}
        return replace(new, theta=first, memory={**new.memory, CHAINS: new.theta}), log

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Run the chains, from ``theta`` (stacked where there are several), and average."""
        at = Chains(
            ctx,
            autodiff.detach(lam),
            episode,
            steps=self.inner_steps,
            lr=self.inner_lr,
            number=self.chains,
            keeps=self.keeps,
            takes=self.takes,
        )
        with ctx.meter.batch_of(self.chains):
            if self.estimator == "forward":
                return chain_estimators.forward(at, theta)
            if self.estimator == "first_order":
                return chain_estimators.first_order(at, theta, self.kappa)
            return chain_estimators.covariance(at, theta)

    def keeps(self, t: int) -> bool:
        """Whether the sample of step ``t`` (from 0) is averaged over."""
        return t >= int(self.burn_in * self.inner_steps) and self.takes(t)

    def takes(self, t: int) -> bool:
        """Whether step ``t`` is one of every ``thin``, the last among them."""
        return (self.inner_steps - 1 - t) % self.thin == 0
