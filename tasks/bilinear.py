"""Two players, from cooperation to pure conflict: a linear game whose steps follow no loss.

Lorraine, Acuna, Vicol, Duvenaud: Complex Momentum for Optimization in Games, AISTATS 2022,
arXiv 2102.08431. Player x descends and player y ascends

    a x'Ay + (1 - a) / 2 (x'Bx - y'By),    so that both follow  g = (a Ay + (1 - a) Bx,
                                                                     -a A'x + (1 - a) By)

around an equilibrium that lam moves: x and y are taken from there. A and B are diagonal with
entries even in [1, ``condition``] (scaled to a geometric mean of 1). Outer loss: 1/2 of the squared
distance to a target. One dimension and a = 1 is the bilinear game with A = 1.
"""

from __future__ import annotations

import math
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


@task("bilinear")
@dataclass(frozen=True)
class Bilinear(Task):
    """A linear game of two players, cooperative to adversarial, whose equilibrium lam moves."""

    dim: Annotated[int, Field(ge=1)] = 1
    """Numbers of each player."""
    adversarial: Annotated[float, Field(ge=0, le=1)] = 1.0
    """a: 0 is two losses of their own, 1 a bilinear game."""
    condition: Annotated[float, Field(ge=1)] = 1.0
    """Largest over smallest entry of A and of B."""
    carried: bool = False

    metric: ClassVar[str] = "distance"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("distance", "log_distance", "loss")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """A field with derivatives, and a lam in it."""
        own = {"field", "lam_in_inner_loss", "full_batch"}
        own |= set() if self.carried else {"episodes"}
        return GRADIENTS | (own | {"small_lam", "search_space"} if self.dim <= 8 else own)

    def build(self, seeds: Seeds, device: torch.device) -> BilinearProblem:
        """Draw the start and the target."""
        return BilinearProblem(self, seeds, device)


class BilinearProblem(NoData):
    """float64. theta: "x" and "y" [dim]; lam: "centre" [2 dim], x's then y's."""

    def __init__(self, task: Bilinear, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.device = task, task.carried, device
        d = task.dim
        entries = torch.linspace(1.0, task.condition, d, dtype=torch.float64)
        self.entries = (entries / entries.log().mean().exp()).to(device)
        gen = generator(seeds.data, "bilinear")
        drawn = torch.randn(2, 2 * d, generator=gen, dtype=torch.float64).to(device)
        self.start, self.target = drawn[0], drawn[1].clamp(-2, 2)
        if d <= 8:
            self.hypers = (Hyper("centre", (2 * d,), -4.0, 4.0, meaning="the equilibrium"),)

    def init_outer(self) -> Params:
        """The equilibrium at zero."""
        return {"centre": torch.zeros_like(self.target)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same start always."""
        x, y = self.start.chunk(2)
        return {"x": x, "y": y}

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """What the two players follow."""
        a, s = self.task.adversarial, self.entries
        cx, cy = lam["centre"].chunk(2)
        x, y = theta["x"] - cx, theta["y"] - cy
        return {"x": s * (a * y + (1 - a) * x), "y": s * ((1 - a) * y - a * x)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |field|^2: zero at the equilibrium alone."""
        parts = self.field(lam, theta, batch).values()
        return 0.5 * torch.stack([v.square().sum() for v in parts]).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 of the squared distance to the target."""
        return 0.5 * (torch.cat([theta["x"], theta["y"]]) - self.target).square().sum()

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The distance of theta from the equilibrium, its decimal logarithm, and the outer loss."""
        distance = torch.linalg.vector_norm(torch.cat([theta["x"], theta["y"]]) - lam["centre"])
        return {
            "distance": float(distance),
            "log_distance": log_of(float(distance)),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
        }


def log_of(distance: float) -> float:
    """The decimal logarithm, of nothing less than 1e-16."""
    return math.log10(max(distance, 1e-16))
