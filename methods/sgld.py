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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._pytree import tree_map

from metabench.contract import autodiff
from metabench.contract.method import Context, GradientMethod, Hypergradient, State
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver, is_noisy
from metabench.core.registry import method
from metabench.hypergradients import unrolled
from metabench.hypergradients.comoment import Comoment

CHAINS = "chains"  # in the method's memory: every chain's theta, where one is carried


@method("sgld")
@dataclass(frozen=True)
class SGLD(GradientMethod):
    """HPO-SGLD (Kim 2025): the outer loss expected over theta that Langevin dynamics samples."""

    estimator: Literal["forward", "first_order", "covariance"] = "first_order"
    inner_steps: Annotated[int, Field(ge=1)] = 20
    """Langevin steps a chain and outer step."""
    burn_in: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The part of the steps whose samples are not kept."""
    thin: Annotated[int, Field(ge=1)] = 1
    """Of the rest, every how manieth is kept, counted from the last; ``first_order`` also takes its
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
        own = {"outer_gradient", "lam_in_inner_loss"}
        if self.estimator != "covariance":
            own |= GRADIENTS
        return frozenset(own | ({"small_lam"} if self.estimator == "forward" else set()))

    @property
    def batched(self) -> bool:
        """Episodes all at once only where chains are not."""
        return self.chains == 1

    def refuses(self, solver: Solver) -> str | None:
        """One that the estimator is not true for."""
        if solver.init({"theta": torch.zeros(())}):
            return (
                "sgld moves theta along the gradient itself; solver "
                f"{solver.registered_name} keeps a memory: use langevin, or sgd for no noise"
            )
        if self.estimator == "covariance" and temperature(solver) == 0.0:
            return (
                "sgld's estimator covariance divides by the temperature, which solver "
                f"{solver.registered_name} lacks: use langevin with temperature and noise above 0"
            )
        return None

    def init(self, ctx: Context) -> State:
        """As every gradient method; a carried theta once for every chain."""
        state = super().init(ctx)
        if temperature(ctx.solver) == 0.0:
            name = type(ctx.solver).registered_name
            ctx.notes["langevin_noise"] = f"none: inner solver {name}"
        if state.theta is None or self.chains == 1:
            return state
        return replace(state, memory={**state.memory, CHAINS: self.stacked(state.theta)})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """As every gradient method; of several carried chains the first is what is evaluated."""
        if CHAINS not in state.memory:
            return super().step(ctx, state)
        new, log = super().step(ctx, replace(state, theta=state.memory[CHAINS]))
        assert new.theta is not None
        first = {k: v[0] for k, v in new.theta.items()}
        return State(new.lam, first, {**new.memory, CHAINS: new.theta}), log

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Run the chains, from ``theta`` (stacked where there are several), and average."""
        at = Chains(ctx, self, autodiff.detach(lam), episode)
        with ctx.meter.batch_of(self.chains):
            if self.estimator == "forward":
                return forward(at, theta)
            return (first_order if self.estimator == "first_order" else covariance)(at, theta)

    def stacked(self, theta: Params) -> Params:
        """theta once for every chain: name -> [chains, *shape]."""
        return {k: v.expand(self.chains, *v.shape).clone() for k, v in theta.items()}

    def keeps(self, t: int) -> bool:
        """Whether the sample of step ``t`` (from 0) is averaged over."""
        return t >= int(self.burn_in * self.inner_steps) and self.takes(t)

    def takes(self, t: int) -> bool:
        """Whether step ``t`` is one of every ``thin``, the last among them."""
        return (self.inner_steps - 1 - t) % self.thin == 0


@dataclass(frozen=True)
class Chains:
    """The chains of one episode at one lam. With several, theta and noise have a dimension more."""

    ctx: Context
    method: SGLD
    lam: Params
    episode: Episode

    def begin(self, theta: Params | None) -> Params:
        """The carried theta, or the episode's own start for every chain."""
        if theta is not None:
            return autodiff.detach(theta)
        start = autodiff.detach(self.ctx.problem.init_inner(self.lam, self.episode))
        return self.method.stacked(start) if self.method.chains > 1 else start

    def each(self, f: Callable[..., Any], *given: Any) -> Any:
        """``f`` of every chain's part of what is given."""
        if self.method.chains == 1:
            return f(*given)
        with autodiff.functional():
            return torch.func.vmap(f)(*given)

    def mean(self, found: Any) -> Any:
        """Over the chains."""
        return found if self.method.chains == 1 else tree_map(lambda x: x.mean(0), found)

    def noise(self, t: int, theta: Params) -> Params:
        """Of step ``t``, where the solver takes any."""
        return self.ctx.noise(self.episode, t, theta) if is_noisy(self.ctx.solver) else {}

    def moved(self, theta: Params, g: Params, noise: Params) -> Params:
        """theta one step along the gradient."""
        solver, lr = self.ctx.solver, self.method.inner_lr
        if is_noisy(solver):
            return solver.update(theta, g, {}, lr, noise)[0]
        return solver.update(theta, g, {}, lr)[0]

    def step(self, theta: Params, t: int) -> Params:
        """A step that nothing is differentiated through."""

        def one(theta: Params, noise: Params) -> Params:
            batch = self.episode.batch(t)
            g = self.ctx.inner_grad(self.lam, theta, batch, create_graph=False)
            return self.moved(theta, g, noise)

        moved: Params = self.each(one, theta, self.noise(t, theta))
        return moved

    def judge(self, lam: Params, theta: Params) -> Tensor:
        """F on the episode's outer batch."""
        return self.ctx.problem.outer_loss(lam, theta, self.episode.outer)


