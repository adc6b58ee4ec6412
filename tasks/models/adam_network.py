"""A ReLU network of dense layers under Adam, differentiated by hand: for small networks and many
steps, where the overhead of autograd is most of the time.

Kingma, Ba: Adam, ICLR 2015, with its constants. numpy, float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .dense import Array, Dense

FIRST, SECOND, SMALL = 0.9, 0.999, 1e-8


class Adam(NamedTuple):
    """Weights and biases [numbers] (:class:`Dense`), Adam's two moments of them, and its step."""

    weights: Array
    first: Array
    second: Array
    step: float


@dataclass(frozen=True)
class AdamNetwork:
    """The network, and how a step of Adam changes it."""

    dense: Dense

    def start(self, rng: np.random.Generator) -> Adam:
        """Weights and biases uniform within 1 / sqrt(inputs), as torch.nn.Linear has them."""
        bound = 1 / np.sqrt(self.dense.fan_in)
        weights = bound * rng.uniform(-1.0, 1.0, self.dense.count)
        return Adam(weights, np.zeros_like(weights), np.zeros_like(weights), 0.0)

    def forward(self, weights: Array, x: Array) -> list[Array]:
        """The inputs [n, inputs], and every layer up to the outputs [n, outputs]."""
        out = [x]
        layers = self.dense.layers(weights)
        for i, (w, b) in enumerate(layers):
            z = out[-1] @ w + b
            out.append(z if i == len(layers) - 1 else np.maximum(z, 0.0))
        return out

    def gradient(self, weights: Array, units: list[Array], slope: Array) -> Array:
        """Of a loss with the derivative ``slope`` [n, outputs] in the outputs, in the weights;
        ``units`` are those of :meth:`forward`."""
        found = np.empty_like(weights)
        both = list(zip(self.dense.layers(found), self.dense.layers(weights), strict=True))
        for i in reversed(range(len(both))):
            (g_w, g_b), (w, _) = both[i]
            g_w[:], g_b[:] = units[i].T @ slope, slope.sum(0)
            if i:
                slope = (slope @ w.T) * (units[i] > 0)
        return found

    def moved(self, at: Adam, gradient: Array, rate: float) -> Adam:
        """One step of Adam."""
        step = at.step + 1
        first = FIRST * at.first + (1 - FIRST) * gradient
        second = SECOND * at.second + (1 - SECOND) * gradient * gradient
        size = rate / (1 - FIRST**step)
        moved = at.weights - size * first / (np.sqrt(second / (1 - SECOND**step)) + SMALL)
        return Adam(moved, first, second, step)
