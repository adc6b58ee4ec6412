"""Influence balancing: what lam does at once says up, and what it does in the end says down.

Tallec, Ollivier: Unbiased Online Recurrent Optimization, ICLR 2018, arXiv 1702.05043, as in the
code of PES (Vicol, Metz, Sohl-Dickstein, ICML 2021, arXiv 2112.13835):

    s <- A s + lam sign,    A = I / 2 + shift / 2,    F = 1/2 (s_0 - 1)^2,

sign +1 in the first ``positive`` places and -1 in the ``negative`` that follow. In the end s_0 =
2 lam (positive - negative), but influence needs a step for every place, so that differentiating
the last few steps has the wrong sign. Steps follow the field s - (A s + lam sign): with
``inner_lr`` = 1 a step of plain descent is s <- A s + lam sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData

Count = Annotated[int, Field(ge=1)]


@task("influence_balancing")
@dataclass(frozen=True)
class InfluenceBalancing(Task):
    """Influence balancing: one number whose short influence has the wrong sign; answer known."""

    positive: Count = 10
    negative: Count = 13
    first_lam: Annotated[float, Field(ge=-2, le=2)] = 0.5
    carried: bool = False
    """One sequence along the run; False: every outer step starts from s = 1."""

    metric: ClassVar[str] = "gap"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("gap", "loss", "end_loss")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.positive == self.negative:
            raise ValueError(
                f"positive and negative are both {self.positive}: no lam moves the end"
            )

    @property
    def offers(self) -> frozenset[str]:
        """A field with derivatives, and one bounded number in it."""
        own = {"field", "lam_in_inner_loss", "full_batch", "small_lam", "search_space"}
        return GRADIENTS | own | (set() if self.carried else {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> InfluenceBalancingProblem:
        """Nothing is drawn."""
        return InfluenceBalancingProblem(self, seeds, device)


class InfluenceBalancingProblem(NoData):
    """float64. theta: "s" [positive + negative]; lam: "lam" []. ``A`` and ``sign`` as above."""

    def __init__(self, task: InfluenceBalancing, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.device = task, task.carried, device
        n = task.positive + task.negative
        half = torch.full((n,), 0.5, dtype=torch.float64)
        self.A = (torch.diag(half) + torch.diag(half[1:], 1)).to(device)
        places = torch.arange(n, device=device)
        self.sign = torch.where(places < task.positive, 1.0, -1.0).to(self.A)
        self.slope = 2.0 * (task.positive - task.negative)
        """s_0 in the end, for a lam of 1."""
        self.hypers = (Hyper("lam", (), -2.0, 2.0, meaning="strength of the push"),)

    def init_outer(self) -> Params:
        """The setting's."""
        return {"lam": self.A.new_tensor(self.task.first_lam)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """s = 1."""
        return {"s": torch.ones_like(self.sign)}

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """s - (A s + lam sign)."""
        s = theta["s"]
        return {"s": s - (self.A @ s + lam["lam"] * self.sign)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |field|^2: zero where s stays."""
        return 0.5 * self.field(lam, theta, batch)["s"].square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 (s_0 - 1)^2."""
        return 0.5 * (theta["s"][0] - 1).square()

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """gap: how far lam is from the best; loss: F at theta; end_loss: F where s stays."""
        value = float(lam["lam"])
        return {
            "gap": abs(value - 1 / self.slope),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "end_loss": 0.5 * (self.slope * value - 1) ** 2,
        }
