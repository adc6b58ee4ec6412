"""Inner solvers that step by single examples, with tables of their own.

The inner loss is R(l(theta)) + 1/2 sum c theta^2: l the losses of n examples
(:meth:`Problem.example_losses`), c the diagonal penalty, R their mean or a spectral risk
(:meth:`Problem.spectrum`). An inner step is a pass over n examples. Its cost is counted in inner
gradients: the gradient of one example is the n-th part of one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from metabench.contract import autodiff
from metabench.contract.by_examples.losses import Examples
from metabench.contract.by_examples.spectral import Array, SortedWeights, Spectrum, weights
from metabench.contract.problem import Episode, Params, Problem
from metabench.contract.seeds import generator
from metabench.contract.solver import Rate, Solver, SolverState
from metabench.core.errors import Diverged, SettingError

if TYPE_CHECKING:
    from metabench.contract.context import Context

Tables = dict[str, Array]
"""What a solver keeps of the examples between passes, float64."""


@dataclass(frozen=True)
class Differentiated:
    """By autograd, of any problem; ``theta`` gives names, shapes and what does not move."""

    problem: Problem
    lam: Params
    theta: Params
    only: Sequence[str]

    def one(self, i: int, w: Array) -> tuple[float, Array]:
        """By one backward pass."""
        moving = {k: self.theta[k] for k in self.only}
        batch = self.problem.take(torch.tensor([i], device=next(iter(moving.values())).device))
        value, g = autodiff.grad(
            lambda t: self.problem.example_losses(self.lam, {**self.theta, **t}, batch)[0],
            as_theta(w, moving),
        )
        return float(value), as_vector(g)

    def some(self, chosen: Array, w: Array) -> tuple[Array, Array]:
        """One after another."""
        each = [self.one(int(i), w) for i in chosen]
        return np.array([v for v, _ in each]), np.stack([g for _, g in each])


@dataclass(frozen=True)
class FiniteSum:
    """An inner loss as solvers by example see it: n ``examples``, the ``risk`` of their losses
    (None: the mean), and ``penalty``, the c of the diagonal penalty [d]."""

    examples: Examples
    n: int
    risk: Spectrum | None
    penalty: Array

    @cached_property
    def sigma(self) -> Array | None:
        """The spectrum [n]; None: all weights are 1 / n."""
        return self.spectrum(self.n)

    @cached_property
    def scale(self) -> float:
        """n nu."""
        return self.n if self.risk is None else self.n * float(self.risk.nu)

    def spectrum(self, m: int) -> Array | None:
        """The spectrum [m] of m losses; None: all weights are 1 / m."""
        return None if self.risk is None else self.risk.sigma(m).detach().cpu().numpy()

    def all(self, w: Array) -> tuple[Array, Array]:
        """Losses [n] and gradients [n, d]."""
        return self.examples.some(np.arange(self.n), w)

    def weights(self, losses: Array) -> Array:
        """q [m] of m losses; the penalty of fewer than n is that of n, as in Prospect's code."""
        sigma = self.sigma if len(losses) == self.n else self.spectrum(len(losses))
        if sigma is None:
            return np.full(len(losses), 1 / len(losses))
        return weights(losses, sigma, self.scale)

    def changing_weights(self, losses: Array) -> SortedWeights:
        """For losses [n] that change one by one."""
        return SortedWeights(losses, self.sigma, self.scale)

    def gradient(self, chosen: Array, w: Array) -> Array:
        """The gradient [d] of the risk of a batch, without the penalty."""
        losses, gradients = self.examples.some(chosen, w)
        found: Array = self.weights(losses) @ gradients
        return found


def as_vector(params: Params) -> Array:
    """One float64 vector."""
    flat: Array = autodiff.flatten(autodiff.detach(params)).cpu().double().numpy()
    return flat


def as_theta(w: Array, like: Params) -> Params:
    """The parameters that a vector says, in their types and on their device."""
    found = autodiff.unflatten(torch.from_numpy(w.copy()), like)
    return {k: v.to(like[k].device, like[k].dtype) for k, v in found.items()}


