"""CAVIA: a few context parameters adapt to an episode, the network is shared by all.

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson: Fast Context Adaptation via Meta-Learning, ICML 2019,
arXiv 1810.03642. theta is the context, 0 at every start, and lam all weights of the network:

    phi_0 = 0,   phi_{t+1} = phi_t - alpha grad_phi L_S(phi_t, lam),   g = d L_Q(phi_T, lam) / dlam,

with all terms in second order; in first order inner gradients are constants. Where the context
enters the network is the task's. In second order the method ``bilevel`` gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metabench.contract.method import Context, Hypergradient, Positive, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.core.registry import method
from metabench.hypergradients import unrolled


@method("cavia")
@dataclass(frozen=True)
class CAVIA(unrolled.Unrolling):
    r"""CAVIA (Zintgraf 2019): inner steps move context parameters alone, from zero.

    Formula:
        \phi_0 = 0, \qquad \phi_{t+1} = \phi_t - \alpha\, \nabla_\phi G_i(\lambda, \phi_t)

        \lambda \leftarrow \lambda - \beta\, \nabla_\lambda \frac{1}{n} \sum_{i=1}^{n}
        F_i(\lambda, \phi_T)

    Loop:
        g = 0
        for F, G in episodes:
            phi = zeros(contexts)
            for t in range(inner_steps):
                phi = phi - inner_lr * grad(G(lam, phi), phi)
            g = g + grad(F(lam, phi), lam) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_steps: Steps = 2
    inner_lr: Positive = 1.0
    order: Literal["second", "first"] = "second"

    exact_with: ClassVar[dict[str, Any]] = {"order": "second"}

    @property
    def needs(self) -> frozenset[str]:
        """A context; second derivatives unless first order."""
        second = GRADIENTS if self.order == "second" else frozenset({"outer_gradient"})
        return second | {"context", "inner_loss"}

    def differentiated_steps(self) -> int:
        """None in first order."""
        return self.inner_steps if self.order == "second" else 0

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Through the steps of the context."""
        return unrolled.reverse(
            ctx,
            lam,
            theta,
            episode,
            steps=self.inner_steps,
            rate=self.rate,
            first_order=self.order == "first",
            mode=self.memory,
            memory_budget=self.memory_budget_gb * 1e9,
        )
