"""Adam (Kingma, Ba 2015), torch.optim.Adam's form, differentiable in gradients and step size.

Two habits of training scripts are settings: gradients clipped at a norm, and a step size that falls
linearly to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core import settings
from metabench.core.registry import solver


@solver("adam")
@dataclass(frozen=True)
class Adam(Solver):
    """Adam (Kingma, Ba 2015), torch.optim.Adam's form, differentiable throughout.

    Moments of half-precision parameters are kept, and their steps computed, in float32.
    """

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = settings.later(0.0)
    """Times theta is added to the gradient (torch.optim.Adam's; ``adamw`` keeps it apart)."""
    clip_norm: Annotated[float, Field(gt=0)] | None = settings.later(None)
    """A gradient whose norm over all of theta is larger is scaled down to it; None: none is."""
    decay_steps: Annotated[int, Field(ge=1)] | None = settings.later(None)
    """Of this many steps, step t (from 0) has the step size times 1 - t / decay_steps, and steps
    after them 0; None: all are alike."""

    def init(self, theta: Params) -> SolverState:
        """Both moments and the step count, zero."""
        device = next((v.device for v in theta.values()), None)
        return {
            "mean": {k: torch.zeros_like(v, dtype=_wide(v)) for k, v in theta.items()},
            "square": {k: torch.zeros_like(v, dtype=_wide(v)) for k, v in theta.items()},
            "count": {"steps": torch.zeros((), dtype=torch.float64, device=device)},
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
        if self.clip_norm is not None:
            grad = autodiff.clip_norm({k: grad[k] for k in theta}, self.clip_norm)
        steps = state["count"]["steps"] + 1
        g = {k: grad[k].to(_wide(v)) for k, v in theta.items()}
        if self.weight_decay:
            g = {k: g[k] + self.weight_decay * v.to(_wide(v)) for k, v in theta.items()}
        mean = {k: b1 * state["mean"][k] + (1 - b1) * g[k] for k in theta}
        square = {k: b2 * state["square"][k] + (1 - b2) * g[k].square() for k in theta}
        new = {}
        # A count that took the type of bfloat16 would leave 0.999^t at 1.
        counts = {wide: steps.to(wide) for wide in {_wide(v) for v in theta.values()}}
        rests = {wide: (1 - b1**t, 1 - b2**t) for wide, t in counts.items()}
        for k, v in theta.items():
            t, (rest1, rest2) = counts[_wide(v)], rests[_wide(v)]
            second = square[k] / rest2
            # The root has no derivative at 0; where no gradient has come yet, nothing moves.
            seen = second > 0
            root = torch.where(seen, second, 1.0).sqrt()
            step = mean[k] / rest1 / (torch.where(seen, root, 0.0) + self.eps)
            if self.decay_steps is not None:
                step = step * (1 - (t - 1) / self.decay_steps).clamp(min=0)
            new[k] = (v - scaled(lr, k, step)).to(v.dtype)
        return new, {"mean": mean, "square": square, "count": {"steps": steps}}


def _wide(v: Tensor) -> torch.dtype:
    """The type that a parameter's moments are in."""
    return torch.promote_types(v.dtype, torch.float32)
