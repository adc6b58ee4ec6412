"""Langevin dynamics: a gradient step and Gaussian noise; theta samples exp(-G / temperature).

Welling, Teh: Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML 2011. In terms of an
energy E = G / temperature with lr = eps^2 / (2 temperature) a step is
theta - (eps^2 / 2) grad E + eps xi. It is unadjusted: on a theta^2 / 2 the variance is
temperature / (a (1 - lr a / 2)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.registry import solver


@solver("langevin")
@dataclass(frozen=True)
class Langevin(Solver):
    """Langevin dynamics: theta - lr gradient + sqrt(2 lr temperature) noise."""

    temperature: Annotated[float, Field(ge=0)] = 1e-4
    """Of the inner loss as the task states it: where that is a mean over n examples, the posterior
    of their sum has temperature 1 / n. The default is a guess."""
    noise: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the noise; 1 is Langevin dynamics, 0 plain gradient descent."""

    noisy: ClassVar[bool] = True

    @property
    def sampled_temperature(self) -> float:
        """The temperature of what is sampled, the factor on the noise included."""
        return self.temperature * self.noise**2

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
        """One step with standard normal ``noise`` (entries beside theta's names are not used).

        Raises ValueError without noise.
        """
        if noise is None:
            raise ValueError(
                "solver langevin steps with noise: hand it ctx.noise(episode, t, theta)"
            )
        if isinstance(lr, float):
            size = (2 * lr * self.sampled_temperature) ** 0.5
            return {
                k: v.add(grad[k], alpha=-lr).add(noise[k], alpha=size) for k, v in theta.items()
            }, state
        size_of = {k: self.spread(lr[k] if isinstance(lr, dict) else lr) for k in _rated(lr, theta)}
        return {
            k: v - scaled(lr, k, grad[k]) + (size_of[k] * noise[k] if k in size_of else 0.0)
            for k, v in theta.items()
        }, state

    def spread(self, lr: Tensor) -> Tensor:
        """sqrt(2 lr temperature), with a derivative (of 0) where a step size is 0."""
        moves = lr > 0
        root = torch.where(moves, lr, torch.ones_like(lr)).sqrt()
        unit: float = (2 * self.sampled_temperature) ** 0.5
        return unit * torch.where(moves, root, root - 1.0)


def _rated(lr: Tensor | Params, theta: Params) -> list[str]:
    return [k for k in theta if not isinstance(lr, dict) or k in lr]
