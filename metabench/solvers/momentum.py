"""Gradient descent with heavy-ball or Nesterov momentum (torch.optim.SGD's form)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from metabench.contract.problem import Params
from metabench.contract.solver import Memory, Rate, scaled
from metabench.core.registry import solver


@solver("momentum")
@dataclass(frozen=True)
class Momentum:
    """Gradient descent with heavy-ball or Nesterov momentum (torch.optim.SGD's form)."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False

    def init(self, theta: Params) -> Memory:
        """The velocity, zero."""
        return {"velocity": {k: torch.zeros_like(v) for k, v in theta.items()}}

    def update(
        self, theta: Params, grad: Params, memory: Memory, lr: Rate
    ) -> tuple[Params, Memory]:
        """One step."""
        m = self.momentum
        velocity = {k: m * memory["velocity"][k] + grad[k] for k in theta}
        step = {k: grad[k] + m * velocity[k] for k in theta} if self.nesterov else velocity
        return {k: theta[k] - scaled(lr, k, step[k]) for k in theta}, {"velocity": velocity}
