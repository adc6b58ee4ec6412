"""Stochastic descent of a spectral risk by batches, each sorted with a spectrum of its own size.

The baseline of Prospect's code (Mehta et al., arXiv 2310.13863). With q the weights of the batch's
losses, w <- w - eta (sum_i q_i grad l_i(w) + mu w). The risk of a batch is not the risk of all
examples: the direction is biased, and the iterates end away from the minimiser. As in that code the
penalty of a batch is n nu with n all examples, and what is left over of a pass is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from metabench.contract.by_examples.solver import Draws, ExampleSolver, FiniteSum, Tables
from metabench.contract.by_examples.spectral import Array
from metabench.core.registry import solver


@solver("spectral_sgd")
@dataclass(frozen=True)
class SpectralSGD(ExampleSolver):
    """Batches with a spectrum of their own size: biased; of a mean plain stochastic descent."""

    batch: Annotated[int, Field(ge=1)] = 64

    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """Nothing is kept but the number of steps."""
        return {"steps": np.zeros(())}

    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """One step a batch."""
        order, size = draws.order(loss.n), min(self.batch, loss.n)
        for k in range(loss.n // size):
            g = loss.gradient(order[k * size : (k + 1) * size], w)
            w = w - lr * (g + loss.penalty * w)
            tables["steps"] += 1
        return w
