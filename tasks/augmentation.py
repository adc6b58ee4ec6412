"""Learning an augmentation: ranges, or every weight of a network that augments.

Network: Lorraine, Vicol, Duvenaud: Optimizing Millions of Hyperparameters by Implicit
Differentiation, AISTATS 2020, section 5.3. Ranges: MacKay et al.: Self-Tuning Networks, ICLR 2019.
Inner loss: mean cross-entropy on augmented training images; outer loss: the same on validation
images as they are. An image is augmented by uniform and normal numbers of its batch.

Forms of lam: "ranges", "network", "randaugment"; see
:mod:`metabench.problems.learned_augmentation`. With method ``fixed`` the first lam is a
baseline: ``first`` "none", a hand-made policy, or RandAugment's magnitude.

``law_rotation`` turns the validation and test images, not the training images, by angles even
between plus and minus that law: the range to be found. Differs from Lorraine: two convolutions and
a transformer for their U-Net, no crops and flips besides, one clean image at test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task
from metabench.problems.augment import Strengths, augment
from metabench.problems.learned_augmentation import (
    AugmentingNetwork,
    LearnedAugmentation,
    RandAugment,
    Ranges,
)

from .data.images import CLASSES, Images, OfImages, shrunk
from .families.images.drawn_images import DrawnImages, cut
from .models.classifier import Classifier, Kind

Count = Annotated[int, Field(ge=1)]
FORMS: dict[str, type[LearnedAugmentation]] = {
    "ranges": Ranges,
    "network": AugmentingNetwork,
    "randaugment": RandAugment,
}


@task("augmentation")
@dataclass(frozen=True)
class Augmentation(OfImages):
    """Learning an augmentation: its ranges, or every weight of a network that augments."""

    form: Literal["ranges", "network", "randaugment"] = "ranges"
    tune: Literal["rotation", "geometry", "all"] = "all"
    """The ranges that lam has; the others are 0."""
    first: Literal["none", "small", "hand"] = "small"
    """First ranges. At "none" a cutout has no slope."""
    magnitude: Annotated[float, Field(ge=0, le=1)] = 0.3
    """First magnitude of form "randaugment"."""
    operations: Count = 2
    """Operations that RandAugment draws for an image."""
    filters: Count = 8
    """Of the residual network's hidden convolution."""
    hidden: Count = 32
    """Units of the spatial transformer's hidden layer."""
    noises: Count = 4
    """Normal numbers that the transformer sees of an image."""
    law_rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Validation and test images are turned by up to so many degrees."""
    network: Kind = "mlp"
    """The classifier: linear, one hidden layer, or two convolutions."""
    width: Count = 64
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 1000
    n_valid: Count = 1000
    n_test: Count = 10000
    batch: Count = 100
    """Images of an inner step, and of the outer loss of an outer step."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss", "rotation", "rotation_gap")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(self.n_train, self.n_valid)
        if self.batch > least:
            raise ValueError(f"batch = {self.batch} of {least} images: take at most {least}")

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives in lam; a few bounded numbers, which can differ by example, or a network."""
        own = {"lam_in_inner_loss", "best_response", "prediction", "head"}
        return GRADIENTS | own | FORMS[self.form].offers

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        own = {"lam_is_initialisation": "lam augments images: it is not the initial value of theta"}
        return own | FORMS[self.form].lacks

    def learned(self, image: tuple[int, int, int]) -> LearnedAugmentation:
        """The form of lam for images of this shape: channels, height, width."""
        if self.form == "network":
            return AugmentingNetwork(image, self.noises, self.hidden, self.filters)
        if self.form == "randaugment":
            return RandAugment(self.magnitude, self.operations)
        return Ranges(self.tune, self.first)

    def build(self, seeds: Seeds, device: torch.device) -> AugmentationProblem:
        """Cut the parts, turn the images by the law. Raises DataMissing, SettingError."""
        return AugmentationProblem(self, seeds, device, self.images())


class AugmentationProblem(DrawnImages):
    """Training batches: ``x`` [n, channels, side, side] in 0..1, ``y`` [n], and the random numbers
    that the form takes. Outer batches ``x`` and ``y`` alone. theta: weights and biases of ``head``,
    ``layer0``, ``layer1``."""

    head = ("head.weight", "head.bias")

    def __init__(
        self, task: Augmentation, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: split to images [n, channels, side, side] and labels [n]; training and
        validation parts are cut from "train", the test part from "test"."""
        self.task, self.seeds, self.device = task, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        self.parts, self.size = self.cut(images), task.batch
        c, h, w = self.parts["train"]["x"].shape[1:]
        try:
            self.model = Classifier(task.network, (c, h, w), task.width, CLASSES)
        except ValueError as error:
            raise SettingError(f"task augmentation: {error}") from None
        self.learned = task.learned((c, h, w))
        self.hypers = self.learned.hypers

    def cut(self, images: Images) -> dict[str, Batch]:
        """The parts, shrunk; validation and test images turned by the law."""
        task, gen = self.task, generator(self.seeds.data, "augmentation")
        sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
        out = {}
        for split, (x, y) in cut("augmentation", images, sizes, gen).items():
            if split != "train" and task.law_rotation:
                x = turned(
                    x,
                    task.law_rotation
                    * (2 * torch.rand(len(x), generator=gen, dtype=torch.float32) - 1),
                )
            x = shrunk(x, task.shrink).to(self.device, self.dtype)
            out[split] = {"x": x, "y": y.to(self.device)}
        return out

    def init_outer(self) -> Params:
        """The first ranges, the magnitude, or a network near the identity."""
        first = self.learned.first(generator(self.seeds.init, "augmentation", "lam"))
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        first = self.model.draw(generator(self.seeds.init, "augmentation"))
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10] of augmented images."""
        return self.model.logits(theta, self.learned.augmented(lam, batch))

    def plain_logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of images as they are."""
        return self.model.logits(theta, x)

    def draw(self, gen: torch.Generator) -> Batch:
        """A training batch with the numbers that its augmentation takes."""
        return self.with_numbers(self.some("train", gen), gen)

    def with_numbers(self, batch: Batch, gen: torch.Generator) -> Batch:
        """The batch and the numbers that its augmentation takes."""
        numbers = self.learned.numbers(batch["x"], gen)
        return batch | {k: v.to(self.device, self.dtype) for k, v in numbers.items()}

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on the part; ``rotation``, the range of learned angles in degrees on
        training images, and how far it is from the law's."""
        batch = self.with_numbers(
            self.parts["train"], generator(self.seeds.evaluation, "augmentation")
        )
        rotation = self.learned.rotation(lam, batch)
        return super().metrics(lam, theta, episode) | {
            "rotation": rotation,
            "rotation_gap": abs(rotation - self.task.law_rotation),
        }


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Images [n, channels, side, side] turned by ``degrees`` [n]."""
    zero = torch.zeros_like(degrees)
    return augment(x, Strengths(degrees, *[zero] * 5), torch.zeros(len(x), 2, dtype=torch.float32))
