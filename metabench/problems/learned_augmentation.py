"""Three augmentations whose lam is learned: ranges, RandAugment's magnitude, a network.

Ranges: the largest rotation, shift, magnification, brightness and cutout, each number drawn evenly
up to it (MacKay et al.: Self-Tuning Networks, ICLR 2019). RandAugment (Cubuk et al. 2020, arXiv
1909.13719): a number of operations drawn evenly, all at one magnitude; their largest strengths are
this project's. Network: a spatial transformer (image and noise to an affine map) and a residual
network of pixels (image and a noise channel), after Lorraine, Vicol, Duvenaud, AISTATS 2020.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Hyper, Params
from metabench.problems.augment import Strengths, augment, warped

FIRST = {
    "none": dict.fromkeys(("rotation", "shift", "scale", "brightness", "cutout"), 0.0),
    "small": {"rotation": 5.0, "shift": 0.02, "scale": 0.02, "brightness": 0.05, "cutout": 0.1},
    "hand": {"rotation": 15.0, "shift": 0.1, "scale": 0.1, "brightness": 0.2, "cutout": 0.25},
}
# In lam a range is a part of the most, so that one step size suits all.
MOST = {"rotation": 90.0, "shift": 0.3, "scale": 0.5, "brightness": 0.9, "cutout": 0.6}
MEANING = {
    "rotation": "largest rotation, in quarter turns",
    "shift": "largest shift, in 0.3 sides",
    "scale": "largest log of the magnification, in halves",
    "brightness": "largest part by which pixels grow or shrink, in 0.9",
    "cutout": "largest side of the erased square, in 0.6 sides",
}
TUNED = {
    "rotation": ("rotation",),
    "geometry": ("rotation", "shift", "scale"),
    "all": tuple(MEANING),
}
STRONGEST = (30.0, 0.3, 0.3, 0.5, 0.9, 0.5)
"""RandAugment's strengths at magnitude 1, in the order of :class:`Strengths`."""
CELLS = 4  # a transformer sees the image as so many squares a side


class LearnedAugmentation(ABC):
    """What lam is, and how a batch of images is augmented by it.

    ``offers`` and ``lacks`` are what a task with such a lam adds to its own.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"per_example_lam", "small_lam", "search_space"})
    lacks: ClassVar[dict[str, str]] = {}
    hypers: tuple[Hyper, ...] = ()

    @abstractmethod
    def first(self, gen: torch.Generator) -> Params:
        """The first lam, float64."""

    @abstractmethod
    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """The random numbers that augmenting ``x`` [n, channels, side, side] takes, float64 on the
        generator's device."""

    @abstractmethod
    def augmented(self, lam: Params, batch: Batch) -> Tensor:
        """Images [n, channels, side, side] of the batch's "x" and random numbers."""

    @abstractmethod
    def rotation(self, lam: Params, batch: Batch) -> float:
        """Degrees: the range of learned angles; without one, that of even angles with the same
        deviation as the batch's."""


class Sampled(LearnedAugmentation):
    """Images augmented by ``strengths`` that are drawn from ``way`` [n, 6], even in -1..1, and
    ``corner`` [n, 2] in 0..1."""

    @abstractmethod
    def strengths(self, lam: Params, batch: Batch) -> Strengths:
        """What is done to each image of the batch."""

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """``way`` and ``corner``."""
        return {
            "way": 2 * torch.rand(len(x), 6, generator=gen, dtype=torch.float64) - 1,
            "corner": torch.rand(len(x), 2, generator=gen, dtype=torch.float64),
        }

    def augmented(self, lam: Params, batch: Batch) -> Tensor:
        """Images [n, channels, side, side]."""
        return augment(batch["x"], self.strengths(lam, batch), batch["corner"])


class Ranges(Sampled):
    """lam: the ranges that ``tune`` names, [] each, in parts of ``MOST``; the others are 0.
    ``first`` names the first ones."""

    def __init__(self, tune: str, first: str) -> None:
        self.start = {k: FIRST[first][k] / MOST[k] for k in TUNED[tune]}
        self.hypers = tuple(Hyper(k, (), 0.0, 1.0, meaning=MEANING[k]) for k in self.start)

    def first(self, gen: torch.Generator) -> Params:
        """The hand-made ranges."""
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in self.start.items()}

    def strengths(self, lam: Params, batch: Batch) -> Strengths:
        """Even up to each range."""
        way = batch["way"]
        zero = way.new_zeros(())
        far = {k: most * lam.get(k, zero) for k, most in MOST.items()}
        return Strengths(
            way[:, 0] * far["rotation"],
            way[:, 1] * far["shift"],
            way[:, 2] * far["shift"],
            way[:, 3] * far["scale"],
            way[:, 4] * far["brightness"],
            way[:, 5].abs() * far["cutout"],
        )

    def rotation(self, lam: Params, batch: Batch) -> float:
        """The range itself."""
        return MOST["rotation"] * float(lam["rotation"])


