"""How far a classifier should turn its images: a range of angles as lam, beside the prior.

Invariance learning as in Immer et al.: Invariance Learning in Deep Neural Networks with
Differentiable Laplace Approximations, NeurIPS 2022, and Immer et al., ICML 2023, arXiv 2306.03968,
with the rotation alone of their six generators: the logits are the mean over ``samples`` copies of
an image, each turned by an angle that is even between plus and minus the range, in training and at
test. All images, training and test, are turned beforehand by angles even up to ``law_rotation``:
at 0 digits stand upright, and 6 must not become 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.core.registry import task
from metabench.problems.augment import rotated

from .data.images import Images
from .families.images.bayesian_images import BayesianImages, BayesianImagesProblem, Count

HALF = 180.0
"""lam's rotation is in half turns."""
Degrees = Annotated[float, Field(ge=0, le=HALF)]


@task("rotation_range")
@dataclass(frozen=True)
class RotationRange(BayesianImages):
    """The range of angles over which a classifier averages, and the prior of its weights."""

    law_rotation: Degrees = 90.0
    """All images are turned by up to so many degrees."""
    first_rotation: Degrees = 5.0
    """The first range, in degrees. At 0 the objective is flat on average."""
    samples: Count = 8
    """Angles that a prediction is the mean over."""

    metrics: ClassVar[tuple[str, ...]] = (
        "accuracy", "loss", "trained_on", "validated_on", "rotation", "rotation_gap",
    )  # fmt: skip

    def build(self, seeds: Seeds, device: torch.device) -> RotationRangeProblem:
        """Turn the images and cut the parts. Raises DataMissing, SettingError."""
        return RotationRangeProblem(self, seeds, device, self.images())


class RotationRangeProblem(BayesianImagesProblem):
    """Batches have ``way`` [n, samples] in -1..1 besides; lam has ``rotation`` [] besides."""

    task: RotationRange

    def __init__(
        self, task: RotationRange, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        super().__init__(task, seeds, device, images)
        meaning = "largest angle, in half turns"
        self.hypers = (Hyper("rotation", (), 0.0, 1.0, meaning=meaning), *self.hypers)

    def seen(self, x: Tensor, gen: torch.Generator) -> Tensor:
        """Turned by the law."""
        if not self.task.law_rotation:
            return x
        angles = 2 * torch.rand(len(x), generator=gen, dtype=torch.float32) - 1
        return rotated(x, self.task.law_rotation * angles)

    def init_outer(self) -> Params:
        """The first range and log precisions."""
        first = self.fresh["head.bias"].new_tensor(self.task.first_rotation / HALF)
        return {"rotation": first} | super().init_outer()

    def numbers(self, n: int, gen: torch.Generator) -> Batch:
        """One angle in each of ``samples`` equal parts of the range."""
        s = self.task.samples
        within = torch.rand(n, s, generator=gen, dtype=torch.float64)
        way = 2 * (torch.arange(s, dtype=torch.float64) + within) / s - 1
        return {"way": way.to(self.device, self.dtype)}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10], the mean over turned copies."""
        x, way = batch["x"], batch["way"]
        n, s = way.shape
        copies = x[:, None].expand(n, s, *x.shape[1:]).flatten(0, 1)
        x = rotated(copies, HALF * lam["rotation"] * way.flatten())
        logits: Tensor = self.model.logits(theta, x).view(n, s, -1)
        return logits.mean(1)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The range in degrees besides, and how far it is from the law's."""
        rotation = HALF * float(lam["rotation"])
        return super().metrics(lam, theta, episode) | {
            "rotation": rotation,
            "rotation_gap": abs(rotation - self.task.law_rotation),
        }
