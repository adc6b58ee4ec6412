"""A schedule of step sizes: descent on a parabola, or on a valley with ripples, by two numbers.

lam = the log step sizes of the first and of the last of ``steps`` inner steps, with the others even
between; later steps have the last. F = h w^2 / 2 with h of ``curvature``, or the toy of Vicol,
Metz, Sohl-Dickstein (PES), ICML 2021, arXiv 2112.13835, as in the authors' code:

    F = sqrt(x_0^2 + 5) - sqrt(5) + sin(x_1)^2 exp(-5 x_0^2) + |x_1 - 100| / 4  from (1, 1).

G at step t is F times the step size of t: with ``inner_lr`` = 1 and plain descent that is the step
size. The minimiser of G is the same for every lam: methods that look at it see nothing of what lam
does. On the parabola w_T = w_0 prod (1 - h rate_t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds
from metabench.contract.task import Task
from metabench.core.registry import task

BOUNDS = (-8.0, 2.0)
"""Of a log step size."""


@task("schedule_quadratic")
@dataclass(frozen=True)
class ScheduleQuadratic(Task):
    """Two log step sizes, the first and the last of a schedule, on a parabola or in a valley."""

    surface: Literal["parabola", "valley"] = "parabola"
    curvature: Annotated[float, Field(gt=0)] = 2.0
    """h of the parabola."""
    steps: Annotated[int, Field(ge=2)] = 7
    """Inner steps of the schedule (100 in the valley of the paper)."""
    first_log_rate: Annotated[float, Field(ge=BOUNDS[0], le=BOUNDS[1])] = -4.0
    """Of both ends."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "first_log_rate", "last_log_rate")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, and two bounded numbers in the inner loss."""
        own = {"lam_in_inner_loss", "small_lam", "search_space", "episodes"}
        return GRADIENTS | own

    def build(self, seeds: Seeds, device: torch.device) -> ScheduleProblem:
        """Nothing is drawn."""
        return ScheduleProblem(self, seeds, device)


class ScheduleProblem(Problem):
    """float64. theta: "w" [1] of the parabola or [2] of the valley; lam: "log_rate" [2]. An inner
    batch is "progress" [1], from 0 at the first step of the schedule to 1 at the last."""

    def __init__(self, task: ScheduleQuadratic, seeds: Seeds, device: torch.device) -> None:
        self.task = task
        first = [-1.0] if task.surface == "parabola" else [1.0, 1.0]
        self.start = torch.tensor(first, dtype=torch.float64, device=device)
        self.hypers = (
            Hyper("log_rate", (2,), *BOUNDS, meaning="log of the first and the last step size"),
        )

    def init_outer(self) -> Params:
        """Both ends alike."""
        return {"log_rate": self.start.new_full((2,), self.task.first_log_rate)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same start always."""
        return {"w": self.start.clone()}

    def height(self, w: Tensor) -> Tensor:
        """F at w."""
        if self.task.surface == "parabola":
            return 0.5 * self.task.curvature * w.square().sum()
        x, y = w.unbind()
        bowl = (x.square() + 5).sqrt() - 5**0.5
        return bowl + y.sin().square() * (-5 * x.square()).exp() + 0.25 * (y - 100).abs()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The height times the step size."""
        first, last = lam["log_rate"].unbind()
        rate = (first + (last - first) * batch["progress"][0]).exp()
        return rate * self.height(theta["w"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The height."""
        return self.height(theta["w"])

    def episode(self, split: str, index: int) -> Episode:
        """The same one always."""

        def inner(step: int) -> Batch:
            return {"progress": self.start.new_full((1,), min(step / (self.task.steps - 1), 1.0))}

        return Episode(inner, {"none": self.start.new_zeros(1)}, index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The height, and both ends of the schedule."""
        first, last = lam["log_rate"].tolist()
        loss = float(self.outer_loss(lam, theta, episode.outer))
        return {"loss": loss, "first_log_rate": first, "last_log_rate": last}