class RandAugment(Sampled):
    """lam: ``magnitude`` []. Each image gets ``operations`` operations, drawn with replacement:
    ``chosen`` [n, 6], how often each one is."""

    hypers = (Hyper("magnitude", (), 0.0, 1.0, meaning="of every operation"),)

    def __init__(self, magnitude: float, operations: int) -> None:
        self.magnitude, self.operations = magnitude, operations

    def first(self, gen: torch.Generator) -> Params:
        """The magnitude."""
        return {"magnitude": torch.tensor(self.magnitude, dtype=torch.float64)}

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """``way``, ``corner`` and ``chosen``."""
        out = super().numbers(x, gen)
        # The seventh operation does nothing.
        drawn = torch.randint(7, (len(x), self.operations), generator=gen)
        return out | {"chosen": F.one_hot(drawn, 7).sum(1)[:, :6].double()}

    def strengths(self, lam: Params, batch: Batch) -> Strengths:
        """By the sign of its number an operation goes one way or the other, at full strength."""
        way = batch["way"]
        strongest = torch.tensor(STRONGEST, dtype=way.dtype, device=way.device)
        full = batch["chosen"] * way.sign() * strongest * lam["magnitude"][..., None]
        angle, right, down, scale, brightness, cut = full.unbind(1)
        return Strengths(angle, right, down, scale, brightness, cut.abs())

    def rotation(self, lam: Params, batch: Batch) -> float:
        """By the deviation of the batch's angles."""
        return even_range(self.strengths(lam, batch).rotation)


class AugmentingNetwork(LearnedAugmentation):
    """lam: weights and biases of ``transformer`` (one hidden layer) and ``residual`` (one hidden
    convolution). Batches have ``noise`` [n, noises] and ``grain`` [n, 1, side, side], normal.

    ``image``: channels, height, width; ``hidden`` units and ``filters`` of the hidden layers.
    """

    offers: ClassVar[frozenset[str]] = frozenset()
    lacks: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("small_lam", "search_space"), "lam is a whole network: too many scalars to search in"
        ),
        "per_example_lam": "one network augments all examples",
    }

    def __init__(self, image: tuple[int, int, int], noises: int, hidden: int, filters: int) -> None:
        self.noises = noises
        c, h, w = image
        self.window = max(1, h // CELLS), max(1, w // CELLS)
        seen = c * (h // self.window[0]) * (w // self.window[1]) + noises
        self.shapes = {
            "transformer.hidden": (hidden, seen),
            "transformer.end": (6, hidden),
            "residual.hidden": (filters, c + 1, 3, 3),
            "residual.end": (c, filters, 3, 3),
        }

    def first(self, gen: torch.Generator) -> Params:
        """Uniform within 1 / sqrt(inputs), the last layer of each part a tenth of that; its biases
        are 0, so that it is the identity on average."""
        out = {}
        for name, shape in self.shapes.items():
            weight = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
            bound = weight[0].numel() ** -0.5
            out[f"{name}.weight"] = weight * (0.1 * bound if name.endswith("end") else bound)
            out[f"{name}.bias"] = torch.zeros(shape[0], dtype=torch.float64)
        return out

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """``noise`` and ``grain``."""
        n, _, h, w = x.shape
        return {
            "noise": torch.randn(n, self.noises, generator=gen, dtype=torch.float64),
            "grain": torch.randn(n, 1, h, w, generator=gen, dtype=torch.float64),
        }

    def augmented(self, lam: Params, batch: Batch) -> Tensor:
        """Images [n, channels, side, side]: warped, then changed by at most 1 a pixel."""
        x = warped(batch["x"], self.transform(lam, batch))
        both = torch.cat([x, batch["grain"]], 1)
        inner = convolved(lam, "residual.hidden", both).relu()
        return x + convolved(lam, "residual.end", inner).tanh()

    def transform(self, lam: Params, batch: Batch) -> Tensor:
        """The transformer's affine maps [n, 2, 3]: the identity and what it adds, at most 1 each.

        Without a bound, training can end in empty or overexposed images, from which it does not
        recover.
        """
        x = batch["x"]
        seen = F.avg_pool2d(x, self.window).flatten(1)
        z = torch.cat([seen, batch["noise"]], 1)
        z = F.linear(z, lam["transformer.hidden.weight"], lam["transformer.hidden.bias"]).tanh()
        added = F.linear(z, lam["transformer.end.weight"], lam["transformer.end.bias"]).tanh()
        identity = torch.eye(2, 3, dtype=x.dtype, device=x.device)
        return identity + added.view(-1, 2, 3)

    def rotation(self, lam: Params, batch: Batch) -> float:
        """By the deviation of the batch's angles."""
        to = self.transform(lam, batch)
        angle = torch.atan2(to[:, 1, 0] - to[:, 0, 1], to[:, 0, 0] + to[:, 1, 1])
        return even_range(angle.rad2deg())


def even_range(angle: Tensor) -> float:
    """sqrt 3 times the deviation of angles [n]: the range of even ones that have it."""
    return float(3**0.5 * angle.double().square().mean().sqrt())


def convolved(lam: Params, name: str, x: Tensor) -> Tensor:
    """A 3x3 convolution that keeps the size."""
    return F.conv2d(x, lam[f"{name}.weight"], lam[f"{name}.bias"], padding=1)
