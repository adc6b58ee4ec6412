"""SRDA: regularised dual averaging of a spectral risk's gradients by batches.

Xiao: Dual Averaging Methods for Regularized Stochastic Learning and Online Optimization, JMLR 11,
2010, as in the code of Prospect (Mehta et al., arXiv 2310.13863). With a the mean of the gradients
of all t steps so far, each that of :mod:`metabench.solvers.spectral_sgd` without the penalty,
w = w_0 - (a + mu w_0) / (mu + 1 / (eta t)), which minimises a.w + mu/2 |w|^2 + 1/(2 eta t) |w -
w_0|^2; the code has w_0 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from metabench.contract.by_examples.solver import Draws, ExampleSolver, FiniteSum, Tables
from metabench.contract.by_examples.spectral import Array
from metabench.core.registry import solver


@solver("srda")
@dataclass(frozen=True)
class SRDA(ExampleSolver):
    """Dual averaging (Xiao 2010) with batches as of ``spectral_sgd``: biased as that is."""

    batch: Annotated[int, Field(ge=1)] = 64

    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """w_0, the mean gradient, and how many it is of."""
        return {"start": np.array(w), "mean": np.zeros_like(w), "steps": np.zeros(())}

    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """One step a batch."""
        order, size = draws.order(loss.n), min(self.batch, loss.n)
        start, mu = tables["start"], loss.penalty
        for k in range(loss.n // size):
            g = loss.gradient(order[k * size : (k + 1) * size], w)
            tables["steps"] += 1
            t = float(tables["steps"])
            tables["mean"] += (g - tables["mean"]) / t
            w = start - (tables["mean"] + mu * start) / (mu + 1 / (lr * t))
        return w
