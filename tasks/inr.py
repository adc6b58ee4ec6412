"""Implicit neural representations: the start of a network that becomes an image in a few steps.

Sitzmann, Martel, Bergman, Lindell, Wetzstein: Implicit Neural Representations with Periodic
Activation Functions, NeurIPS 2020, arXiv 2006.09661 (SIREN: layers sin(omega (W x + b)), and their
first weights); starts by MAML as in Tancik et al.: Learned Initializations for Optimizing
Coordinate-Based Neural Representations, CVPR 2021, arXiv 2012.02189. theta maps a pixel's place to
its grey value, both losses are the mean squared error over all pixels of one image. Image sizes and
networks are this project's own, and small.
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
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import scikit_image
from .data.images import enough, load, resized
from .families.episodes.learned_start import LearnedStart, LearnedStartProblem
from .families.images.denoising import psnr

Count = Annotated[int, Field(ge=1)]
ZOOM = 4
"""Photographs are this many times as large as what is cut out of them."""
HELD = 2
"""Photographs for validation, and as many for the test."""


@task("inr")
@dataclass(frozen=True)
class INR(LearnedStart):
    """Implicit neural representations (Sitzmann 2020): lam = the start of a SIREN of one image."""

    dataset: Literal["mnist", "fashion_mnist", "cifar10", "photographs"] = "mnist"
    """"photographs": parts of those of scikit-image, cut at random places; test parts are of
    photographs of their own."""
    source: Literal["auto", "metabench", "torchvision", "debian"] = "auto"
    """The layout to read. CIFAR-10 must be told: it comes in two sizes."""
    size: Annotated[int, Field(ge=2, le=128)] = 16
    """Pixels a side."""
    width: Count = 32
    """Units of a sine layer."""
    depth: Count = 2
    """Sine layers; a linear head follows."""
    omega: Annotated[float, Field(gt=0)] = 30.0
    """Frequency of the sines."""
    meta_batch: Count = 4
    """Images an outer step."""
    n_train: Count = 5000
    """Images to learn from (not of photographs)."""
    n_valid: Count = 500
    n_test: Count = 1000
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "psnr"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = ("psnr", "mse", "loss", "psnr_constant")

    def __post_init__(self) -> None:
        if self.dataset == "cifar10" and self.source == "auto":
            raise ValueError(
                "CIFAR-10 comes in two sizes: set source to torchvision (50,000 training images) "
                "or metabench (8,000)"
            )

    @property
    def data(self) -> tuple[str, ...]:
        """The one that is set; photographs come with a package."""
        return () if self.dataset == "photographs" else (self.dataset,)

    @property
    def packages(self) -> tuple[str, ...]:
        """scikit-image for photographs."""
        return (scikit_image.PACKAGE,) if self.dataset == "photographs" else ()

    def images(self, gen: torch.Generator) -> dict[str, Tensor]:
        """Split to grey images [n, height, width] in 0..1. Raises DataMissing."""
        if self.dataset == "photographs":
            x = scikit_image.load(ZOOM * self.size)
            x = x[torch.randperm(len(x), generator=gen)]
            return {"test": x[:HELD], "valid": x[HELD : 2 * HELD], "train": x[2 * HELD :]}
        found = load(self.dataset, None if self.source == "auto" else self.source)
        (x, _), (test, _) = found["train"], found["test"]
        wanted = self.n_train + self.n_valid
        enough("inr", self.dataset, "n_train + n_valid", wanted, len(x))
        enough("inr", self.dataset, "n_test", self.n_test, len(test))
        if self.size > x.shape[-1]:
            raise SettingError(
                f"size is {self.size}; {self.dataset} has {x.shape[-1]} pixels a side"
            )
        chosen = x[torch.randperm(len(x), generator=gen)[:wanted]]
        parts = {
            "train": chosen[: self.n_train],
            "valid": chosen[self.n_train :],
            "test": test[: self.n_test],
        }
        return {k: resized(v, self.size).mean(1).clamp(0, 1) for k, v in parts.items()}

    def build(self, seeds: Seeds, device: torch.device) -> INRProblem:
        """Cut the parts."""
        return INRProblem(self, seeds, device, self.images(generator(seeds.data, "inr")))


class INRProblem(LearnedStartProblem):
    """Batches: ``image`` [1, size, size], grey values in 0..1. ``places`` [size * size, 2]: those
    of its pixels in -1..1, row by row. lam and theta: weights and biases of ``layer0`` ... and
    ``head``."""

    task: INR
    module: nn.Sequential

    def __init__(
        self, task: INR, seeds: Seeds, device: torch.device, images: dict[str, Tensor]
    ) -> None:
        """``images``: split to grey images [n, height, width], of ``size`` pixels or more."""
        self.seeds, self.images = seeds, images
        self.kind = {"dtype": getattr(torch, task.dtype), "device": device}
        self.episodes_per_step = task.meta_batch
        side = torch.linspace(-1, 1, task.size, dtype=torch.float64)
        self.places = torch.cartesian_prod(side, side).to(**self.kind)
        layers = OrderedDict[str, nn.Module]()
        for i in range(task.depth):
            layers[f"layer{i}"] = nn.Linear(task.width if i else 2, task.width, **self.kind)
            layers[f"sine{i}"] = Sine(task.omega)
        layers["head"] = nn.Linear(task.width, 1, **self.kind)
        self.module = nn.Sequential(layers)
        start = self.first_weights(task, generator(seeds.init, "inr"))
        self.module.load_state_dict(start)
        self.starts(task, start)

    def first_weights(self, task: INR, gen: torch.Generator) -> Params:
        """Uniform within 1 / inputs in the first layer, within sqrt(6 / inputs) / omega after it,
        so that omega (W x + b) has variance 1; biases within 1 / sqrt(inputs), as torch's."""
        out, inputs = {}, 2
        for name, value in self.module.named_parameters():
            if name.endswith("weight"):
                inputs = value.shape[1]
                wide = math.sqrt(6 / inputs) / task.omega
                bound = 1 / inputs if name == "layer0.weight" else wide
            else:
                bound = inputs**-0.5
            drawn = torch.rand(value.shape, generator=gen, dtype=torch.float64)
            out[name] = (bound * (2 * drawn - 1)).to(**self.kind)
        return out

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Grey values [1, size, size]."""
        x = self.places
        for i in range(self.task.depth):
            x = F.linear(x, theta[f"layer{i}.weight"], theta[f"layer{i}.bias"])
            x = (self.task.omega * x).sin()
        return F.linear(x, theta["head.weight"], theta["head.bias"]).reshape(batch["image"].shape)

    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over all pixels."""
        return (prediction - batch["image"]).square().mean()

    def episode(self, split: str, index: int) -> Episode:
        """An image: in training any, else the one of this number, or of photographs any part."""
        stream = self.seeds.batches if split == "train" else self.seeds.evaluation
        gen, images, n = generator(stream, "inr", split, index), self.images[split], self.task.size
        row, top, left = (int(i) for i in torch.randint(2**31, (3,), generator=gen))
        if self.count(split) is not None:
            row = index
        image = images[row % len(images)]
        top, left = top % (image.shape[0] - n + 1), left % (image.shape[1] - n + 1)
        batch = {"image": image[None, top : top + n, left : left + n].to(**self.kind)}
        return Episode(batch, batch, index)

    def count(self, split: str) -> int | None:
        """Images of the split; training, and parts of photographs, never end."""
        endless = split == "train" or self.task.dataset == "photographs"
        return None if endless else len(self.images[split])

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """psnr (dB) of the fitted image, its mse, the outer loss, and the psnr of the image's mean
        everywhere."""
        y = episode.outer["image"]
        made = self.predict(lam, theta, episode.outer)
        # An image of one grey value is met exactly by its mean: the least error that is told apart.
        flat = (y - y.mean()).square().mean().clamp(min=1e-12)
        return {
            "psnr": psnr(made, y),
            "mse": float((made - y).square().mean()),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "psnr_constant": float(-10 * flat.log10()),
        }

    def pictures(self, lam: Params, theta: Params, episode: Episode) -> Params:
        """The image, what the start draws, and what the fitted network does."""
        batch = episode.outer
        found = {"image": batch["image"], "fitted": self.predict(lam, theta, batch)}
        found["start"] = self.predict(lam, self.init_inner(lam, episode), batch)
        return {k: v[0].clamp(0, 1) for k, v in found.items()}


class Sine(nn.Module):
    """x -> sin(omega x)."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return (self.omega * x).sin()
