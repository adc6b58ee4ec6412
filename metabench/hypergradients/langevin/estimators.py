"""Three estimators of a hypergradient along Langevin chains; `methods/sgld` has their formulas.

Each takes the chains and the carried theta (None where the episode starts anew; stacked where there
are several chains), and gives the mean over the samples of all of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import Hypergradient
from metabench.contract.problem import Params
from metabench.hypergradients import unrolled
from metabench.hypergradients.langevin.chains import Chains, Sums


def forward(at: Chains, theta: Params | None) -> Hypergradient:
    """Exact along each chain: J [dim lam, dim theta] by forward mode. J starts at 0 where theta is
    carried, else at d theta_0 / d lam."""
    ctx, lam, carried = at.ctx, at.lam, theta is not None
    ways = unrolled.unit_directions(lam)
    n = len(next(iter(ways.values())))

    def first(theta: Params) -> Params:
        if carried:
            return {k: v.new_zeros(n, *v.shape) for k, v in theta.items()}
        start = unrolled.along(lambda p: ctx.problem.init_inner(p, at.episode), (lam,), (ways,))
        slopes: Params = start[1]
        return slopes

    def moved(theta: Params, j: Params, noise: Params, t: int) -> Any:
        def on(p: Params, x: Params) -> Params:
            g = ctx.inner_grad(p, x, at.episode.batch(t), hvps=n, mixed_products=n)
            return at.moved(x, g, noise)

        return unrolled.along(on, (lam, theta), (ways, j))

    def judged(theta: Params, j: Params) -> Any:
        return unrolled.along(at.outer_value, (lam, theta), (ways, j))

    theta = at.begin(theta)
    j, kept = at.each(first, theta), []
    for t in range(at.steps):
        theta, j = at.each(partial(moved, t=t), theta, j, at.noise(t, theta))
        if at.keeps(t):
            kept.append(at.mean(at.each(judged, theta, j)))
    value, slopes = (torch.stack(x).mean(0) for x in zip(*kept, strict=True))
    return Hypergradient(value, unrolled.from_slopes(slopes, lam), autodiff.detach(theta))


def first_order(at: Chains, theta: Params | None, kappa: float) -> Hypergradient:
    """h in the place of J' s, from 0: what theta_0 owes to lam is left out.

    The product of a step that is taken stands for the block of those since the last one:
    h <- kappa^m h - lr (1 + kappa + ... + kappa^(m-1)) grad_lam <g, s>.
    """
    ctx, lam = at.ctx, at.lam

    def one(theta: Params, noise: Params, t: int) -> Any:
        g, mixed = autodiff.pullback(
            lambda p: ctx.inner_grad(p, theta, at.episode.batch(t), mixed_products=1), lam
        )  # one graph of the inner loss gives the step and the product
        theta = at.moved(theta, g, noise)
        value, back = autodiff.pullback(at.outer_value, lam, theta)
        direct, s = back(torch.ones_like(value))
        return theta, (value, direct, mixed(s)[0])

    theta, sums, block = at.begin(theta), Sums(), 0
    for t in range(at.steps):
        block += 1
        if not at.takes(t):
            theta = at.step(theta, t)
            continue
        theta, found = at.each(partial(one, t=t), theta, at.noise(t, theta))
        value, direct, product = at.mean(found)
        weight = at.lr * sum(kappa**i for i in range(block))
        sums.turn(kappa**block, product, weight)
        if at.keeps(t):
            sums.keep(value, direct)
        block = 0
    return Hypergradient(*sums.means(), theta)


def covariance(at: Chains, theta: Params | None) -> Hypergradient:
    """Mean of grad_lam F minus Cov(F, grad_lam G) / temperature, over the samples of all chains: no
    second derivatives, high variance, and a bias of O(lr), since steps of size lr do not sample
    exp(-G / temperature) itself. A sample is taken before its step, with that step's batch."""
    ctx, lam = at.ctx, at.lam

    def one(theta: Params, noise: Params, t: int) -> Any:
        batch = at.episode.batch(t)
        energy, back = autodiff.pullback(lambda p, x: ctx.inner_loss(p, x, batch), lam, theta)
        in_lam, g = back(torch.ones_like(energy))
        if not at.keeps(t):
            return at.moved(theta, g, noise), ()
        value, back = autodiff.pullback(lambda p: at.outer_value(p, theta), lam)
        return at.moved(theta, g, noise), (value, back(torch.ones_like(value))[0], in_lam)

    theta, samples, sums = at.begin(theta), Comoment(), Sums()
    for t in range(at.steps):
        theta, kept = at.each(partial(one, t=t), theta, at.noise(t, theta))
        if kept:
            value, direct, in_lam = kept
            sums.keep(*at.mean((value, direct)))
            several = at.number > 1
            samples.add(
                value if several else value[None],
                in_lam if several else {k: v[None] for k, v in in_lam.items()},
            )
    value, direct = sums.means()
    cov, heat = samples.covariance(), ctx.solver.sampled_temperature
    return Hypergradient(value, {k: v - cov[k] / heat for k, v in direct.items()}, theta)


class Comoment:
    """The covariance of a scalar with named tensors, over samples that come group by group.

    Sums are kept about the means, so that nothing cancels (Chan, Golub, LeVeque 1983); memory
    does not grow with the number of samples.
    """

    def __init__(self) -> None:
        self.n = 0
        self._x: Tensor = torch.zeros((), dtype=torch.float32)
        self._y: Params = {}
        self._sum: Params = {}

    def add(self, x: Tensor, y: Params) -> None:
        """A group of m samples: x [m], y name -> [m, *shape]."""
        m, n, mean = len(x), self.n, x.mean()
        own = {k: v.mean(0) for k, v in y.items()}
        within = {k: torch.tensordot(x - mean, v - own[k], 1) for k, v in y.items()}
        self.n = n + m
        if not n:
            self._x, self._y, self._sum = mean, own, within
            return
        part, gap = m / (n + m), mean - self._x
        self._x = self._x + part * gap
        for k, v in own.items():
            apart = v - self._y[k]
            self._y[k] = self._y[k] + part * apart
            self._sum[k] = self._sum[k] + within[k] + n * part * gap * apart

    def covariance(self) -> Params:
        """Of x with each entry of y, unbiased where samples are independent.

        Raises ValueError for fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two samples, there are {self.n}")
        return {k: v / (self.n - 1) for k, v in self._sum.items()}
