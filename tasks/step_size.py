"""The step size of gradient descent on a parabola: the smallest problem of an optimiser's constant.

Inner G = h w^2 / 2 from w_0, outer F = G at the end. T plain steps of size beta give
w_T = (1 - h beta)^T w_0, so that beta = 1 / h is best for every T >= 1, with a loss of exactly 0,
and beta > 2 / h runs away. lam is beta: it sets the inner solver and is in no loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import InnerRule
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

NO_GRADIENTS = dict.fromkeys(
    ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
     "best_response", "prediction", "full_batch", "strongly_convex"),
    "lam sets the inner solver: it is searched for, not differentiated",
)  # fmt: skip


@task("step_size")
@dataclass(frozen=True)
class StepSize(Task):
    """The step size of gradient descent on a parabola: the best one is known."""

    curvature: Annotated[float, Field(gt=0)] = 1.0
    """h."""
    low: Annotated[float, Field(gt=0)] = 1e-3
    high: Annotated[float, Field(gt=0)] = 10.0
    """Bounds of the step size; its scale is logarithmic."""
    spread: Annotated[float, Field(ge=0)] = 1.0
    """w_0 is exp(spread n), n normal, one an episode: what is noise for a search."""

    metric: ClassVar[str] = "log_error"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("log_error", "loss")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[str, str]] = NO_GRADIENTS

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}: it must be below high, {self.high:g}")

    @property
    def offers(self) -> frozenset[str]:
        """Bounds of one number, and episodes."""
        return frozenset({"search_space", "small_lam", "episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> StepSizeProblem:
        """Nothing to load."""
        return StepSizeProblem(self, seeds, device)


class StepSizeProblem(Problem):
    """lam: "rate" []; theta: "w" []; float64."""

    def __init__(self, task: StepSize, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.best = 1 / task.curvature
        self.hypers = (Hyper("rate", (), task.low, task.high, log=True, meaning="step size"),)

    def init_outer(self) -> Params:
        """The middle of the bounds, on their scale."""
        middle = math.sqrt(self.task.low * self.task.high)
        return {"rate": torch.tensor(middle, dtype=torch.float64, device=self.device)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w_0."""
        return {"w": episode.outer["start"].clone()}

    def inner_rule(self, lam: Params) -> InnerRule:
        """Steps of size beta."""
        return InnerRule(rate=float(lam["rate"]))

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """h w^2 / 2."""
        return 0.5 * self.task.curvature * theta["w"].square()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same."""
        return self.inner_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """A start of its own."""
        gen = generator(self.seeds.data, "step size", split, index)
        normal = torch.randn((), generator=gen, dtype=torch.float64)
        batch = {"start": (self.task.spread * normal).exp().to(self.device)}
        return Episode(batch, batch, index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """log_error: how far log beta is from log 1/h; loss: F at theta."""
        error = abs(math.log(float(lam["rate"]) / self.best))
        return {
            "log_error": error,
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
        }
