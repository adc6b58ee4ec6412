"""The bounds that a problem does not give, estimated at one point; nothing here is proved.

Norms come from power iteration and Lipschitz constants from differences along random directions:
both find at most the true constant there, and other points may have larger ones. So a bound that
uses one of them can be too small, and the least eigenvalue too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.declared import Moduli
from metabench.contract.problem import Episode, Params
from metabench.contract.seeds import generator
from metabench.hypergradients import implicit

PRODUCTS = 20
"""Of a power iteration."""
DIRECTIONS = 3
"""For a Lipschitz constant."""
MOVE = 1e-3
"""Length of a difference, relative to 1 + |theta|."""

Known = dict[str, Any]


def missing(known: Moduli | None) -> list[str]:
    """Names of the bounds that are not given."""
    if known is None:
        return [f.name for f in fields(Moduli) if f.name not in ("certified", "outer_convex")]
    return [f.name for f in fields(Moduli) if getattr(known, f.name) is None]


def complete(ctx: Context, lam: Params, theta: Params, episode: Episode) -> Moduli:
    """The problem's moduli at lam; what it does not give is estimated at theta, counted as cost,
    and then nothing is certified."""
    known = ctx.problem.moduli(lam)
    lacking = missing(known)
    if known is not None and not lacking:
        return known
    at = _Point(ctx, lam, theta, episode)
    found: Known = {} if known is None else vars(known) | {"certified": False}
    if known is None:
        smooth = power(at.hessian, at.vector("smooth"))
        found = {"smooth": smooth, "certified": False}
        found["mu"] = smooth - power(lambda v: smooth * v - at.hessian(v), at.vector("mu"))
    estimates: dict[str, Callable[[], Any]] = {
        "outer_smooth": lambda: power(at.outer_hessian, at.vector("outer")),
        "mixed": at.mixed_norm,
        "mixed_lipschitz": lambda: at.lipschitz(lambda t, v: autodiff.flatten(t.mixed(v))),
        "hessian_lipschitz": lambda: at.lipschitz(lambda t, v: t.product(v).clone()),
        "direct_lipschitz": lambda: at.lipschitz(lambda t, v: autodiff.flatten(t.direct)),
    }
    return Moduli(**found | {name: estimates[name]() for name in lacking if name in estimates})


def borrowed(known: Moduli | None, other: Moduli) -> Moduli:
    """What ``known`` does not give taken from ``other``, of a lam nearby; no estimates of its
    own are made."""
    if known is None:
        return replace(other, certified=False)
    lacking = {name: getattr(other, name) for name in missing(known)}
    return replace(known, **lacking, certified=False) if lacking else known


def power(product: Callable[[Tensor], Tensor], v: Tensor) -> float:
    """The norm of a symmetric matrix, from below."""
    size = 0.0
    for _ in range(PRODUCTS):
        v = product(v / torch.linalg.vector_norm(v)).clone()
        size = float(torch.linalg.vector_norm(v))
        if size == 0.0:
            break
    return size


class _Point:
    """(lam, theta) of one episode, and products with the derivatives there."""

    def __init__(self, ctx: Context, lam: Params, theta: Params, episode: Episode) -> None:
        self.ctx, self.lam, self.theta, self.episode = ctx, lam, theta, episode
        self.here = self._at(theta)
        self.size = len(self.here.v)

    def _at(self, theta: Params) -> implicit.Linearisation:
        lam, ready = implicit.prepared(self.ctx, self.lam, self.episode)
        return implicit.linearise(self.ctx, lam, theta, self.episode, ready, batch=0)

    def vector(self, *address: str | int) -> Tensor:
        """A unit vector [n], the same for the same address and step."""
        gen = generator(self.ctx.seeds.method, "moduli", self.ctx.step, *address)
        v = torch.randn(self.size, generator=gen, dtype=torch.float64).to(self.here.v)
        unit: Tensor = v / torch.linalg.vector_norm(v)
        return unit

    def hessian(self, v: Tensor) -> Tensor:
        """H v."""
        return self.here.product(v)

    def outer_hessian(self, v: Tensor) -> Tensor:
        """The Hessian of F in theta, times v."""

        def gradient(t: Params) -> Params:
            batch = self.episode.outer
            loss = self.ctx.problem.outer_loss
            return autodiff.grad(lambda x: loss(self.lam, x, batch), t, create_graph=True)[1]

        self.ctx.meter.add(outer_gradients=1)
        _, (back,) = autodiff.pullbacks(gradient, autodiff.detach(self.theta))
        product: Params = back(autodiff.unflatten(v, self.theta))
        return autodiff.flatten(product)

    def mixed_norm(self) -> Callable[[Params], float]:
        """|J| here, taken for |J| everywhere; J u is a difference of inner gradients."""
        h = MOVE

        def squared(v: Tensor) -> Tensor:
            u = self.here.mixed(v)
            length = float(autodiff.norm(u))
            if length == 0.0:
                return torch.zeros_like(v)
            up, down = (
                self.ctx.inner_grad(
                    autodiff.axpy(s * h / length, u, self.lam), self.theta, self.episode.batch(0),
                    create_graph=False,
                )
                for s in (1, -1)
            )  # fmt: skip
            return (autodiff.flatten(up) - autodiff.flatten(down)) * (length / (2 * h))

        size = power(squared, self.vector("mixed")) ** 0.5
        return lambda theta: size

    def lipschitz(self, of: Callable[[implicit.Linearisation, Tensor], Tensor]) -> float:
        """The largest change of ``of`` along a few directions, over the length moved."""
        step = MOVE * (1 + float(autodiff.norm(self.theta)))
        found = []
        for i in range(DIRECTIONS):
            d, v = self.vector("direction", i), self.vector("along", i)
            there = self._at(autodiff.axpy(step, autodiff.unflatten(d, self.theta), self.theta))
            change = of(there, v) - of(self.here, v)
            found.append(float(torch.linalg.vector_norm(change)) / step)
        return max(found)
