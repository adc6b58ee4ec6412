"""SaddleSAGA: both players of a spectral risk move, each by a reduced-variance step.

Palaniappan, Bach: Stochastic Variance Reduction Methods for Saddle-Point Problems, NeurIPS 2016, in
the form that the code of Prospect has (Mehta et al., arXiv 2310.13863). Kept as there: losses l,
gradients g, weights rho, gbar = sum rho_i g_i, and the dual variable q, which begins at the
spectrum in the order of the losses. A step with eta' = eta / (10 n):

    draw i;   v = n q_i grad l_i(w) - n rho_i g_i + gbar;   w' = (w - eta v) / (1 + eta mu)
    q' = argmax over p in P(sigma) of  p.(l + n (l_i(w) - l_i) e_i) - (n nu / 2) |p - 1/n|^2
                                       - |p - q|^2 / (2 eta')

and tables as in Prospect. Of a mean q is 1/n, and this is SAGA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from metabench.contract.by_examples.solver import Draws, ExampleSolver, FiniteSum, Tables
from metabench.contract.by_examples.spectral import Array, isotonic
from metabench.core.registry import solver


@solver("saddle_saga")
@dataclass(frozen=True)
class SaddleSAGA(ExampleSolver):
    """SaddleSAGA (Palaniappan 2016) in the form of Prospect's code: weights descend too."""

    dual_rate: Annotated[float, Field(gt=0)] = 0.1
    """n times the step size of the weights, over that of theta."""

    first_passes: ClassVar[int] = 1

    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """Losses and gradients at w; the spectrum, in the order of the losses."""
        losses, gradients = loss.all(w)
        q = np.full(loss.n, 1 / loss.n)
        if loss.sigma is not None:
            q[np.argsort(losses, kind="stable")] = loss.sigma
        return {"losses": losses, "gradients": gradients, "rho": q.copy(), "q": q}

    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """n steps."""
        losses, gradients, rho, q = (tables[k] for k in ("losses", "gradients", "rho", "q"))
        n, one, shrink = loss.n, loss.examples.one, 1 + lr * loss.penalty
        ascend = Ascent(loss, q, lr * self.dual_rate / n)
        mean = rho @ gradients
        for i in draws.examples(n):
            value, g = one(i, w)
            self.require_finite(value)
            change = q[i] * g - rho[i] * gradients[i]
            w = (w - lr * (n * change + mean)) / shrink
            mean += change
            gradients[i], rho[i] = g, q[i]
            ascend(losses, i, n * (value - losses[i]))
            losses[i] = value
        return w


class Ascent:
    """Proximal steps of q, in place."""

    def __init__(self, loss: FiniteSum, q: Array, rate: float) -> None:
        self.q, self.rate, self.centre = q, rate, 1 / loss.n
        self.scale = 1 + rate * loss.scale
        self.shift = None if loss.sigma is None else self.centre - loss.sigma
        self.order = np.argsort(q, kind="stable")

    def __call__(self, losses: Array, i: int, more: float) -> None:
        """Along losses [n], and ``more`` of example i."""
        if self.shift is None:
            return
        z = self.q + self.rate * losses
        z[i] += self.rate * more
        z -= self.centre
        z /= self.scale
        # Nearly sorted by the last step's order, where a stable sort takes little.
        self.order = self.order[z[self.order].argsort(kind="stable")]
        s = z[self.order]
        self.q[self.order] = s + self.centre - isotonic(s + self.shift)[0]
