"""Complex momentum: a velocity with a phase, which converges in games where real momentum does not.

Lorraine, Acuna, Vicol, Duvenaud: Complex Momentum for Optimization in Games, AISTATS 2022,
arXiv 2102.08431. With the gradient (or field) g and beta = momentum e^{i pi phase}:

    mu <- beta mu - g,    theta <- theta + lr Re(mu)

Phase 0 is heavy-ball momentum, phase 1 negative momentum. ``adaptive`` divides Re(mu) by Adam's
root of squares, as the paper's complex Adam does; that algorithm's details were not read, so that
its lack of a correction of mu's start is this project's reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.registry import solver


@solver("complex_momentum")
@dataclass(frozen=True)
class ComplexMomentum(Solver):
    """Complex momentum (Lorraine 2022), for games; plain, or with Adam's scaling."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """|beta|."""
    phase: Annotated[float, Field(ge=-1, le=1)] = 0.125
    """arg beta in units of pi."""
    adaptive: bool = False
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the squares, where ``adaptive``."""
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def init(self, theta: Params) -> SolverState:
        """The velocity's two parts, and where ``adaptive`` the squares and the step count; zero."""
        names = ("real", "imaginary", *(("square",) if self.adaptive else ()))
        state = {name: {k: torch.zeros_like(v) for k, v in theta.items()} for name in names}
        if self.adaptive:
            some = next(iter(theta.values()))
            state["count"] = {"steps": some.new_zeros((), dtype=torch.float64)}
        return state

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step."""
        a = self.momentum * math.cos(math.pi * self.phase)
        b = self.momentum * math.sin(math.pi * self.phase)
        re, im = state["real"], state["imaginary"]
        new = {
            "real": {k: a * re[k] - b * im[k] - grad[k] for k in theta},
            "imaginary": {k: b * re[k] + a * im[k] for k in theta},
        }
        step = new["real"]
        if self.adaptive:
            steps = state["count"]["steps"] + 1
            old, decay = state["square"], self.beta2
            square = {k: decay * old[k] + (1 - decay) * grad[k].square() for k in theta}
            new |= {"square": square, "count": {"steps": steps}}
            step = {}
            for k, v in square.items():
                second = v / (1 - decay ** steps.to(v.dtype))
                seen = second > 0  # the root has no derivative at 0
                root = torch.where(seen, second, torch.ones_like(second)).sqrt()
                step[k] = new["real"][k] / (torch.where(seen, root, root - 1) + self.eps)
        return {k: theta[k] + scaled(lr, k, step[k]) for k in theta}, new