def finite_sum(problem: Problem, lam: Params, theta: Params, only: Sequence[str]) -> FiniteSum:
    """The inner loss of a problem at lam; ``only``: the names of theta that move."""
    closed = problem.closed_examples(lam) if list(only) == list(theta) else None
    penalty = problem.diagonal_penalty(lam) or {}
    zero = {k: torch.zeros_like(theta[k]) for k in only}
    c = {k: z + penalty[k] if k in penalty else z for k, z in zero.items()}
    examples = closed or Differentiated(problem, lam, theta, only)
    return FiniteSum(examples, problem.example_count, problem.spectrum(lam), as_vector(c))


class ExampleSolver(Solver):
    """A solver that takes its steps from single examples; nothing differentiates through it.

    A subclass gives :meth:`begin` and :meth:`run`.
    """

    by_examples: ClassVar[bool] = True
    first_passes: ClassVar[int] = 0
    """Passes over all examples that :meth:`begin` takes."""
    passes: ClassVar[int] = 1
    """Passes that an inner step takes: what it counts."""

    @abstractmethod
    def begin(self, loss: FiniteSum, w: Array) -> Tables:
        """The tables before the first pass; must not be empty."""

    @abstractmethod
    def run(self, loss: FiniteSum, w: Array, tables: Tables, lr: float, draws: Draws) -> Array:
        """w [d] after one pass, in which ``tables`` change in place."""

    def init(self, theta: Params) -> SolverState:
        """Nothing yet: tables need the examples."""
        return {}

    def update(
        self, theta: Params, grad: Params, state: SolverState, lr: Rate, noise: Any = None
    ) -> tuple[Params, SolverState]:
        """Raises SettingError: there is no step from a gradient."""
        raise SettingError(
            f"solver {self.registered_name} steps by single examples: it has no step from a "
            "gradient, as an outer solver or a method's own steps need"
        )

    def refuse_graph(self, wanted: bool) -> None:
        """Raises SettingError where a graph is wanted."""
        if wanted:
            raise SettingError(
                f"solver {self.registered_name} steps by single examples: nothing differentiates "
                "through its steps"
            )

    def require_finite(self, value: float) -> None:
        """Raises Diverged where the loss of an example is not finite: for solvers that sort or
        weigh losses within a pass."""
        if not isfinite(value):
            raise Diverged(f"the loss of an example is {value} in a pass of {self.registered_name}")

    def train(
        self,
        ctx: Context,
        lam: Params,
        theta: Params,
        episode: Episode,
        steps: int,
        lr: Rate,
        state: SolverState | None = None,
        only: Sequence[str] | None = None,
    ) -> tuple[Params, SolverState]:
        """theta and state after ``steps`` passes, without a graph; counted.

        Draws are a function of the seed, the episode's index and the number of passes in the state.
        Raises SettingError for a step size by parameter, Diverged.
        """
        if isinstance(lr, dict):
            raise SettingError(f"solver {self.registered_name} has one step size for all of theta")
        lam, theta = autodiff.detach(lam), autodiff.detach(theta)
        moving = theta if only is None else {k: theta[k] for k in only}
        loss = finite_sum(ctx.problem, lam, theta, list(moving))
        w, rate = as_vector(moving).copy(), float(lr)
        if not state:
            ctx.meter.add(inner_gradients=self.first_passes)
            tables, done = self.begin(loss, w), 0
        else:
            tables = {k: v.numpy().copy() for k, v in state["tables"].items()}
            done = int(state["count"]["passes"])
        for _ in range(steps):
            ctx.meter.add(inner_gradients=self.passes)
            address = (ctx.seeds.batches, "examples", episode.index, done)
            with np.errstate(over="ignore", invalid="ignore"):
                w = self.run(loss, w, tables, rate, Draws(*address))
            if not np.isfinite(w).all():
                raise Diverged(f"theta is not finite after a pass of {self.registered_name}")
            done += 1
        kept = {k: torch.from_numpy(v.copy()) for k, v in tables.items()}
        count = {"passes": torch.tensor(done)}
        return {**theta, **as_theta(w, moving)}, {"tables": kept, "count": count}


class Draws:
    """Which examples a pass takes: a function of its address."""

    def __init__(self, *address: int | str) -> None:
        self.address = address

    def examples(self, n: int) -> list[int]:
        """n examples of n, each drawn uniformly."""
        found: list[int] = torch.randint(n, (n,), generator=generator(*self.address)).tolist()
        return found

    def order(self, n: int) -> Array:
        """All n examples, int64 [n], in a drawn order."""
        found: Array = torch.randperm(n, generator=generator(*self.address)).numpy()
        return found
