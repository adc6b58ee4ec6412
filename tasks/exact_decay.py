"""Tuning weight decay with a known hypergradient: how good is a method's, on real images?

Multinomial logistic regression, or an MLP with one tanh layer, on a few small MNIST images, all in
float64. Inner loss: mean cross-entropy on the training images and 1/2 sum_i e^{lam_i} w_i^2 (the
factor 1/2 is this project's); outer loss: mean cross-entropy on the validation images.

The metrics judge the first outer step. Of a method that takes one step of plain gradient descent
with step size 1, lam has then moved by minus the hypergradient that its own code has found, and
that is held against :func:`metabench.hypergradients.reference.exact` at the first lam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task
from metabench.hypergradients import reference

from .data.images import CLASSES, load

DECAY = "log_decay."
"""Prefix of a decay's name before that of the weights, or of the layer, that it is for."""

Count = Annotated[int, Field(ge=1)]
Part = Annotated[int, Field(ge=1, le=10000)]
Images = dict[str, tuple[Tensor, Tensor]]


@task("exact_decay")
@dataclass(frozen=True)
class ExactDecay(Task):
    """Weight decay on small MNIST images, with the exact hypergradient to compare with."""

    network: Literal["linear", "mlp"] = "linear"
    hidden: Count = 10
    """Units of the MLP's one tanh layer."""
    shrink: Annotated[int, Field(ge=1, le=28)] = 4
    """Images are averaged over squares of this many pixels a side: 4 leaves 7x7."""
    n_train: Part = 100
    n_valid: Part = 100
    decays: Literal["unit", "weight"] = "unit"
    """A log decay for every output unit of every layer (its bias included), or every weight."""
    first_log_decay: float = -4.0
    spread: Annotated[float, Field(ge=0)] = 0.0
    """Deviation of the first lam's entries from that."""
    start: Literal["fresh", "warm"] = "fresh"
    """Where theta starts: random weights; or the minimiser for a lam nearby, as it is from the
    second outer step of a run on."""
    nearby: Annotated[float, Field(ge=0)] = 0.3
    """Deviation of that lam from the first lam."""
    source: Literal["auto", "metabench", "torchvision"] = "auto"

    metric: ClassVar[str] = "relative_error"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    lacks_selection: ClassVar[str] = "it asks how near a method gets to the least validation loss"
    data: ClassVar[tuple[str, ...]] = ("mnist",)

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        return {
            "small_lam": "a decay for every weight is not few scalars (decays = 'weight')",
            "search_space": "the decays have no bounds to search between",
        }

    @property
    def offers(self) -> frozenset[str]:
        """All that a smooth inner problem with one minimum has; few decays where a unit has one."""
        own = {"lam_in_inner_loss", "best_response", "prediction", "example_losses"}
        return GRADIENTS | (own | {"small_lam"} if self.decays == "unit" else own)

    def build(self, seeds: Seeds, device: torch.device) -> ExactDecayProblem:
        """Draw the parts and the first weights."""
        images = load("mnist", None if self.source == "auto" else self.source)
        return ExactDecayProblem(self, seeds, device, images)


