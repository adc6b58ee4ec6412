"""Adam (Kingma, Ba 2015), torch.optim.Adam's form, differentiable in gradients and step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.registry import solver


@solver("adam")
@dataclass(frozen=True)
class Adam(Solver):
    """Adam (Kingma, Ba 2015), torch.optim.Adam's form, differentiable throughout."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def init(self, theta: Params) -> SolverState:
        """Both moments and the step count, zero."""
        first = next(iter(theta.values()))
        return {
            "mean": {k: torch.zeros_like(v) for k, v in theta.items()},
            "square": {k: torch.zeros_like(v) for k, v in theta.items()},
            "count": {"steps": torch.zeros((), dtype=first.dtype, device=first.device)},
        }

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step."""
        b1, b2 = self.beta1, self.beta2
        t = state["count"]["steps"] + 1
        mean = {k: b1 * state["mean"][k] + (1 - b1) * grad[k] for k in theta}
        square = {k: b2 * state["square"][k] + (1 - b2) * grad[k].square() for k in theta}
        new = {}
        for k in theta:
            second = square[k] / (1 - b2**t)
            # The root has no derivative at 0; where no gradient has come yet, nothing moves.
            seen = second > 0
            root = torch.where(seen, second, torch.ones_like(second)).sqrt()
            step = mean[k] / (1 - b1**t) / (torch.where(seen, root, root - 1) + self.eps)
            new[k] = theta[k] - scaled(lr, k, step)
        return new, {"mean": mean, "square": square, "count": {"steps": t}}
