"""What the tasks of removing noise from photographs share: images, noise, losses, curvature.

Salehi, Mukherjee, Roberts, Ehrhardt: An Adaptively Inexact First-Order Method for Bilevel
Optimization with Application to Hyperparameter Learning, SIAM J. Math. Data Sci. 7(3), 2025, arXiv
2308.10098. Every image is an episode: of a clean x* the solver sees y = x* + noise and minimises

    G(x) = 1/2 |x - y|^2 + R(lam, x),    R convex and smooth in x;    F(x) = 1/2 |x - x*|^2.

Differs from the authors' code, which joins all images in one inner problem: each has its own inner
solution here, and the mean over images is the mean over episodes. A joint problem would be strongly
convex with 1 / images only. Test images are others than the training images.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.method import Positive
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task

from ...data import scikit_image

Images = Annotated[int, Field(ge=1, lt=len(scikit_image.PHOTOGRAPHS))]


@dataclass(frozen=True)
class Denoising(Task):
    """Settings of both: which photographs, how large, how much noise."""

    size: Annotated[int, Field(ge=4, le=512)] = 64
    """Pixels a side."""
    n_train: Images = 6
    n_test: Images = 6
    noise: Positive = 0.1
    """Standard deviation, of pixels in 0..1."""
    dtype: Literal["float32", "float64"] = "float64"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    lacks_selection: ClassVar[str] = "every photograph is learned on or tested on"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "psnr", "psnr_noisy")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = (scikit_image.PACKAGE,)
    lacks: ClassVar[dict[str, str]] = {
        "best_response": "every image is an inner problem of its own"
    }

    def __post_init__(self) -> None:
        there = len(scikit_image.PHOTOGRAPHS)
        if self.n_train + self.n_test > there:
            raise ValueError(
                f"n_train {self.n_train} and n_test {self.n_test} are more than the {there} "
                f"photographs: with {self.n_train}, n_test is at most {there - self.n_train}"
            )

    @property
    def offers(self) -> frozenset[str]:
        """Many strongly convex problems with derivatives and bounds."""
        return GRADIENTS | {"lam_in_inner_loss", "episodes", "full_batch", "strongly_convex"}


class DenoisingProblem(Problem):
    """theta: "image" [size, size]. Batches: "noisy" [size, size] within, "clean" without.

    "valid" is the training images once more, with their noise: what the outer level minimises. The
    data seed chooses who trains and who tests, and the noise.
    """

    def __init__(self, task: Denoising, seeds: Seeds, device: torch.device) -> None:
        self.task, m = task, task.n_train
        self.episodes_per_step = m
        place = {"dtype": getattr(torch, task.dtype), "device": device}
        gen = generator(seeds.data, "photographs")
        images = scikit_image.load(task.size)
        images = images[torch.randperm(len(images), generator=gen)]
        noise = torch.randn(images.shape, generator=gen, dtype=torch.float64)
        self.clean = images.to(**place)
        self.noisy = (images + task.noise * noise).to(**place)
        self.rows = {"train": range(m), "valid": range(m), "test": range(m, m + task.n_test)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The noisy image."""
        return {"image": episode.batch(0)["noisy"].clone()}

    @abstractmethod
    def roughness(self, lam: Params, image: Tensor) -> Tensor:
        """R(lam, x) of an image [size, size]: a scalar."""

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |x - y|^2 + R(lam, x)."""
        x = theta["image"]
        return 0.5 * (x - batch["noisy"]).square().sum() + self.roughness(lam, x)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |x - x*|^2."""
        return 0.5 * (theta["image"] - batch["clean"]).square().sum()

    def episode(self, split: str, index: int) -> Episode:
        """One image; training goes round."""
        rows = self.rows[split]
        row = rows[index % len(rows)]
        return Episode({"noisy": self.noisy[row]}, {"clean": self.clean[row]}, index)

    def count(self, split: str) -> int | None:
        """Images of the split."""
        return len(self.rows[split])

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The outer loss, and the peak signal-to-noise ratio (dB) of the image and of the noisy."""
        clean = episode.outer["clean"]
        return {
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "psnr": psnr(theta["image"], clean),
            "psnr_noisy": psnr(episode.batch(0)["noisy"], clean),
        }

    def pictures(self, lam: Params, theta: Params, episode: Episode) -> Params:
        """The clean, the noisy and the denoised image."""
        own = {"clean": episode.outer["clean"], **episode.batch(0)}
        return {**own, "denoised": theta["image"]}


BEND_CHANGE = 48 / (25 * math.sqrt(5))
"""The most of scale^2 |phi'''|, phi that of :func:`smooth_absolute`: at u = scale / 2."""


def smooth_absolute(u: Tensor, scale: Tensor) -> Tensor:
    """phi(u) = sqrt(u^2 + scale^2): convex, with 0 <= phi'' <= 1 / scale."""
    return (u.square() + scale.square()).sqrt()


def slopes(u: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi'(u), its derivative in log scale, and phi''(u), phi that of :func:`smooth_absolute`.

    The slope of each of the first two in u is at most 1 / scale, and of both, as a vector,
    at most sqrt(2) / scale.
    """
    r = smooth_absolute(u, scale)
    bend = (scale / r).square() / r
    return u / r, -u * bend, bend


def psnr(image: Tensor, clean: Tensor) -> float:
    """-10 log10 of the mean squared error, in dB, for pixels in 0..1."""
    return float(-10 * (image - clean).square().mean().log10())
