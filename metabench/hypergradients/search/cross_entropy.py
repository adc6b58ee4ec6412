"""A sampler of points of the unit cube that is fitted to the best of a round: cross-entropy.

Each scalar has its own: a normal [mu, sigma], or the shares [n] of n categories. float64 on the
CPU. With r_i the weight of point x_i and a the smoothing, one round moves it to

    mu_hat    = sum r_i x_i / sum r_i              sigma_hat^2 = sum r_i (x_i - mu_hat)^2 / sum r_i
    share_hat = sum r_i 1{x_i = c} / sum r_i       v <- a v_hat + (1 - a) v

for v = mu, sigma (not its square) and the shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.context import Context
from metabench.contract.method import Positive, State, Steps
from metabench.contract.problem import Params
from metabench.contract.seeds import generator
from metabench.hypergradients.search.gradient_free import counted, kinds, place
from metabench.hypergradients.search.tries import InitialFirst

SAMPLER = "sampler"
"""In the memory: of each scalar [mu, sigma] in the unit interval, or the shares of its
categories."""


@dataclass(frozen=True)
class CrossEntropy(InitialFirst):
    """The sampler's settings, draws from it, and its fit to a round."""

    inner_steps: Steps = 20
    samples: Annotated[int, Field(ge=2)] = 10
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

    def sampler(self, ctx: Context, state: State) -> list[Tensor]:
        """The sampler now; at first the middle, and all categories alike."""
        if SAMPLER in state.memory:
            now: list[Tensor] = state.memory[SAMPLER]
            return now
        normal = torch.tensor([0.5, self.first_sigma], dtype=torch.float64)
        number = kinds(ctx.problem.hypers, ctx.problem.init_outer())
        return [torch.full((n,), 1 / n, dtype=torch.float64) if n else normal for n in number]

    def draws(self, ctx: Context, state: State, kinds: Sequence[int]) -> list[list[float]]:
        """The points of step ``ctx.step`` [samples, scalars]; a category is its middle in the unit
        interval, a normal draw beyond the bounds is on them. The initial lam may take the place of
        the first draw of all."""
        gen = generator(ctx.seeds.method, "cross-entropy", ctx.step)
        columns = []
        for v, n in zip(self.sampler(ctx, state), kinds, strict=True):
            if n:
                drawn = (v.multinomial(self.samples, True, generator=gen) + 0.5) / n
            else:
                normal = torch.randn(self.samples, generator=gen, dtype=torch.float64)
                drawn = (v[0] + v[1] * normal).clamp(0, 1)
            columns.append(drawn)
        rows: list[list[float]] = torch.stack(columns, 1).tolist()
        first = self.initial_first and ctx.step == 0
        return [list(self.initial_point(ctx)), *rows[1:]] if first else rows

    def fitted(
        self,
        ctx: Context,
        state: State,
        points: Sequence[Sequence[float]],
        losses: Sequence[float],
    ) -> list[Tensor]:
        """The next sampler. A scalar that counts only under a choice is fitted to the points where
        it counts; what no point says anything of stays."""
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        x = torch.tensor([list(point) for point in points], dtype=torch.float64)
        active = torch.tensor([counted(point, hypers, like) for point in points])
        r = weights(losses, self.rho, self.tau)
        each = zip(self.sampler(ctx, state), kinds(hypers, like), strict=True)
        new = [
            refit(v, x[:, i], r * active[:, i], n, self.smoothing) for i, (v, n) in enumerate(each)
        ]
        least = torch.tensor([0.0, self.least_sigma], dtype=torch.float64)
        number = kinds(hypers, like)
        return [v if n else v.maximum(least) for v, n in zip(new, number, strict=True)]

    def middle(self, ctx: Context, sampler: Sequence[Tensor]) -> Params:
        """lam at the means, and the likeliest categories."""
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        point = [
            (int(v.argmax()) + 0.5) / n if n else float(v[0])
            for v, n in zip(sampler, kinds(hypers, like), strict=True)
        ]
        return ctx.problem.project(place(point, hypers, like))

    def spread(self, ctx: Context, sampler: Sequence[Tensor]) -> dict[str, float]:
        """The largest sigma, for the learning curve; empty where there is none."""
        number = kinds(ctx.problem.hypers, ctx.problem.init_outer())
        sigmas = [float(v[1]) for v, n in zip(sampler, number, strict=True) if not n]
        return {"largest_sigma": max(sigmas)} if sigmas else {}


def weights(losses: Sequence[float], rho: float, tau: float | None = None) -> Tensor:
    """r [n]: 1 for the losses up to the rho-quantile, the ceil(rho n)-th least of all, infinite
    ones included; or exp(-J / tau), 1 for the least. A loss that is no number is infinite, and an
    infinite one has 0."""
    j = torch.tensor(losses, dtype=torch.float64).nan_to_num(nan=math.inf, posinf=math.inf)
    finite = j < math.inf
    if not bool(finite.any()):
        return torch.zeros_like(j)
    if tau is not None:
        return torch.exp((j.min() - j) / tau)
    kept = math.ceil(rho * len(j) - 1e-9)  # 0.1 * 30 is a little more than 3
    return ((j <= j.sort().values[kept - 1]) & finite).double()


def refit(v: Tensor, x: Tensor, r: Tensor, n: int, a: float) -> Tensor:
    """The sampler of one scalar after a round of points x [m] with weights r [m]: a normal's
    [mu, sigma] where n is 0, else shares [n]; ``v`` where all weights are 0."""
    if not float(r.sum()) > 0:
        return v
    if n:
        category = (x * n).long().clamp(max=n - 1)
        new = torch.zeros(n, dtype=r.dtype).index_add(0, category, r) / r.sum()
    else:
        mu = (r * x).sum() / r.sum()
        new = torch.stack([mu, ((r * (x - mu).square()).sum() / r.sum()).sqrt()])
    return a * new + (1 - a) * v