def forward(at: Chains, theta: Params | None) -> Hypergradient:
    """Exact along each chain: J [dim lam, dim theta] by forward mode. J starts at 0 where theta is
    carried, else at d theta_0 / d lam."""
    ctx, method, lam, carried = at.ctx, at.method, at.lam, theta is not None
    ways = unrolled.unit_directions(lam)
    n = len(next(iter(ways.values())))

    def first(theta: Params) -> Params:
        if carried:
            return {k: v.new_zeros(n, *v.shape) for k, v in theta.items()}
        start = unrolled.along(lambda p: ctx.problem.init_inner(p, at.episode), (lam,), (ways,))
        slopes: Params = start[1]
        return slopes

    def moved(theta: Params, j: Params, noise: Params, t: int) -> Any:
        ctx.meter.add(hvps=n, mixed_products=n)
        return unrolled.along(
            lambda p, x: at.moved(x, ctx.inner_grad(p, x, at.episode.batch(t)), noise),
            (lam, theta),
            (ways, j),
        )

    def judged(theta: Params, j: Params) -> Any:
        ctx.meter.add(outer_gradients=1)
        return unrolled.along(at.judge, (lam, theta), (ways, j))

    theta = at.begin(theta)
    j, kept = at.each(first, theta), []
    for t in range(method.inner_steps):
        theta, j = at.each(partial(moved, t=t), theta, j, at.noise(t, theta))
        if method.keeps(t):
            kept.append(at.mean(at.each(judged, theta, j)))
    value, slopes = (torch.stack(x).mean(0) for x in zip(*kept, strict=True))
    return Hypergradient(value, unrolled.from_slopes(slopes, lam), autodiff.detach(theta))


