"""How noisy are the targets? Regression on a sine whose noise and prior are lam.

The smallest problem of Immer et al.: Stochastic Marginal Likelihood Gradients using Neural Tangent
Kernels, ICML 2023, arXiv 2306.03968, with a normal likelihood: inner loss over N rows
1/(2N) sum (f(x) - y)^2 / s^2 and 1/(2N) delta |theta|^2, with log s and log delta learned. The
noise that was drawn is known. ``validation`` as in :mod:`metabench.tasks.layerwise_prior`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Evidence
from metabench.contract.method import Positive
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .data.left_over import lacks_kept
from .families.images.bayesian_images import NO_VALIDATION

Count = Annotated[int, Field(ge=1)]


@task("noise_level")
@dataclass(frozen=True)
class NoiseLevel(Task):
    """The noise of a regression's targets, and the prior of its weights; the noise is known."""

    rows: Annotated[int, Field(ge=10)] = 100
    """Rows to learn from, those for validation included."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """The part of them that is cut off to judge lam by."""
    noise: Positive = 0.2
    """Standard deviation of the targets about the sine."""
    first_noise: Positive = 1.0
    width: Count = 10
    """Units of the one tanh layer."""

    metric: ClassVar[str] = "noise_gap"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("noise_gap", "noise", "loss")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """Likelihood and prior always; a validation loss where there are rows for one."""
        own = {"second_order", "lam_in_inner_loss", "best_response", "prediction", "small_lam"}
        own |= {"full_batch", "example_losses", "evidence"}
        return frozenset(own | ({*NO_VALIDATION} if self.validation else set()))

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        return {} if self.validation else NO_VALIDATION

    @property
    def lacks_selection(self) -> str | None:
        """As many rows as validate are drawn for it."""
        held = round(self.validation * self.rows)
        return lacks_kept(held, held)

    def build(self, seeds: Seeds, device: torch.device) -> NoiseLevelProblem:
        """Draw the rows."""
        return NoiseLevelProblem(self, seeds, device)


class NoiseLevelProblem(Problem):
    """``parts``: split to "x" and "y" [n, 1], float64; without validation rows the part "valid" is
    the training part. theta: weights and biases of ``hidden`` and ``head``. lam: ``log_noise`` []
    (of the standard deviation) and ``log_precision`` []."""

    carried = True
    hypers = (
        Hyper("log_noise", (), -5.0, 2.0, meaning="log of the noise's standard deviation"),
        Hyper("log_precision", (), -8.0, 8.0, meaning="log of one over the prior variance"),
    )

    def __init__(self, task: NoiseLevel, seeds: Seeds, device: torch.device) -> None:
        self.task = task
        gen = generator(seeds.data, "noise_level")
        held = round(task.validation * task.rows)
        sizes = {"train": task.rows - held, "valid": held, "test": 1000}
        sizes |= {"selection": held} if held else {}
        self.parts: dict[str, Batch] = {}
        for split, n in sizes.items():
            x = 6 * torch.rand(n, 1, generator=gen, dtype=torch.float64) - 3
            y = x.sin() + task.noise * torch.randn(n, 1, generator=gen, dtype=torch.float64)
            self.parts[split] = {"x": x.to(device), "y": y.to(device)}
        if not held:
            self.parts["valid"] = self.parts["train"]
        self.example_count = task.rows - held
        shapes = {"hidden.weight": (task.width, 1), "hidden.bias": (task.width,)}
        shapes |= {"head.weight": (1, task.width), "head.bias": (1,)}
        gen = generator(seeds.init, "noise_level")
        self.fresh = {
            k: (torch.randn(s, generator=gen, dtype=torch.float64) * s[-1] ** -0.5).to(device)
            for k, s in shapes.items()
        }

    def init_outer(self) -> Params:
        """The first noise, and a precision of 1."""
        zero = self.fresh["head.bias"].new_zeros(())
        return {"log_noise": zero + math.log(self.task.first_noise), "log_precision": zero.clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        return {k: v.clone() for k, v in self.fresh.items()}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """[n, 1]."""
        hidden = torch.tanh(batch["x"] @ theta["hidden.weight"].t() + theta["hidden.bias"])
        return hidden @ theta["head.weight"].t() + theta["head.bias"]

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean of (f - y)^2 / (2 s^2), and delta |theta|^2 / (2N)."""
        penalty = self.diagonal_penalty(lam)
        prior = torch.stack([(penalty[k] * theta[k].square()).sum() for k in penalty]).sum()
        return self.fit(lam, prediction, batch).mean() + 0.5 * prior

    def fit(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """(f - y)^2 / (2 s^2) of each row [n]."""
        gaps = (prediction - batch["y"]).square().sum(1)
        return 0.5 * gaps * (-2 * lam["log_noise"]).exp()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same of the batch's predictions."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def diagonal_penalty(self, lam: Params) -> Params:
        """delta / N."""
        return {k: v / self.example_count for k, v in self.evidence(lam).precision.items()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean of (f - y)^2 / (2 s^2)."""
        return self.example_losses(lam, theta, batch).mean()

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """(f - y)^2 / (2 s^2) of each row."""
        return self.fit(lam, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Minus the mean log likelihood: log s counts here."""
        log = lam["log_noise"] + 0.5 * math.log(2 * math.pi)
        return self.unpenalised_loss(lam, theta, batch) + log

    def evidence(self, lam: Params) -> Evidence:
        """Normal targets of variance s^2, and one precision."""
        precision = lam["log_precision"].exp()
        return Evidence(dict.fromkeys(self.fresh, precision), (2 * lam["log_noise"]).exp())

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training rows."""
        return {k: v[indices] for k, v in self.parts["train"].items()}

    def episode(self, split: str, index: int) -> Episode:
        """All training rows; the validation rows to judge by, or the test rows for "test"."""
        outer = "valid" if split == "train" else split
        return Episode(self.parts["train"], self.parts[outer], index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """noise, learned; noise_gap, how far its log is from the drawn one's; loss, minus the mean
        log likelihood."""
        log = float(lam["log_noise"])
        return {
            "noise_gap": abs(log - math.log(self.task.noise)),
            "noise": math.exp(log),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
        }
