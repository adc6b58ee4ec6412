"""Grid search: every combination of equally spaced values (log scales as such) and categories.

The order is drawn by the seed, so that a budget that ends within the grid has seen all of the
range; when the grid is done it is gone through again on other episodes, and the answer is by means.
A grid too large ever to be done is visited at random. ``warm_start`` goes along the grid in order,
each training from where the last one ended: for one inner problem, whose solution moves little.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from metabench.contract.method import Context, State
from metabench.core.registry import method
from metabench.hypergradients.search.arms import axis, nodes, twice
from metabench.hypergradients.search.gradient_free import Judged, Paused, counted
from metabench.hypergradients.search.tries import Tries

LARGE = 100_000
"""Points of a grid that is not written down."""

ROUNDING = 1e-6
"""Of a place in the unit interval that comes from a lam in single precision."""


@method("grid")
@dataclass(frozen=True)
class Grid(Tries):
    r"""Grid search on a small lam; one full inner training a point.

    Formula:
        \lambda^{\star} = \operatorname*{arg\,min}_{\lambda_1, \dots, \lambda_n}\;
        \ell(\lambda_i), \qquad \ell(\lambda) = \frac{1}{|E|} \sum_{e \in E} F_e(\lambda,
        \theta_T(\lambda))

        \{\lambda_i\} = \text{all combinations of } \mathtt{points} \text{ equally spaced values
        of each scalar}

    Loop:
        point = grid[order[k % len(grid)]]  # the order is drawn by the seed
        loss = mean(F(point, train(point, inner_steps)) for F in episodes)
        if loss < best:
            best, lam = loss, point
    """

    points: Annotated[int, Field(ge=1)] = 10
    """Of each continuous scalar, both bounds among them (1: the middle)."""
    warm_start: bool = False

    revisits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.warm_start and self.finalists:
            raise ValueError(
                f"finalists is {self.finalists}: with warm_start a training goes on from the "
                "last one, and another of the same lam is no second value; set one of the two"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Bounds; one inner problem for warm starts."""
        return super().needs | ({"best_response"} if self.warm_start else set())

    @property
    def batched(self) -> bool:
        """Not where a training goes on from the last one of the same episode."""
        return not self.warm_start

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """Point number ``ctx.step``, counted round and round."""
        axes = tuple(axis(n, self.points) for n in kinds)
        seed = f"{ctx.seeds.method}/grid"
        if math.prod(len(one) for one in axes) > LARGE:
            draw = random.Random(f"{seed}/{ctx.step}")
            return [draw.choice(one) for one in axes]
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        grid = nodes(axes, None if self.warm_start else seed)
        if any(hyper.only_if for hyper in hypers):
            grid = [x for x in grid if not twice(x, axes, counted(x, hypers, like))]
        if self.initial_first:
            first = self.initial_point(ctx)
            on = counted(first, hypers, like)
            grid = [first, *(x for x in grid if not near(x, first, on))]
        return grid[ctx.step % len(grid)]

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """Where the next training starts."""
        if not self.warm_start or not found[-1].loss < math.inf:
            return state.memory
        end = [{"theta": part["theta"], "solver": None} for part in found[-1].end]
        return {**state.memory, "warm": end}

    def start(self, state: State) -> Paused | None:
        """Where the last training ended."""
        return state.memory.get("warm")


def near(a: Sequence[float], b: Sequence[float], counts: Sequence[bool]) -> bool:
    """Whether two points are the same lam but for rounding: equal in all that counts."""
    return all(abs(u - v) < ROUNDING for u, v, on in zip(a, b, counts, strict=True) if on)
