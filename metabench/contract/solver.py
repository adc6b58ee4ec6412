"""What an inner solver is: one differentiable update of theta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from metabench.contract.problem import Params

SolverState = dict[str, Params]
"""What a solver carries between steps (velocities, moments): tensors, so that it can be
differentiated through, saved and replayed."""

Rate = float | Tensor | Params
"""A step size: one number, one tensor to learn, or one tensor a parameter (Meta-SGD; a parameter
without one is not moved)."""


class Solver(ABC):
    """What is registered: a frozen dataclass of constants with two pure functions."""

    registered_name: ClassVar[str]

    noisy: ClassVar[bool] = False
    """Whether a step takes noise: data like any other, drawn by :meth:`Context.noise`."""

    plain: ClassVar[bool] = False
    """Whether a step is theta - lr * gradient and nothing else."""

    by_examples: ClassVar[bool] = False
    """Whether it steps by single examples, which a task must have and a method must leave to it
    (:class:`metabench.contract.by_examples.solver.ExampleSolver`)."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Names that must be importable."""
        return ()

    @property
    def sampled_temperature(self) -> float:
        """The temperature of what the steps sample; 0 where they add no noise."""
        return 0.0

    @abstractmethod
    def init(self, theta: Params) -> SolverState:
        """The state before the first step."""

    @abstractmethod
    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """theta and state after one step; differentiable in all that is given.

        ``noise`` holds standard normal draws of theta's shapes for a noisy solver, None for others.
        """


def why_no_noise(solver: Solver, who: str) -> str | None:
    """Why a method that takes steps of its own has no use for a noisy solver; None for others."""
    if not solver.noisy:
        return None
    return f"{who} takes inner steps of its own, without noise: {solver.registered_name} adds some"


def scaled(lr: Rate, name: str, step: Tensor) -> Tensor:
    """The step of one parameter times its step size."""
    if isinstance(lr, dict):
        return lr[name] * step if name in lr else 0.0 * step
    return lr * step
