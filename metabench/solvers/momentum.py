"""Gradient descent with heavy-ball or Nesterov momentum (torch.optim.SGD's form)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core import settings
from metabench.core.registry import solver


@solver("momentum")
@dataclass(frozen=True)
class Momentum(Solver):
    """Gradient descent with heavy-ball or Nesterov momentum (torch.optim.SGD's form)."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = settings.later(0.0)
    """Times theta is added to the gradient, before the velocity takes it in."""

    def init(self, theta: Params) -> SolverState:
        """The velocity, zero."""
        return {"velocity": {k: torch.zeros_like(v) for k, v in theta.items()}}

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step."""
        m = self.momentum
        if self.weight_decay:
            grad = {k: grad[k] + self.weight_decay * v for k, v in theta.items()}
        velocity = {k: m * state["velocity"][k] + grad[k] for k in theta}
        step = {k: grad[k] + m * velocity[k] for k in theta} if self.nesterov else velocity
        return {k: theta[k] - scaled(lr, k, step[k]) for k in theta}, {"velocity": velocity}
