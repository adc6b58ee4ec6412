"""The numbers of a network of dense layers as one vector, and as weights and biases by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Dense:
    """Layers of ``sizes`` units, the inputs first: weights [in, out] and biases [out] in turn."""

    sizes: tuple[int, ...]

    @cached_property
    def places(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Of each layer: inputs, outputs, and where in the vector it begins, its biases begin and
        it ends."""
        out, at = [], 0
        for n, m in zip(self.sizes, self.sizes[1:], strict=False):
            out.append((n, m, at, at + n * m, at + n * m + m))
            at += n * m + m
        return tuple(out)

    @property
    def count(self) -> int:
        """How many numbers the vector has."""
        return self.places[-1][-1]

    def layers(self, vector: Array) -> list[tuple[Array, Array]]:
        """(weights [in, out], biases [out]) of each layer, which share the vector's memory."""
        return [(vector[a:b].reshape(n, m), vector[b:c]) for n, m, a, b, c in self.places]

    @cached_property
    def fan_in(self) -> Array:
        """The inputs of the unit that each number belongs to, in a vector."""
        return np.concatenate([np.full((n + 1) * m, float(n)) for n, m, *_ in self.places])
