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
        if self.clip_norm is not None:
            grad = autodiff.clip_norm({k: grad[k] for k in theta}, self.clip_norm)
        g = {k: grad[k].to(_wide(v)) for k, v in theta.items()}
        if self.weight_decay:
            g = {k: g[k] + self.weight_decay * v.to(_wide(v)) for k, v in theta.items()}
        steps = state["count"]["steps"] + 1
        if isinstance(lr, float) and _are_values_alone(theta, g, state):
            new, mean, square = self._of_all(theta, g, state, steps, lr)
        else:
            new, mean, square = self._of_each(theta, g, state, steps, lr)
        return new, {"mean": mean, "square": square, "count": {"steps": steps}}

    def _of_each(
        self, theta: Params, g: Params, state: SolverState, steps: Tensor, lr: Rate
    ) -> tuple[Params, Params, Params]:
        """theta and both moments after a step, by operations that can be differentiated."""
        b1, b2 = self.beta1, self.beta2
        mean = {k: b1 * state["mean"][k] + (1 - b1) * g[k] for k in theta}
        square = {k: b2 * state["square"][k] + (1 - b2) * g[k].square() for k in theta}
        new = {}
        # A count that took the type of bfloat16 would leave 0.999^t at 1.
        known = {wide: self._factors(steps.to(wide)) for wide in {*map(_wide, theta.values())}}
        for k, v in theta.items():
            rest1, rest2, less = known[_wide(v)]
            second = square[k] / rest2
            # The root has no derivative at 0; where no gradient has come yet, nothing moves.
            seen = second > 0
            root = torch.where(seen, second, 1.0).sqrt()
            step = mean[k] / rest1 / (torch.where(seen, root, 0.0) + self.eps)
            step = step if less is None else step * less
            new[k] = (v - scaled(lr, k, step)).to(v.dtype)
        return new, mean, square

    def _of_all(
        self, theta: Params, g: Params, state: SolverState, steps: Tensor, lr: float
    ) -> tuple[Params, Params, Params]:
        """The same numbers, each operation of all parameters by one call."""
        b1, b2 = self.beta1, self.beta2
        at, slope = [*theta.values()], [*g.values()]
        mean = torch._foreach_mul([state["mean"][k] for k in theta], b1)
        torch._foreach_add_(mean, torch._foreach_mul(slope, 1 - b1))
        square = torch._foreach_mul([state["square"][k] for k in theta], b2)
        more = torch._foreach_mul(slope, slope)
        torch._foreach_mul_(more, 1 - b2)
        torch._foreach_add_(square, more)
        rest1, rest2, less = self._factors(steps.to(at[0].dtype))
        root = torch._foreach_div(square, rest2)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, self.eps)
        step = torch._foreach_div(mean, rest1)
        torch._foreach_div_(step, root)
        if less is not None:
            torch._foreach_mul_(step, less)
        torch._foreach_mul_(step, lr)
        found = torch._foreach_sub(at, step), mean, square
        new, first, second = (dict(zip(theta, x, strict=True)) for x in found)
        return new, first, second

    def _factors(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """1 - beta^t of both moments, and what is left of the step size where it falls."""
        n = self.decay_steps
        less = None if n is None else (1 - (t - 1) / n).clamp(min=0)
        return 1 - self.beta1**t, 1 - self.beta2**t, less


def _are_values_alone(theta: Params, g: Params, state: SolverState) -> bool:
    """Whether no derivative passes through, and all are of one type, float32 or float64."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    some = [*theta.values(), *g.values(), *state["mean"].values(), *state["square"].values()]
    graph = torch.is_grad_enabled() and any(
        x.requires_grad for x in (*some, *state["count"].values())
    )
    kinds = {x.dtype for x in some}
    return not graph and len(kinds) == 1 and kinds <= {torch.float32, torch.float64}


def _wide(v: Tensor) -> torch.dtype:
    """The type that a parameter's moments are in."""
    return torch.promote_types(v.dtype, torch.float32)
