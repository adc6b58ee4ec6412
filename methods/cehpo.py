"""Cross-entropy search: a sampler of lam that is fitted to the best points of each round.

K. Li, F. Li: Cross-Entropy Optimization for Hyperparameter Optimization in Stochastic
Gradient-based Approaches to Train Deep Neural Networks, arXiv 2409.09240, 2024, of which we have
the abstract and the notation. The body is the standard cross-entropy method (Rubinstein, Kroese,
2004) and the constants are this project's. In the unit cube of the bounds (log scales as such),
with J the loss after training:

    gamma     = rho-quantile of J over the round;  r_i = 1{J_i <= gamma}, or exp(-J_i / tau)
    mu_hat    = sum r_i x_i / sum r_i              sigma_hat^2 = sum r_i (x_i - mu_hat)^2 / sum r_i
    share_hat = sum r_i 1{x_i = c} / sum r_i       for a category c
    v         = a v_hat + (1 - a) v                for v = mu, sigma (not its square), share

A training that ran away has J = +inf and counts in the quantile. A scalar that counts only under a
choice is fitted to the points where it counts. There are no tables to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.method import Context, Positive, State
from metabench.contract.seeds import generator
from metabench.core.registry import method
from metabench.hypergradients.gradient_free import Judged, Search, counted, kinds, place

SAMPLER = "sampler"
"""In the memory: of each scalar [mu, sigma] in the unit interval, or the shares of its
categories."""


@method("cehpo")
@dataclass(frozen=True)
class CEHPO(Search):
    """Cross-entropy search (Li 2024): rounds of trainings, the sampler fitted to the best."""

    samples: Annotated[int, Field(ge=2)] = 20
    """Points a round, N."""
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The part of a round that the sampler is fitted to."""
    tau: Positive | None = None
    """Weights exp(-J / tau) of all points in place of the best part."""
    smoothing: Annotated[float, Field(gt=0, le=1)] = 0.7
    """a: 1 forgets the last sampler."""
    first_sigma: Positive = 0.3
    """Of every continuous scalar, in units of the range between its bounds."""
    least_sigma: Annotated[float, Field(ge=0)] = 0.01
    answer: Literal["mean", "best"] = "mean"
    """The sampler's mean (likeliest category), or the point with the least loss."""

    reconstruction: ClassVar[str] = (
        "the paper's algorithm was not available: the standard cross-entropy method stands here, "
        "with this project's constants"
    )

    def __post_init__(self) -> None:
        least = math.ceil(2 / self.rho)
        if self.samples < least:
            raise ValueError(
                f"samples is {self.samples}: with rho = {self.rho:g} a round needs at least "
                f"{least} (2 / rho), or its best part has no spread"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Bounds; and no carried theta where the answer is a lam that was never trained."""
        return super().needs | ({"episodes"} if self.answer == "mean" else set())

    def sampler(self, state: State, kinds: Sequence[int]) -> list[Tensor]:
        """The sampler now; at first the middle, and all categories alike."""
        first = [torch.tensor([0.5, self.first_sigma], dtype=torch.float64)]
        even = [[torch.full((n,), 1 / n, dtype=torch.float64)] if n else first for n in kinds]
        return state.memory.get(SAMPLER, [v for (v,) in even])

    def ask_round(
        self, ctx: Context, state: State, kinds: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """``samples`` draws [scalars]; a category is its middle in the unit interval."""
        gen = generator(ctx.seeds.method, "cross-entropy", ctx.step)
        columns = []
        for v, n in zip(self.sampler(state, kinds), kinds, strict=True):
            if n:
                drawn = (v.multinomial(self.samples, True, generator=gen) + 0.5) / n
            else:
                normal = torch.randn(self.samples, generator=gen, dtype=torch.float64)
                drawn = (v[0] + v[1] * normal).clamp(0, 1)
            columns.append(drawn)
        rows: list[list[float]] = torch.stack(columns, 1).tolist()
        return rows

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """The sampler fitted to the round."""
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        number = kinds(hypers, like)
        x = torch.tensor([list(one.point) for one in found], dtype=torch.float64)
        active = torch.tensor([counted(one.point, hypers, like) for one in found])
        weight = weights([one.loss for one in found], self.rho, self.tau)
        new = []
        for i, (v, n) in enumerate(zip(self.sampler(state, number), number, strict=True)):
            r = weight * active[:, i]
            fitted = fit_shares((x[:, i] * n).long(), r, n) if n else fit_normal(x[:, i], r)
            v = v if fitted is None else smoothed(v, fitted, self.smoothing)
            new.append(v if n else v.clamp(min=torch.tensor([0.0, self.least_sigma]).double()))
        return {**state.memory, SAMPLER: new}

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """The mean, or the best point."""
        if self.answer == "best":
            return super().recommend(ctx, state, found)
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        number = kinds(hypers, like)
        point = [
            (int(v.argmax()) + 0.5) / n if n else float(v[0])
            for v, n in zip(state.memory[SAMPLER], number, strict=True)
        ]
        return State(ctx.problem.project(place(point, hypers, like)), None, state.memory)


def weights(losses: Sequence[float], rho: float, tau: float | None = None) -> Tensor:
    """r [n]: 1 for the losses up to the rho-quantile, the ceil(rho n)-th least of all, infinite
    ones included; or exp(-J / tau), 1 for the least. An infinite loss has 0."""
    j = torch.tensor(losses, dtype=torch.float64).nan_to_num(nan=math.inf, posinf=math.inf)
    if not bool((j < math.inf).any()):
        return torch.zeros_like(j)
    if tau is not None:
        return torch.exp((j.min() - j) / tau)
    kept = math.ceil(rho * len(j) - 1e-9)
    gamma = j.sort().values[kept - 1]
    return ((j <= gamma) & (j < math.inf)).double()


def fit_normal(x: Tensor, r: Tensor) -> Tensor | None:
    """[mu, sigma] of the weighted maximum likelihood over x [n]; None without any weight."""
    if not float(r.sum()) > 0:
        return None
    mu = (r * x).sum() / r.sum()
    return torch.stack([mu, ((r * (x - mu).square()).sum() / r.sum()).sqrt()])


def fit_shares(category: Tensor, r: Tensor, n: int) -> Tensor | None:
    """Weighted frequencies [n] of categories [m]; None without any weight."""
    if not float(r.sum()) > 0:
        return None
    return torch.zeros(n, dtype=r.dtype).index_add(0, category.clamp(max=n - 1), r) / r.sum()


def smoothed(old: Tensor, new: Tensor, a: float) -> Tensor:
    """a new + (1 - a) old."""
    return a * new + (1 - a) * old
