"""Losses of single examples and their gradients in closed form, as solvers by example take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metabench.contract.by_examples.spectral import Array


class Examples(Protocol):
    """Losses of examples and their gradients in theta as one vector w [d], float64 in NumPy."""

    def one(self, i: int, w: Array) -> tuple[float, Array]:
        """The loss of example i, and its gradient [d]."""

    def some(self, chosen: Array, w: Array) -> tuple[Array, Array]:
        """Losses [m] of chosen examples, int64 [m], and their gradients [m, d]."""


@dataclass(frozen=True)
class SquaredErrors:
    """1/2 (x.w - y)^2 of rows ``x`` [n, d] and targets ``y`` [n]."""

    x: Array
    y: Array

    def one(self, i: int, w: Array) -> tuple[float, Array]:
        """In closed form."""
        x = self.x[i]
        gap = x.dot(w) - self.y[i]
        return 0.5 * gap * gap, gap * x

    def some(self, chosen: Array, w: Array) -> tuple[Array, Array]:
        """In closed form."""
        x = self.x[chosen]
        gap = x @ w - self.y[chosen]
        return 0.5 * gap * gap, gap[:, None] * x
