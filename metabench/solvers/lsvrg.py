"""LSVRG for spectral risks: weights and gradients of a snapshot, taken anew with every pass.

Mehta, Roulet, Liu, Pillutla, Harchaoui: Stochastic Optimization for Spectral Risk Measures, AISTATS
2023, arXiv 2212.05149, as in the code of Prospect (arXiv 2310.13863): with q the weights at the
snapshot w~, a step is w - eta (n q_i (grad l_i(w) - grad l_i(w~)) + sum_j q_j grad l_j(w~) + mu w).
A pass takes the gradients of all examples twice: at w~, and as they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metabench.contract.by_examples.solver import Draws, ExampleSolver, FiniteSum, Tables
from metabench.contract.by_examples.spectral import Array
from metabench.core.registry import solver


@solver("lsvrg")
@dataclass(frozen=True)
class LSVRG(ExampleSolver):
    """LSVRG (Mehta 2023): a snapshot of weights and gradients with every pass; of a mean SVRG."""

    passes: ClassVar[int] = 2

    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """The snapshot is taken with each pass; what is kept is its place."""
        return {"snapshot": np.array(w)}

    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """The snapshot, and n steps."""
        n, one, mu = loss.n, loss.examples.one, loss.penalty
        tables["snapshot"] = np.array(w)
        losses, gradients = loss.all(w)
        q = loss.weights(losses)
        whole, scale = q @ gradients, n * q
        for i in draws.examples(n):
            g = one(i, w)[1]
            w = w - lr * (scale[i] * (g - gradients[i]) + whole + mu * w)
        return w
