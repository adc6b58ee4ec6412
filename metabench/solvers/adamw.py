"""AdamW: Adam whose weight decay stands apart from the gradient (torch.optim.AdamW's form).

Loshchilov, Hutter: Decoupled Weight Decay Regularization, ICLR 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.registry import solver, solvers


@solver("adamw")
@dataclass(frozen=True)
class AdamW(Solver):
    """AdamW (Loshchilov, Hutter 2019): Adam with a weight decay apart from the gradient."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2

    @property
    def adam(self) -> Solver:
        """What moves theta once it has decayed."""
        made: Solver = solvers.get("adam")(beta1=self.beta1, beta2=self.beta2, eps=self.eps)
        return made

    def init(self, theta: Params) -> SolverState:
        """Adam's."""
        return self.adam.init(theta)

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step, from theta less lr times its decay."""
        less = {k: v - scaled(lr, k, self.weight_decay * v) for k, v in theta.items()}
        return self.adam.update(less, grad, state, lr)
