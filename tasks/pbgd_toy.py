"""The toy problem of the penalty paper: an inner problem that is not convex, on an interval.

Shen, Chen: On Penalty-based Bilevel Gradient Descent Method, ICML 2023, section 6.1 and the
authors' code:

    f(x, y) = cos(4y + 2) / (1 + e^(2 - 4x)) + 1/2 ln((4x - 2)^2 + 1)
    g(x, y) = (x + y)^2 + x sin^2(x + y),   0 <= x <= 3

g's minimiser is y = -x, so the hyper-objective is f(x, -x), with three local minima on [0, 3] (see
``MINIMA``). Differs: the authors' code differentiates f by hand and squares the wrong factor (1 +
e^(2(2 - 4x)) for (1 + e^(2 - 4x))^2), which moves the fixed points; here autograd differentiates.
Starts outside [0, 3] are moved to its end before the first step, not after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData

MINIMA = ((0.3824, 0.4427), (1.2152, 0.1999), (2.8296, 1.2435))
"""x and value of the hyper-objective's local minima on [0, 3], to four decimals."""

NEAR = 0.05
"""How near to a minimum an x is said to have reached it."""


@task("pbgd_toy")
@dataclass(frozen=True)
class PBGDToy(Task):
    """The penalty paper's toy: a non-convex inner problem, three local minima on [0, 3]."""

    starts: Annotated[int, Field(ge=1)] = 100
    """Points that descend side by side, each on its own: x from U(0, 3.5), y from U(-5, 8.5)."""
    carried: bool = True

    metric: ClassVar[str] = "hyper_objective"
    goal: ClassVar[Literal["max", "min"]] = "min"
    data: ClassVar[tuple[str, ...]] = ()

    lacks: ClassVar[dict[str, str]] = {
        "small_lam": "every start is a scalar of its own: few are up to 16 (task.starts)"
    }

    @property
    def offers(self) -> frozenset[str]:
        """A bounded lam in the inner loss; small up to 16 starts. Carried, one y = -x to learn."""
        own = {"lam_in_inner_loss", "search_space"}
        if self.starts <= 16:
            own.add("small_lam")
        own.add("best_response" if self.carried else "episodes")
        return GRADIENTS | own

    def build(self, seeds: Seeds, device: torch.device) -> PBGDToyProblem:
        """Draw the starts."""
        return PBGDToyProblem(self, seeds, device)


class PBGDToyProblem(NoData):
    """lam: ``x`` [starts], theta: ``y`` [starts], float64; losses are sums over the starts, whose
    gradients do not mix."""

    def __init__(self, task: PBGDToy, seeds: Seeds, device: torch.device) -> None:
        self.carried, self.device = task.carried, device
        gen = generator(seeds.init, "pbgd_toy")
        x, y = torch.rand(2, task.starts, generator=gen, dtype=torch.float64)
        self.x, self.y = (3.5 * x).clamp(max=3.0).to(device), (13.5 * y - 5.0).to(device)
        self.hypers = (Hyper("x", (task.starts,), 0.0, 3.0, meaning="the outer variable"),)

    def init_outer(self) -> Params:
        """x [starts]."""
        return {"x": self.x.clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """y [starts]."""
        return {"y": self.y}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Sum of g."""
        x, s = lam["x"], lam["x"] + theta["y"]
        return (s.square() + x * s.sin().square()).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Sum of f."""
        return objective(lam["x"], theta["y"]).sum()

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Means over the starts: ``hyper_objective`` f(x, -x), ``loss`` f(x, y), ``residual``
        |x + y|, and ``reached``, the share of starts whose x is near a local minimum."""
        x, y = lam["x"], theta["y"]
        far = (x[:, None] - x.new_tensor([m for m, _ in MINIMA])).abs().amin(1)
        return {
            "hyper_objective": float(objective(x, -x).mean()),
            "loss": float(objective(x, y).mean()),
            "residual": float((x + y).abs().mean()),
            "reached": float((far < NEAR).double().mean()),
        }


def objective(x: Tensor, y: Tensor) -> Tensor:
    """f, elementwise."""
    gate = torch.sigmoid(4 * x - 2)
    return gate * torch.cos(4 * y + 2) + 0.5 * torch.log1p((4 * x - 2).square())