def first_order(at: Chains, theta: Params | None) -> Hypergradient:
    """h in the place of J' s, from 0: what theta_0 owes to lam is left out.

    With ``thin`` above 1 the product of a block's last step stands for all of its steps:
    h <- kappa^m h - lr (1 + kappa + ... + kappa^(m-1)) grad_lam <g, s>.
    """
    ctx, method, lam = at.ctx, at.method, at.lam

    def one(theta: Params, noise: Params, t: int) -> Any:
        ctx.meter.add(outer_gradients=1, mixed_products=1)
        g, mixed = autodiff.pullback(
            lambda p: ctx.inner_grad(p, theta, at.episode.batch(t)), lam
        )  # one graph of the inner loss gives the step and the product
        theta = at.moved(theta, g, noise)
        value, back = autodiff.pullback(at.judge, lam, theta)
        direct, s = back(torch.ones_like(value))
        return theta, (value, direct, mixed(s)[0])

    theta, sums, block = at.begin(theta), Sums(), 0
    for t in range(method.inner_steps):
        block += 1
        if not method.takes(t):
            theta = at.step(theta, t)
            continue
        theta, found = at.each(partial(one, t=t), theta, at.noise(t, theta))
        value, direct, product = at.mean(found)
        weight = method.inner_lr * sum(method.kappa**i for i in range(block))
        sums.turn(method.kappa**block, product, weight)
        if method.keeps(t):
            sums.keep(value, direct)
        block = 0
    return Hypergradient(*sums.means(), theta)


class Sums:
    """h, and sums over kept samples: buffers of this call alone, so they are changed in place."""

    def __init__(self) -> None:
        self.h: Params = {}
        self.total: Params = {}
        self.value: Tensor | float = 0.0
        self.kept = 0

    def turn(self, decay: float, product: Params, weight: float) -> None:
        """h <- decay h - weight product."""
        if not self.h:
            self.h = {k: v * -weight for k, v in product.items()}
            return
        for k, v in self.h.items():
            v.mul_(decay).add_(product[k], alpha=-weight)

    def keep(self, value: Tensor, direct: Params) -> None:
        """One more sample: its F, and grad_lam F + h."""
        self.value, self.kept = self.value + value, self.kept + 1
        if not self.total:
            self.total = {k: v.clone() for k, v in direct.items()}
        else:
            for k, v in self.total.items():
                v.add_(direct[k])
        for k, v in self.h.items():
            self.total[k].add_(v)

    def means(self) -> tuple[Tensor, Params]:
        """Of F and of the hypergradient."""
        mean = {k: v / self.kept for k, v in self.total.items()}
        return torch.as_tensor(self.value / self.kept), mean


def covariance(at: Chains, theta: Params | None) -> Hypergradient:
    """Mean of grad_lam F minus Cov(F, grad_lam G) / temperature, over the samples of all chains: no
    second derivatives, high variance. A sample is taken before its step, with that step's batch."""
    ctx, method, lam = at.ctx, at.method, at.lam

    def one(theta: Params, noise: Params, t: int) -> Any:
        batch = at.episode.batch(t)
        ctx.meter.add(inner_gradients=1)
        energy, back = autodiff.pullback(
            lambda p, x: ctx.problem.inner_loss(p, x, batch), lam, theta
        )
        in_lam, g = back(torch.ones_like(energy))
        if not method.keeps(t):
            return at.moved(theta, g, noise), ()
        ctx.meter.add(outer_gradients=1)
        value, back = autodiff.pullback(lambda p: at.judge(p, theta), lam)
        return at.moved(theta, g, noise), (value, back(torch.ones_like(value))[0], in_lam)

    theta, samples, sums = at.begin(theta), Comoment(), Sums()
    for t in range(method.inner_steps):
        theta, kept = at.each(partial(one, t=t), theta, at.noise(t, theta))
        if kept:
            value, direct, in_lam = kept
            sums.keep(*at.mean((value, direct)))
            several = method.chains > 1
            samples.add(
                value if several else value[None],
                in_lam if several else {k: v[None] for k, v in in_lam.items()},
            )
    value, direct = sums.means()
    cov, heat = samples.covariance(), temperature(ctx.solver)
    return Hypergradient(value, {k: v - cov[k] / heat for k, v in direct.items()}, theta)


def temperature(solver: Solver) -> float:
    """Of what the inner solver samples; 0 where it adds no noise."""
    found: float = getattr(solver, "sampled_temperature", 0.0)
    return found
