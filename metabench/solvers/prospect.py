"""Prospect: spectral risks minimised by single examples, with reduced bias and variance.

Mehta, Roulet, Pillutla, Harchaoui, ICLR 2024, arXiv 2310.13863, algorithm 1. Kept: the losses l,
the gradients g and the weights rho of the examples, gbar = sum rho_i g_i, and q = q(l). A step:

    draw i;   v = n q_i grad l_i(w) - n rho_i g_i + gbar;   w' = (w - eta v) / (1 + eta mu)
    l_i <- l_i(w),  gbar <- gbar + q_i grad l_i(w) - rho_i g_i,  g_i <- grad l_i(w),  rho_i <- q_i,
    q <- q(l)

As in the authors' code, the loss that is renewed is that of the drawn example (the theory draws
another). gbar is summed anew at the start of each pass. For a mean of losses q = 1/n: SAGA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.contract.by_examples.solver import Draws, ExampleSolver, FiniteSum, Tables
from metabench.contract.by_examples.spectral import Array
from metabench.core.registry import solver


@solver("prospect")
@dataclass(frozen=True)
class Prospect(ExampleSolver):
    """Prospect (Mehta 2024): spectral risks by single examples; of a mean it is SAGA."""

    first_passes: ClassVar[int] = 1

    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """Losses, gradients and weights at w."""
        losses, gradients = loss.all(w)
        return {"losses": losses, "gradients": gradients, "rho": loss.weights(losses)}

    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """n steps."""
        losses, gradients, rho = (tables[k] for k in ("losses", "gradients", "rho"))
        n, one, shrink = loss.n, loss.examples.one, 1 + lr * loss.penalty
        weigh, mean = loss.changing_weights(losses), rho @ gradients
        for i in draws.examples(n):
            value, g = one(i, w)
            self.require_finite(value)
            q = weigh.of(losses[i])
            change = q * g - rho[i] * gradients[i]
            w = (w - lr * (n * change + mean)) / shrink
            mean += change
            weigh.replace(losses[i], value)
            losses[i], gradients[i], rho[i] = value, g, q
        return w
