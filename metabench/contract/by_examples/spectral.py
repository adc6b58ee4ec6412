"""Spectral risks of n losses with a penalty that smooths them, and the weights that attain them.

With a spectrum 0 <= sigma_1 <= ... <= sigma_n of sum 1 and P(sigma) the convex hull of its
permutations,

    R(l) = max over q in P(sigma) of  q.l - (n nu / 2) |q - 1/n|^2 .

The maximiser, for sorted l and z = l / (n nu): q = z + 1/n - c with c the isotonic (least squares,
non-decreasing) fit of z + 1/n - sigma. Mehta, Roulet, Pillutla, Harchaoui: Distributionally Robust
Optimization with Bias and Variance Reduction, ICLR 2024, arXiv 2310.13863; the scaling of the
penalty is the one of the authors' code (half of what its README writes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
Kind = Literal["superquantile", "extremile", "esrm"]


@dataclass(frozen=True)
class Spectrum:
    """``mass``: what share of the weight the best part t [m] of the losses has, from 0 at 0 to 1 at
    1 and convex; ``nu`` [], positive. float64, both differentiable in lam."""

    mass: Callable[[Tensor], Tensor]
    nu: Tensor

    def sigma(self, n: int) -> Tensor:
        """The spectrum [n] of n losses."""
        t = torch.arange(n + 1, dtype=self.nu.dtype, device=self.nu.device) / n
        return self.mass(t).diff()

    def weights(self, losses: Tensor) -> Tensor:
        """q [n] of losses [n], with exact derivatives almost everywhere: within a block of the
        isotonic fit they average."""
        n = len(losses)
        z, order = torch.sort(losses / (n * self.nu), stable=True)
        y = z + 1 / n - self.sigma(n)
        block = _blocks(y)
        total = torch.zeros_like(y).index_add(0, block, y)
        count = torch.zeros_like(y).index_add(0, block, torch.ones_like(y))
        q = z + 1 / n - (total / count.clamp(min=1))[block]
        return torch.zeros_like(q).scatter(0, order, q)

    def risk(self, losses: Tensor) -> Tensor:
        """R(l)."""
        n, q = len(losses), self.weights(losses)
        return (q * losses).sum() - 0.5 * n * self.nu * (q - 1 / n).square().sum()


def spectrum(kind: Kind, level: Tensor, nu: Tensor) -> Spectrum:
    """Of the superquantile of level p, mass max(0, (t - p) / (1 - p)); the extremile of level r,
    t^r; or the exponential risk of level rho, (e^{rho t} - 1) / (e^rho - 1)."""

    def mass(t: Tensor) -> Tensor:
        if kind == "superquantile":
            return ((t - level) / (1 - level)).clamp(min=0)
        if kind == "extremile":
            return torch.cat([t[:1], t[1:] ** level])
        return torch.expm1(level * t) / torch.expm1(level)

    return Spectrum(mass, nu)


def isotonic(y: Array) -> tuple[Array, Array]:
    """The non-decreasing least-squares fit of y [n], and where its blocks begin (and the last
    ends)."""
    from scipy.optimize import isotonic_regression

    found = isotonic_regression(y)
    return found.x, found.blocks


def weights(losses: Array, sigma: Array, scale: float) -> Array:
    """q [n] of losses [n] with ``scale`` = n nu, and no derivative."""
    order = np.argsort(losses, kind="stable")
    z = losses[order] / scale + 1 / len(losses)
    q = np.empty_like(z)
    q[order] = z - isotonic(z - sigma)[0]
    return q


def _blocks(y: Tensor) -> Tensor:
    block: Tensor = _Blocks.apply(y)
    return block


class _Blocks(torch.autograd.Function):
    """The number of each entry's block in the isotonic fit, int64 [n]; constant to derivatives."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        """Of y [n]."""
        edges = isotonic(y.detach().cpu().double().numpy())[1]
        return torch.from_numpy(np.repeat(np.arange(len(edges) - 1), np.diff(edges))).to(y.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing passes back."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        """Nothing passes back."""

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        """Nothing passes on."""

    @staticmethod
    def vmap(info: Any, dims: Any, y: Tensor) -> tuple[Tensor, int]:
        """One after another."""
        return torch.stack([_blocks(row) for row in y.movedim(dims[0], 0)]), 0


class SortedWeights:
    """The weight of one of n losses, while losses are replaced one by one.

    Losses are kept in order, so that a new one is put in its place instead of sorting anew.
    """

    def __init__(self, losses: Array, sigma: Array | None, scale: float) -> None:
        """``scale``: n nu; ``sigma`` None: all weights are 1 / n."""
        self.n, self.scale = len(losses), scale
        self.shift = None if sigma is None else 1 / self.n - sigma
        self.sorted = np.sort(losses)
        self._fit: Array | None = None

    def of(self, loss: float) -> float:
        """q of a loss that is there: equal losses have equal weights."""
        if self.shift is None:
            return 1 / self.n
        if self._fit is None:
            self._fit = isotonic(self.sorted / self.scale + self.shift)[0]
        at = self.sorted.searchsorted(loss)
        return float(loss / self.scale + 1 / self.n - self._fit[at])

    def replace(self, old: float, new: float) -> None:
        """One loss changes."""
        if self.shift is None:
            return
        s, self._fit = self.sorted, None
        gone, there = int(s.searchsorted(old)), int(s.searchsorted(new))
        if there > gone:
            there -= 1
            s[gone:there] = s[gone + 1 : there + 1]
        else:
            s[there + 1 : gone + 1] = s[there:gone]
        s[there] = new