class ExactDecayProblem(Problem):
    """``parts``: split to images "x" float64 [n, pixels] in 0..1 and labels "y" [n]. theta: weights
    and biases of ``head`` and, for the MLP, ``hidden``. lam: log decays, under ``log_decay.`` and
    the name of the weights or the layer."""

    carried = True

    def __init__(
        self, task: ExactDecay, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: "train" to images [n, 1, height, width] and labels [n]."""
        self.task, self.seeds, self.example_count = task, seeds, task.n_train
        x, y = images["train"]
        sizes = [task.n_train, task.n_valid]
        order = torch.randperm(len(x), generator=generator(seeds.data, "exact_decay"))
        self.parts: dict[str, Batch] = {}
        for split, chosen in zip(("train", "valid"), order[: sum(sizes)].split(sizes), strict=True):
            small = F.avg_pool2d(x[chosen].double(), task.shrink)
            self.parts[split] = {"x": small.flatten(1).to(device), "y": y[chosen].to(device)}
        self.fresh = self._fresh(self.parts["train"]["x"].shape[1], device)
        self.begin = self._first()
        self.hypers = tuple(
            Hyper(k, tuple(v.shape), meaning="log of a decay") for k, v in self.init_outer().items()
        )

    def _fresh(self, pixels: int, device: torch.device) -> Params:
        """Uniform within 1 / sqrt(inputs), as torch's linear layers start."""
        gen = generator(self.seeds.init, "exact_decay")
        layers = [("head", pixels, CLASSES)]
        if self.task.network == "mlp":
            hidden = self.task.hidden
            layers = [("hidden", pixels, hidden), ("head", hidden, CLASSES)]
        out: Params = {}
        for name, inputs, units in layers:
            for kind, shape in (("weight", (units, inputs)), ("bias", (units,))):
                drawn = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
                out[f"{name}.{kind}"] = (drawn / inputs**0.5).to(device)
        return out

    def init_outer(self) -> Params:
        """A log decay for every unit or weight."""
        like = {DECAY + k: v for k, v in self.fresh.items()}
        if self.task.decays == "unit":
            like = {k.removesuffix(".bias"): v for k, v in like.items() if k.endswith(".bias")}
        first = {k: torch.full_like(v, self.task.first_log_decay) for k, v in like.items()}
        return self._shifted(first, "spread", self.task.spread)

    def _shifted(self, lam: Params, address: str, size: float) -> Params:
        gen = generator(self.seeds.init, address)
        return {
            k: v + size * torch.randn(v.shape, generator=gen, dtype=v.dtype).to(v)
            for k, v in lam.items()
        }

    def _first(self) -> Params:
        if self.task.start == "fresh":
            return self.fresh
        lam = self._shifted(self.init_outer(), "nearby", self.task.nearby)
        return reference.exact(self, lam, self.fresh, self.episode("train", 0)).theta

    @cached_property
    def known(self) -> reference.Known:
        """Hypergradient and inner minimiser at the first lam, from where theta starts."""
        return reference.exact(self, self.init_outer(), self.begin, self.episode("train", 0))

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        return {k: v.clone() for k, v in self.begin.items()}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10]."""
        x = batch["x"]
        if self.task.network == "mlp":
            x = F.linear(x, theta["hidden.weight"], theta["hidden.bias"]).tanh()
        return F.linear(x, theta["head.weight"], theta["head.bias"])

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^lam, in the names of theta."""
        out: Params = {}
        for name in self.fresh:
            if self.task.decays == "weight":
                out[name] = lam[DECAY + name].exp()
            else:
                layer, _, kind = name.partition(".")
                c = lam[DECAY + layer].exp()
                out[name] = c[:, None] if kind == "weight" else c
        return out

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.predict(lam, theta, batch), batch["y"])

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training images."""
        return {k: v[indices] for k, v in self.parts["train"].items()}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy of each image."""
        return F.cross_entropy(self.predict(lam, theta, batch), batch["y"], reduction="none")

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean cross-entropy of the logits and 1/2 sum e^lam w^2."""
        c = self.diagonal_penalty(lam)
        penalty = torch.stack([(c[k] * theta[k].square()).sum() for k in c]).sum()
        return F.cross_entropy(prediction, batch["y"]) + 0.5 * penalty

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy and 1/2 sum e^lam w^2."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return self.unpenalised_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """All training images, and the validation images to judge by."""
        return Episode(self.parts["train"], self.parts["valid"], index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of lam's first step what :func:`metabench.hypergradients.reference.compare` says;
        ``inner_error``, how far theta is from the minimiser, relative; the outer ``loss``."""
        first = self.init_outer()
        step = {k: first[k] - lam[k] for k in first}
        end = autodiff.flatten(self.known.theta)
        return {
            **reference.compare(step, self.known.grad),
            "inner_error": float((autodiff.flatten(theta) - end).norm() / end.norm()),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
        }
