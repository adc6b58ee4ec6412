"""Hypergradients by a Neumann series over fresh minibatches.

Ji, Yang, Liang: Bilevel Optimization: Convergence Analysis and Enhanced Design, ICML 2021, arXiv
2010.07962:

    v = -sigma sum_{j=0}^{Q} prod_{i<=j} (I - sigma d2 G_i / dtheta2) grad_theta F

with a minibatch of its own for each factor; theta is warm-started, v is not. As in
benchopt/benchmark_bilevel Q products give Q + 1 terms. The authors' own code leaves out the factor
sigma and the term j = 0, and so has another limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.contract.problem import Params
from metabench.core.registry import method
from metabench.hypergradients.single_loop.linear_steps import LinearSteps


@method("stocbio")
@dataclass(frozen=True)
class StocBiO(LinearSteps):
    r"""stocBiO (Ji 2021): a Neumann series over fresh minibatches, theta warm-started.

    Formula:
        v = -\sigma \sum_{j=0}^{Q} \prod_{i \le j} \left( I - \sigma\, \nabla^2_{\theta\theta} G_i
        \right) \nabla_\theta F

        \lambda \leftarrow \lambda - \gamma \left( \nabla^2_{\lambda\theta} G\, v + \nabla_\lambda
        F \right)

    Loop:
        for t in range(inner_steps):
            theta = theta - inner_lr * dG_dtheta(lam, theta)
        v = -linear_lr * dF_dtheta(lam, theta)
        for t in range(linear_steps):
            v = v - linear_lr * (d2G_dtheta2(lam, theta) @ v + dF_dtheta(lam, theta))
        lam = lam - outer_lr * (d2G_dlam_dtheta(lam, theta) @ v + dF_dlam(lam, theta))
    """

    warm: ClassVar[bool] = False

    def first(self, slope: Params, rate: float) -> Params:
        """The series' term j = 0."""
        return {k: -rate * x for k, x in slope.items()}
