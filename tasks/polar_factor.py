"""The polar factor of a matrix by one step of a solver, after a learned scaling of its rows.

For M = U S V' the least value of <M, W> over matrices of spectral norm at most 1 is at W = -U V':
the step that Muon takes for the gradient M (Jordan et al. 2024), found only nearly by its
Newton-Schulz iterations. Inner loss: |W|_F^2 / 2 + <diag(e^lam) M, W>, from W = 0, so that one step
of size 1 by ``muon`` without momentum is minus its polar factor of the scaled M. Outer loss:
|W + U V'|_F^2 / n; the polar error is its root, as in Boissin et al., arXiv 2512.04632.

At lam = 0 this measures a solver. Turbo-Muon scales rows by a rule of its own; to learn lam through
the iterations says how much a scaling of rows can give. That use is this project's.
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

MOST = 4.0
"""The largest log scale of a row."""
FEW = 8
"""Rows up to which lam counts as few scalars."""
STABLE = 1.5
"""Exponent of the heavy-tailed entries."""


@task("polar_factor")
@dataclass(frozen=True)
class PolarFactor(Task):
    """The polar factor of an n x n matrix by one solver step; lam scales the matrix's rows."""

    n: Annotated[int, Field(ge=2)] = 4
    entries: Literal["gaussian", "stable"] = "gaussian"
    """"stable": symmetric with exponent 1.5, without a variance, as gradients with outliers."""
    dtype: Literal["float32", "float64"] = "float64"

    metric: ClassVar[str] = "polar_error"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("polar_error", "loss", "largest", "smallest")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """A quadratic inner loss with lam in it."""
        own = {"lam_in_inner_loss", "full_batch", "episodes"}
        return GRADIENTS | (own | {"small_lam", "search_space"} if self.n <= FEW else own)

    def build(self, seeds: Seeds, device: torch.device) -> PolarFactorProblem:
        """Draw the matrix."""
        return PolarFactorProblem(self, seeds, device)


class PolarFactorProblem(NoData):
    """theta: "w" [n, n]; lam: "log_scale" [n]. ``target`` [n, n] is U V'."""

    def __init__(self, task: PolarFactor, seeds: Seeds, device: torch.device) -> None:
        self.task, self.device = task, device
        gen = generator(seeds.data, "polar_factor")
        shape = (task.n, task.n)
        m = stable(shape, gen) if task.entries == "stable" else normal(shape, gen)
        u, _, vh = torch.linalg.svd(m)
        dtype: torch.dtype = getattr(torch, task.dtype)
        self.matrix: Tensor = m.to(device, dtype)
        self.target: Tensor = (u @ vh).to(device, dtype)
        meaning = "log of what multiplies a row"
        self.hypers = (Hyper("log_scale", (task.n,), -MOST, MOST, meaning=meaning),)

    def init_outer(self) -> Params:
        """No scaling."""
        return {"log_scale": torch.zeros_like(self.matrix[0])}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Zero."""
        return {"w": torch.zeros_like(self.matrix)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """|W|_F^2 / 2 + <diag(e^lam) M, W>."""
        w = theta["w"]
        return (w * (0.5 * w + lam["log_scale"].exp()[:, None] * self.matrix)).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """|W + U V'|_F^2 / n."""
        return (theta["w"] + self.target).square().sum() / self.task.n

    def project(self, lam: Params) -> Params:
        """Scales within their bounds."""
        return {**lam, "log_scale": lam["log_scale"].clamp(-MOST, MOST)}

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The polar error, its square, and the extreme singular values of W."""
        loss = float(self.outer_loss(lam, theta, episode.outer))
        found = torch.linalg.svdvals(theta["w"])
        return {
            "polar_error": math.sqrt(loss),
            "loss": loss,
            "largest": float(found.max()),
            "smallest": float(found.min()),
        }


def normal(shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=gen, dtype=torch.float64)


def stable(shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    """Symmetric stable numbers of exponent ``STABLE`` (Chambers, Mallows, Stuck 1976)."""
    angle = math.pi * (torch.rand(shape, generator=gen, dtype=torch.float64) - 0.5)
    wait = -torch.log1p(-torch.rand(shape, generator=gen, dtype=torch.float64))
    a = STABLE
    turned = (torch.cos((1 - a) * angle) / wait) ** ((1 - a) / a)
    return torch.sin(a * angle) / torch.cos(angle) ** (1 / a) * turned
