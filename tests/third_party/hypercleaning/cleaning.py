"""Data cleaning: one weight for every training example, some of whose targets are wrong.

Franceschi, Donini, Frasconi, Pontil: Forward and Reverse Gradient-Based Hyperparameter
Optimization, ICML 2017, section 5.1; here linear regression instead of MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench import GRADIENTS, Batch, Episode, Hyper, Params, Problem, Seeds, Task, generator


@dataclass(frozen=True)
class Cleaning(Task):
    """Data cleaning: learn which training examples to trust from a small clean set."""

    examples: Annotated[int, Field(ge=4)] = 12
    features: Annotated[int, Field(ge=1)] = 3
    wrong: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the training targets that are noise."""

    metric: ClassVar[str] = "mse"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """A bounded lam in the inner loss, small while the examples are few."""
        small = {"small_lam"} if self.examples <= 50 else set()
        return GRADIENTS | {"lam_in_inner_loss", "search_space", "episodes"} | small

    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        """Draw the data."""
        return CleaningProblem(self, seeds, device)


class CleaningProblem(Problem):
    """Batches: x [n, features], y [n], float64. lam: logit [examples], the trust in each."""

    def __init__(self, task: Cleaning, seeds: Seeds, device: torch.device) -> None:
        n = task.examples
        self.hypers = (Hyper("logit", (n,), -4.0, 4.0, meaning="logit of each example's weight"),)
        gen = generator(seeds.data, "cleaning")
        w = torch.randn(task.features, generator=gen, dtype=torch.float64)
        self.parts: dict[str, Batch] = {}
        for split in ("train", "valid", "test"):
            x = torch.randn(n, task.features, generator=gen, dtype=torch.float64)
            y = x @ w
            if split == "train":
                bad = torch.arange(n) < round(task.wrong * n)
                y = torch.where(bad, 3 * torch.randn(n, generator=gen, dtype=torch.float64), y)
            self.parts[split] = {"x": x.to(device), "y": y.to(device)}

    def init_outer(self) -> Params:
        """Every example trusted by half."""
        return {"logit": torch.zeros_like(self.parts["train"]["y"])}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [features], zero."""
        return {"w": torch.zeros_like(self.parts["train"]["x"][0])}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean squared error, weighted by trust."""
        return (lam["logit"].sigmoid() * errors(theta, batch).square()).mean()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean squared error on clean examples."""
        return errors(theta, batch).square().mean()

    def episode(self, split: str, index: int) -> Episode:
        """The training set inside, the clean validation set (or the split asked for) outside."""
        outer = self.parts["valid" if split == "train" else split]
        return Episode(self.parts["train"], outer, index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Mean squared error."""
        return {"mse": float(errors(theta, episode.outer).square().mean())}


def errors(theta: Params, batch: Batch) -> Tensor:
    """x w - y [n]."""
    return batch["x"] @ theta["w"] - batch["y"]
