"""Plain gradient descent: theta - lr * gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.registry import solver


@solver("sgd")
@dataclass(frozen=True)
class SGD(Solver):
    """Plain gradient descent: theta - lr * gradient."""

    plain: ClassVar[bool] = True

    def init(self, theta: Params) -> SolverState:
        """No state."""
        return {}

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step."""
        if isinstance(lr, float):  # one operation in place of two, for large theta
            return {k: theta[k].add(grad[k], alpha=-lr) for k in theta}, state
        return {k: theta[k] - scaled(lr, k, grad[k]) for k in theta}, state
