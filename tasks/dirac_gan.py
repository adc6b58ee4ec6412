"""The smallest GAN: one number makes data, one slope judges it; lam is the judge's penalty.

Mescheder, Geiger, Nowozin: Which Training Methods for GANs do actually Converge?, ICML 2018. All
data are 0, the generator gives x, the discriminator is D(t) = psi t. With f(t) = -log(1 + e^-t)
the players have f(psi x) + f(0), which the generator descends and the discriminator ascends less
e^lam / 2 psi^2 (their R1 penalty): both follow

    g = (f'(psi x) psi, -f'(psi x) x + e^lam psi) .

Without the penalty simultaneous steps circle outwards; the equilibrium is x = psi = 0. Outer loss:
(x^2 + psi^2) / 2 after training. That lam tunes the penalty is this project's.
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

LOW, HIGH = -12.0, 2.0


@task("dirac_gan")
@dataclass(frozen=True)
class DiracGAN(Task):
    """The Dirac GAN: two players of one number each; lam is the log of the gradient penalty."""

    first_log_penalty: Annotated[float, Field(ge=LOW, le=HIGH)] = -4.0
    spread: Annotated[float, Field(gt=0)] = 1.0
    """Distance of the start from the equilibrium; its direction is drawn by the data seed."""

    metric: ClassVar[str] = "distance"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("distance", "loss", "log_penalty")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[frozenset[str]] = GRADIENTS | {
        "field", "lam_in_inner_loss", "full_batch", "episodes", "small_lam", "search_space",
    }  # fmt: skip

    def build(self, seeds: Seeds, device: torch.device) -> DiracGANProblem:
        """Draw the start."""
        return DiracGANProblem(self, seeds, device)


class DiracGANProblem(NoData):
    """float64. theta: "x" and "psi", scalars; lam: "log_penalty", a scalar."""

    hypers = (Hyper("log_penalty", (), LOW, HIGH, meaning="log of the discriminator's penalty"),)

    def __init__(self, task: DiracGAN, seeds: Seeds, device: torch.device) -> None:
        self.task, self.device = task, device
        gen = generator(seeds.data, "dirac_gan")
        angle = 2 * math.pi * float(torch.rand((), generator=gen, dtype=torch.float64))
        start = task.spread * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        self.start = start.to(device)

    def init_outer(self) -> Params:
        """The first penalty."""
        return {"log_penalty": self.start.new_tensor(self.task.first_log_penalty)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same start always."""
        return {"x": self.start[0], "psi": self.start[1]}

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """What the two players follow."""
        x, psi = theta["x"], theta["psi"]
        slope = torch.sigmoid(-psi * x)
        return {"x": slope * psi, "psi": lam["log_penalty"].exp() * psi - slope * x}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |field|^2: zero at the equilibrium alone."""
        found = self.field(lam, theta, batch)
        return 0.5 * (found["x"].square() + found["psi"].square())

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Half the squared distance of the players from the equilibrium."""
        return 0.5 * (theta["x"].square() + theta["psi"].square())

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The distance of both players from the equilibrium, the outer loss, and lam."""
        return {
            "distance": math.hypot(float(theta["x"]), float(theta["psi"])),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "log_penalty": float(lam["log_penalty"]),
        }
