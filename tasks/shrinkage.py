"""One weight and its log penalty: the smallest problem whose best response is not affine.

Inner G = 1/2 (w - 1)^2 + 1/2 e^u w^2, outer F = 1/2 (w - c)^2. w*(u) = 1 / (1 + e^u), so the best u
is log(1/c - 1). An affine response fitted to w* under perturbations of u is off by their scale
(self-tuning networks): what it costs is the metric ``exact_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData


@task("shrinkage")
@dataclass(frozen=True)
class Shrinkage(Task):
    """One weight and its log penalty: the best response is known, and not affine."""

    target: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """c: what the outer level wants w to be."""
    first_log_penalty: Annotated[float, Field(ge=-6, le=6)] = -2.0
    carried: bool = False

    metric: ClassVar[str] = "exact_loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """Everything that a scalar problem can."""
        own = {"lam_in_inner_loss", "best_response", "prediction", "small_lam", "search_space"}
        own |= {"full_batch", "strongly_convex"}
        return GRADIENTS | own | (set() if self.carried else {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> ShrinkageProblem:
        """Nothing to draw."""
        return ShrinkageProblem(self, device)


class ShrinkageProblem(NoData):
    """lam and theta are one number each, float64."""

    hypers = (Hyper("log_penalty", (1,), -6.0, 6.0, meaning="u, the log of the weight's penalty"),)

    def __init__(self, task: Shrinkage, device: torch.device) -> None:
        self.task, self.carried, self.device = task, task.carried, device

    def init_outer(self) -> Params:
        """log_penalty [1]."""
        first = torch.tensor([self.task.first_log_penalty], dtype=torch.float64)
        return {"log_penalty": first.to(self.device)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [1], zero."""
        return {"w": torch.zeros(1, dtype=torch.float64, device=self.device)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 (w - 1)^2 + 1/2 e^u w^2."""
        return self.loss_of_prediction(lam, theta, theta["w"], batch)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """w itself [1]."""
        return theta["w"]

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """The same of a given w [1]."""
        penalty = lam["log_penalty"].exp() * prediction.square()
        return 0.5 * ((prediction - 1).square() + penalty).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 (w - c)^2."""
        return 0.5 * (theta["w"] - self.task.target).square().sum()

    def moduli(self, lam: Params) -> Moduli:
        """Proved; mu without the penalty, so that it is one for all."""
        c = float(lam["log_penalty"].exp().sum())
        return Moduli(
            1.0, 1.0 + c, outer_smooth=1.0, mixed=lambda theta: c * float(theta["w"].abs().sum()),
            mixed_lipschitz=c, hessian_lipschitz=0.0, direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def solve(self, lam: Params) -> Tensor:
        """The exact inner minimiser w*(u) [1]."""
        return torch.sigmoid(-lam["log_penalty"])

    def best(self) -> float:
        """The u whose w* is the target."""
        return float(-torch.logit(torch.tensor(self.task.target, dtype=torch.float64)))

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """exact_loss: F at w*(u), whatever theta is; loss: F at theta; response_error: how far
        theta is from w*(u); lam_error: how far u is from the best."""
        exact = self.solve(lam)
        return {
            "exact_loss": float(self.outer_loss(lam, {"w": exact}, episode.outer)),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "response_error": float((theta["w"] - exact).abs().sum()),
            "lam_error": abs(float(lam["log_penalty"].sum()) - self.best()),
        }
