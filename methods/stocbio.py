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

from .amigo import AmIGO


@method("stocbio")
@dataclass(frozen=True)
class StocBiO(AmIGO):
    """stocBiO (Ji 2021): a Neumann series over fresh minibatches, theta warm-started."""

    warm: ClassVar[bool] = False

    def first(self, slope: Params, rate: float) -> Params:
        """The series' term j = 0."""
        return {k: -rate * x for k, x in slope.items()}
