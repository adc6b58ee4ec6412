"""Regression on sines: learn the initial weights that fit a new sine from a few of its points.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv 1703.03400, section 5.1.
y = A sin(x - p) with A ~ U(0.1, 5), p ~ U(0, pi), x ~ U(-5, 5), both losses the mean squared error
of a network with two ReLU layers of 40 units. Evaluation episodes are judged on equally spaced
points, as in the code of CAVIA (Zintgraf et al. 2019).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .families.episodes.learned_start import LearnedStart, LearnedStartProblem
from .models.classifier import first_weights

Count = Annotated[int, Field(ge=1)]
AMPLITUDES = (0.1, 5.0)
REACH = 5.0
"""Inputs are within this distance of 0."""
SMALL = 0.01
"""Deviation of the small first weights."""


@task("sinusoid")
@dataclass(frozen=True)
class Sinusoid(LearnedStart):
    """Few-shot regression on sines (Finn 2017): lam = all initial weights."""

    shots: Count = 10
    """Points that inner steps see."""
    queries: Count = 10
    """Points of the outer loss."""
    test_queries: Annotated[int, Field(ge=2)] = 100
    """Equally spaced points that evaluation episodes are judged on."""
    meta_batch: Count = 25
    """Episodes an outer step."""
    width: Count = 40
    """Units of each of the two ReLU layers."""
    weights: Literal["small", "uniform"] = "small"
    """The first lam: as in the paper's code, truncated normals of deviation 0.01 and biases of 0,
    from which training is slow to begin; or uniform within 1 / sqrt(inputs), as torch's linear
    layers start, from which a step size of 0.1 runs away."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "mse"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("mse", "loss", "best_unadapted")
    data: ClassVar[tuple[str, ...]] = ()

    def build(self, seeds: Seeds, device: torch.device) -> SinusoidProblem:
        """Nothing to load."""
        return SinusoidProblem(self, seeds, device)


class SinusoidProblem(LearnedStartProblem):
    """Batches: ``x`` and ``y`` [n, 1]. lam and theta: weights and biases of ``layer0``, ``layer1``
    and ``head``."""

    task: Sinusoid
    module: nn.Sequential

    def __init__(self, task: Sinusoid, seeds: Seeds, device: torch.device) -> None:
        self.seeds = seeds
        self.kind = {"dtype": getattr(torch, task.dtype), "device": device}
        self.episodes_per_step = task.meta_batch
        n = task.width
        layers = OrderedDict[str, nn.Module](
            layer0=nn.Linear(1, n, **self.kind), relu0=nn.ReLU(),
            layer1=nn.Linear(n, n, **self.kind), relu1=nn.ReLU(),
            head=nn.Linear(n, 1, **self.kind),
        )  # fmt: skip
        self.module = nn.Sequential(layers)
        gen = generator(seeds.init, "sinusoid")
        start = first_weights(self.module, gen)
        if task.weights == "small":
            for name, value in start.items():
                small = torch.zeros(value.shape, dtype=torch.float64)
                if name.endswith("weight"):
                    nn.init.trunc_normal_(
                        small, std=SMALL, a=-2 * SMALL, b=2 * SMALL, generator=gen
                    )
                start[name] = small.to(**self.kind)
        self.module.load_state_dict(start)
        self.starts(task, start)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """[n, 1]."""
        x = batch["x"]
        for name in ("layer0", "layer1"):
            x = F.linear(x, theta[f"{name}.weight"], theta[f"{name}.bias"]).relu()
        return F.linear(x, theta["head.weight"], theta["head.bias"])

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error on the points given."""
        return (prediction - batch["y"]).square().mean()

    def episode(self, split: str, index: int) -> Episode:
        """A sine of its own. Evaluation episodes are judged on equally spaced points."""
        task, training = self.task, split == "train"
        gen = generator(
            self.seeds.batches if training else self.seeds.evaluation, "sinusoid", split, index
        )
        size, phase = torch.rand(2, generator=gen, dtype=torch.float64)
        amplitude = AMPLITUDES[0] + (AMPLITUDES[1] - AMPLITUDES[0]) * size
        x = REACH * (2 * torch.rand(task.shots, 1, generator=gen, dtype=torch.float64) - 1)
        judged = torch.linspace(-REACH, REACH, task.test_queries, dtype=torch.float64)[:, None]
        if training:
            judged = 2 * torch.rand(task.queries, 1, generator=gen, dtype=torch.float64) - 1
            judged = REACH * judged

        def batch(at: Tensor) -> Batch:
            y = amplitude * (at - math.pi * phase).sin()
            return {"x": at.to(**self.kind), "y": y.to(**self.kind)}

        return Episode(batch(x), batch(judged), index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """mse, which is the outer loss, and best_unadapted: that of the best function of x alone,
        which has seen no point of the sine (3.0057 over all sines)."""
        batch = episode.outer
        loss = float(self.outer_loss(lam, theta, batch))
        return {
            "mse": loss,
            "loss": loss,
            "best_unadapted": float((best_unadapted(batch["x"]) - batch["y"]).square().mean()),
        }


def best_unadapted(x: Tensor) -> Tensor:
    """E[A sin(x - p)] = -(2 / pi) E[A] cos x, of the shape of ``x``."""
    return -(2 / math.pi) * (sum(AMPLITUDES) / 2) * x.cos()
