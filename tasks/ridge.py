"""Ridge regression with one log penalty a feature: a known solution and a known hypergradient.

Inner G = 1/2 |Xw - y|^2 + 1/2 sum_i e^{lam_i} w_i^2 on training rows, outer F = 1/2 |Xw - y|^2 on
validation rows, all rows scaled by 1/sqrt(n). With H = X'X + diag e^lam the minimiser is
w*(lam) = H^-1 X'y, and the hypergradient in lam_i is -e^{lam_i} w*_i [H^-1 grad F(w*)]_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Evidence, Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

LOWEST, HIGHEST = -8.0, 4.0
"""Bounds of a log penalty."""


@task("ridge")
@dataclass(frozen=True)
class Ridge(Task):
    """Ridge regression with one log penalty a feature; half of the features are noise."""

    rows: Annotated[int, Field(ge=4)] = 40
    """Rows in each of the training, validation, test and selection parts."""
    features: Annotated[int, Field(ge=2)] = 10
    noise: Annotated[float, Field(ge=0)] = 0.5
    first_log_penalty: float = 0.0
    carried: bool = False

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    lacks_selection: ClassVar[None] = None
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """A small, bounded lam in the inner loss."""
        own = {"lam_in_inner_loss", "search_space", "best_response", "prediction"}
        own |= {"full_batch", "strongly_convex", "example_losses", "evidence"}
        if self.features <= 16:
            own.add("small_lam")
        if not self.carried:
            own.add("episodes")
        return GRADIENTS | own

    def build(self, seeds: Seeds, device: torch.device) -> RidgeProblem:
        """Draw the data."""
        return RidgeProblem(self, seeds, device)


class RidgeProblem(Problem):
    """Rows are scaled by 1/sqrt(n), so that X'X has eigenvalues near 1; float64."""

    def __init__(self, task: Ridge, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.example_count = task, task.carried, task.rows
        gen = generator(seeds.data, "ridge")
        n, d = task.rows, task.features
        x = torch.randn(3, n, d, generator=gen, dtype=torch.float64)
        w = torch.randn(d, generator=gen, dtype=torch.float64) * (torch.arange(d) < d // 2)
        y = x @ w + task.noise * torch.randn(3, n, generator=gen, dtype=torch.float64)
        scale = n**0.5
        self.parts = {
            split: {"x": (x[i] / scale).to(device), "y": (y[i] / scale).to(device)}
            for i, split in enumerate(("train", "valid", "test"))
        }
        gen = generator(seeds.data, "ridge", "selection")
        x = torch.randn(n, d, generator=gen, dtype=torch.float64)
        y = x @ w + task.noise * torch.randn(n, generator=gen, dtype=torch.float64)
        self.parts["selection"] = {"x": (x / scale).to(device), "y": (y / scale).to(device)}
        self.hypers = (
            Hyper("log_penalty", (d,), LOWEST, HIGHEST, meaning="log of each feature's penalty"),
        )

    def init_outer(self) -> Params:
        """log_penalty [features]."""
        x = self.parts["train"]["x"]
        return {"log_penalty": x.new_full((self.task.features,), self.task.first_log_penalty)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [features], zero."""
        return {"w": self.parts["train"]["x"].new_zeros(self.task.features)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |Xw - y|^2 + 1/2 sum e^lam w^2."""
        penalty = (lam["log_penalty"].exp() * theta["w"].square()).sum()
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * penalty

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^lam, a coefficient for every weight."""
        return {"w": lam["log_penalty"].exp()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |Xw - y|^2."""
        return 0.5 * (batch["x"] @ theta["w"] - batch["y"]).square().sum()

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training rows."""
        return {k: v[indices] for k, v in self.parts["train"].items()}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """n/2 (x'w - y)^2 of each row, n the rows in all."""
        return 0.5 * self.example_count * (batch["x"] @ theta["w"] - batch["y"]).square()

    def evidence(self, lam: Params) -> Evidence:
        """Before the rows were scaled: noise of variance 1, and precisions n e^lam."""
        n = self.example_count
        one = torch.ones_like(lam["log_penalty"][0])
        return Evidence({"w": n * lam["log_penalty"].exp()}, one / n)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |Xw - y|^2."""
        return self.unpenalised_loss(lam, theta, batch)

    @cached_property
    def eigenvalues(self) -> tuple[float, float, float]:
        """The least and the largest of the training rows' X'X, the largest of validation's."""
        values, outer = (
            torch.linalg.eigvalsh(x.T @ x) for x in (self.parts[k]["x"] for k in ("train", "valid"))
        )
        return max(0.0, float(values[0])), float(values[-1]), float(outer[-1])

    def moduli(self, lam: Params) -> Moduli:
        """Proved; mu with the least penalty that the bounds allow, so that it is one for all."""
        low, high, outer = self.eigenvalues
        c = lam["log_penalty"].exp()
        return Moduli(
            low + min(math.exp(LOWEST), float(c.min())), high + float(c.max()), outer_smooth=outer,
            mixed=lambda theta: float((c * theta["w"]).abs().max()), mixed_lipschitz=float(c.max()),
            hessian_lipschitz=0.0, direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def solve(self, lam: Params) -> Tensor:
        """The exact inner minimiser w*(lam) [features]."""
        x, y = self.parts["train"]["x"], self.parts["train"]["y"]
        w: Tensor = torch.linalg.solve(x.T @ x + torch.diag(lam["log_penalty"].exp()), x.T @ y)
        return w

    def exact_hypergradient(self, lam: Params) -> Tensor:
        """The hypergradient at the exact minimiser [features]."""
        x = self.parts["train"]["x"]
        xv, yv = self.parts["valid"]["x"], self.parts["valid"]["y"]
        w, penalty = self.solve(lam), lam["log_penalty"].exp()
        hessian = x.T @ x + torch.diag(penalty)
        g: Tensor = -penalty * w * torch.linalg.solve(hessian, xv.T @ (xv @ w - yv))
        return g

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Xw [rows]."""
        return batch["x"] @ theta["w"]

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """1/2 |prediction - y|^2 + 1/2 sum e^lam w^2."""
        penalty = (lam["log_penalty"].exp() * theta["w"].square()).sum()
        return 0.5 * ((prediction - batch["y"]).square().sum() + penalty)

    def episode(self, split: str, index: int) -> Episode:
        """Full batches; the outer batch of training is the validation part."""
        outer = "valid" if split == "train" else split
        return Episode(self.parts["train"], self.parts[outer], index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1
