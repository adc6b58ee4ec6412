"""Learning an augmentation: ranges, or every weight of a network that augments.

Network: Lorraine, Vicol, Duvenaud: Optimizing Millions of Hyperparameters by Implicit
Differentiation, AISTATS 2020, section 5.3. Ranges: MacKay et al.: Self-Tuning Networks, ICLR 2019.
Inner loss: mean cross-entropy on augmented training images; outer loss: the same on validation
images as they are. An image is augmented by uniform and normal numbers of its batch.

Form "ranges": the largest rotation, shift, magnification, brightness and cutout, each number drawn
evenly up to it. Form "network": a spatial transformer (image and noise to an affine map) and a
residual network of pixels (image and a noise channel). Form "randaugment" (Cubuk et al. 2020,
arXiv 1909.13719): a number of operations drawn evenly from this module's, all at one magnitude,
which is lam; their largest strengths are this project's. With method ``fixed`` the first lam is a
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
from torch.nn import functional as F

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data.images import CLASSES, DrawnProblem, OfImages, shrunk
from .models.augment import Strengths, augment, warped
from .models.classifier import Classifier, Kind

Count = Annotated[int, Field(ge=1)]
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
        if self.form != "network":
            own |= {"per_example_lam", "small_lam", "search_space"}
        return GRADIENTS | own

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        own = {"lam_is_initialisation": "lam augments images: it is not the initial value of theta"}
        if self.form != "network":
            return own
        long = "lam is a whole network: too many scalars to search in"
        return own | {
            **dict.fromkeys(("small_lam", "search_space"), long),
            "per_example_lam": "one network augments all examples",
        }

    def build(self, seeds: Seeds, device: torch.device) -> AugmentationProblem:
        """Cut the parts, turn the images by the law. Raises DataMissing, SettingError."""
        return AugmentationProblem(self, seeds, device, self.images())


class AugmentationProblem(DrawnProblem):
    """Training batches: ``x`` [n, channels, side, side] in 0..1, ``y`` [n], ``way`` [n, 6] even in
    -1..1, ``corner`` [n, 2] in 0..1; for RandAugment ``chosen`` [n, 6], how often each operation
    is; for a network ``noise`` [n, noises] and ``grain`` [n, 1, side, side], normal. Outer batches
    ``x`` and ``y`` alone. theta: weights and biases of ``head``, ``layer0``, ``layer1``."""

    carried = True
    head = ("head.weight", "head.bias")

    def __init__(
        self,
        task: Augmentation,
        seeds: Seeds,
        device: torch.device,
        images: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        """``images``: split to images [n, channels, side, side] and labels [n]; training and
        validation parts are cut from "train", the test part from "test"."""
        self.task, self.seeds, self.device = task, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        self.parts, self.size = self.cut(images), task.batch
        c, h, w = self.image = tuple(self.parts["train"]["x"].shape[1:])
        try:
            self.model = Classifier(task.network, (c, h, w), task.width, CLASSES)
        except ValueError as error:
            raise SettingError(f"task augmentation: {error}") from None
        if task.form == "ranges":
            self.hypers = tuple(
                Hyper(k, (), 0.0, 1.0, meaning=MEANING[k]) for k in TUNED[task.tune]
            )
        elif task.form == "randaugment":
            self.hypers = (Hyper("magnitude", (), 0.0, 1.0, meaning="of every operation"),)

    def cut(self, images: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Batch]:
        """Training and validation part of the shuffled training images; the first test images."""
        task, (x, y), (test_x, test_y) = self.task, images["train"], images["test"]
        wanted = task.n_train + task.n_valid
        if wanted > len(x) or task.n_test > len(test_x):
            raise SettingError(
                f"task augmentation: n_train + n_valid = {wanted} of {len(x)} training images, "
                f"n_test = {task.n_test} of {len(test_x)} test images"
            )
        gen = generator(self.seeds.data, "augmentation")
        train, valid = torch.randperm(len(x), generator=gen)[:wanted].split(
            [task.n_train, task.n_valid]
        )
        chosen = {
            "train": (x[train], y[train]),
            "valid": (x[valid], y[valid]),
            "test": (test_x[: task.n_test], test_y[: task.n_test]),
        }
        out = {}
        for split, (a, b) in chosen.items():
            if split != "train" and task.law_rotation:
                a = turned(a, task.law_rotation * (2 * torch.rand(len(a), generator=gen) - 1))
            out[split] = {
                "x": shrunk(a, task.shrink).to(self.device, self.dtype),
                "y": b.to(self.device),
            }
        return out

    def init_outer(self) -> Params:
        """The first ranges, the magnitude, or a network near the identity."""
        task = self.task
        if task.form == "network":
            first = self.first_network(generator(self.seeds.init, "augmentation", "lam"))
        elif task.form == "randaugment":
            first = {"magnitude": torch.tensor(task.magnitude, dtype=torch.float64)}
        else:
            values = FIRST[task.first]
            first = {
                k: torch.tensor(values[k] / MOST[k], dtype=torch.float64) for k in TUNED[task.tune]
            }
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    def first_network(self, gen: torch.Generator) -> Params:
        """Uniform within 1 / sqrt(inputs), the last layer of each part a tenth of that; its biases
        are 0, so that it is the identity on average."""
        task, (c, h, w) = self.task, self.image
        size = max(1, h // CELLS), max(1, w // CELLS)
        seen = c * (h // size[0]) * (w // size[1]) + task.noises
        shapes = {
            "transformer.hidden": (task.hidden, seen),
            "transformer.end": (6, task.hidden),
            "residual.hidden": (task.filters, c + 1, 3, 3),
            "residual.end": (c, task.filters, 3, 3),
        }
        out = {}
        for name, shape in shapes.items():
            weight = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
            bound = weight[0].numel() ** -0.5
            out[f"{name}.weight"] = weight * (0.1 * bound if name.endswith("end") else bound)
            out[f"{name}.bias"] = torch.zeros(shape[0], dtype=torch.float64)
        return out

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        first = self.model.draw(generator(self.seeds.init, "augmentation"))
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    def augmented(self, lam: Params, batch: Batch) -> Tensor:
        """Images [n, channels, side, side] as the classifier is trained on them."""
        x = batch["x"]
        if self.task.form == "network":
            x = warped(x, self.transform(lam, batch))
            both = torch.cat([x, batch["grain"]], 1)
            inner = convolved(lam, "residual.hidden", both).relu()
            return x + convolved(lam, "residual.end", inner).tanh()
        return augment(x, self.strengths(lam, batch), batch["corner"])

    def strengths(self, lam: Params, batch: Batch) -> Strengths:
        """What is done to each image of the batch."""
        way = batch["way"]
        if self.task.form == "randaugment":
            strongest = torch.tensor(STRONGEST, dtype=way.dtype, device=way.device)
            # By the sign of its number an operation goes one way or the other, at full strength.
            full = batch["chosen"] * way.sign() * strongest * lam["magnitude"][..., None]
            angle, right, down, scale, brightness, cut = full.unbind(1)
            return Strengths(angle, right, down, scale, brightness, cut.abs())
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

    def transform(self, lam: Params, batch: Batch) -> Tensor:
        """The transformer's affine maps [n, 2, 3]: the identity and what it adds, at most 1 each:
        without a bound training can end in empty or glaring images, from which nothing comes back.
        """
        x, (_, h, w) = batch["x"], self.image
        seen = F.avg_pool2d(x, (max(1, h // CELLS), max(1, w // CELLS))).flatten(1)
        z = torch.cat([seen, batch["noise"]], 1)
        z = F.linear(z, lam["transformer.hidden.weight"], lam["transformer.hidden.bias"]).tanh()
        added = F.linear(z, lam["transformer.end.weight"], lam["transformer.end.bias"]).tanh()
        identity = torch.eye(2, 3, dtype=x.dtype, device=x.device)
        return identity + added.view(-1, 2, 3)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10] of augmented images."""
        return self.model.logits(theta, self.augmented(lam, batch))

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction, batch["y"])

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """On augmented images."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """On images as they are: lam enters through theta alone."""
        return F.cross_entropy(self.model.logits(theta, batch["x"]), batch["y"])

    def draw(self, gen: torch.Generator) -> Batch:
        """A training batch with the numbers that its augmentation takes."""
        return self.with_numbers(self.some("train", gen), gen)

    def with_numbers(self, batch: Batch, gen: torch.Generator) -> Batch:
        """The batch and the numbers that its augmentation takes."""
        task, n = self.task, len(batch["y"])
        _, h, w = self.image
        if task.form == "network":
            made = {
                "noise": torch.randn(n, task.noises, generator=gen, dtype=torch.float64),
                "grain": torch.randn(n, 1, h, w, generator=gen, dtype=torch.float64),
            }
        else:
            made = {
                "way": 2 * torch.rand(n, 6, generator=gen, dtype=torch.float64) - 1,
                "corner": torch.rand(n, 2, generator=gen, dtype=torch.float64),
            }
        if task.form == "randaugment":  # the seventh operation does nothing
            drawn = torch.randint(7, (n, task.operations), generator=gen)
            made["chosen"] = F.one_hot(drawn, 7).sum(1)[:, :6].double()
        return batch | {k: v.to(self.device, self.dtype) for k, v in made.items()}

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on the part; ``rotation``, the range of learned angles in degrees (for
        a network and RandAugment of even angles with the same deviation), and how far it is from
        the law's."""
        logits, y = self.model.logits(theta, episode.outer["x"]), episode.outer["y"]
        rotation = self.rotation(lam)
        return {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(F.cross_entropy(logits, y)),
            "rotation": rotation,
            "rotation_gap": abs(rotation - self.task.law_rotation),
        }

    def rotation(self, lam: Params) -> float:
        """Degrees: the range itself, or sqrt 3 times the deviation of angles on training images."""
        if self.task.form == "ranges":
            return MOST["rotation"] * float(lam["rotation"])
        gen = generator(self.seeds.evaluation, "augmentation")
        batch = self.with_numbers(self.parts["train"], gen)
        if self.task.form == "network":
            to = self.transform(lam, batch)
            angle = torch.atan2(to[:, 1, 0] - to[:, 0, 1], to[:, 0, 0] + to[:, 1, 1]).rad2deg()
        else:
            angle = self.strengths(lam, batch).rotation
        return float(3**0.5 * angle.double().square().mean().sqrt())


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Images [n, channels, side, side] turned by ``degrees`` [n]."""
    zero = torch.zeros_like(degrees)
    return augment(x, Strengths(degrees, *[zero] * 5), torch.zeros(len(x), 2))


def convolved(lam: Params, name: str, x: Tensor) -> Tensor:
    """A 3x3 convolution that keeps the size."""
    return F.conv2d(x, lam[f"{name}.weight"], lam[f"{name}.bias"], padding=1)
