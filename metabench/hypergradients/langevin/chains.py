"""Chains of Langevin steps that a hypergradient is averaged along, and sums over their samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params


def stacked(theta: Params, n: int) -> Params:
    """theta once for every chain: name -> [n, *shape]."""
    return {k: v.expand(n, *v.shape).clone() for k, v in theta.items()}


@dataclass(frozen=True)
class Chains:
    """``number`` chains of one episode at one lam, of ``steps`` steps of size ``lr`` each.

    With several, theta and noise have a dimension more. ``keeps`` says of a step (from 0) whether
    its sample is averaged over, ``takes`` whether it is one that a sample may come from.
    """

    ctx: Context
    lam: Params
    episode: Episode
    steps: int
    lr: float
    number: int
    keeps: Callable[[int], bool]
    takes: Callable[[int], bool]

    def begin(self, theta: Params | None) -> Params:
        """The carried theta, or the episode's own start for every chain."""
        if theta is not None:
            return autodiff.detach(theta)
        start = autodiff.detach(self.ctx.problem.init_inner(self.lam, self.episode))
        return stacked(start, self.number) if self.number > 1 else start

    def each(self, f: Callable[..., Any], *given: Any) -> Any:
        """``f`` of every chain's part of what is given."""
        if self.number == 1:
            return f(*given)
        with autodiff.functional():
            return torch.func.vmap(f)(*given)

    def mean(self, found: Any) -> Any:
        """Over the chains."""
        return found if self.number == 1 else tree_map(lambda x: x.mean(0), found)

    def noise(self, t: int, theta: Params) -> Params:
        """Of step ``t``; empty where the solver takes none (vmap cannot map over None)."""
        return self.ctx.noise(self.episode, t, theta) or {}

    def moved(self, theta: Params, g: Params, noise: Params) -> Params:
        """theta one step along the gradient."""
        return self.ctx.solver.update(theta, g, {}, self.lr, noise)[0]

    def step(self, theta: Params, t: int) -> Params:
        """A step that nothing is differentiated through."""

        def one(theta: Params, noise: Params) -> Params:
            batch = self.episode.batch(t)
            g = self.ctx.inner_grad(self.lam, theta, batch, create_graph=False)
            return self.moved(theta, g, noise)

        moved: Params = self.each(one, theta, self.noise(t, theta))
        return moved

    def outer_value(self, lam: Params, theta: Params) -> Tensor:
        """F on the episode's outer batch."""
        return self.ctx.outer_loss(lam, theta, self.episode.outer)


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
            # A sum of its own: where F does not depend on lam, grad_lam F is the same zero for all
            # episodes of a vmap, and no buffer to add theirs to.
            self.total = {k: v + self.h[k] if self.h else v.clone() for k, v in direct.items()}
            return
        for k, v in self.total.items():
            v.add_(direct[k])
        for k, v in self.h.items():
            self.total[k].add_(v)

    def means(self) -> tuple[Tensor, Params]:
        """Of F and of the hypergradient."""
        mean = {k: v / self.kept for k, v in self.total.items()}
        return torch.as_tensor(self.value / self.kept), mean
