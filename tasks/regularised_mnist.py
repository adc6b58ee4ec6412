"""MNIST with few training images: dropout rates and augmentation strengths to be tuned.

After MacKay et al.: Self-Tuning Networks, ICLR 2019, and Bae, Grosse: Delta-STN, NeurIPS 2020,
whose data sets, networks and tuned values are larger. Inner loss: cross-entropy of the regularised
network on training images; outer loss: cross-entropy of the plain network on validation images.

Uniform and normal numbers for masks and augmentations are tensors of the batch, one set an image,
so every image can have a lam of its own. A dropout mask is 1[number >= rate] / (1 - rate), which
has no derivative worth having: the task then offers none in lam. ``masks = "concrete"`` smooths it
(Gal, Hron, Kendall 2017), and leaves out the side of the erased square, a whole number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data.images import CLASSES, Images, load, training_images
from .data.left_over import lacks_kept
from .families.images.drawn_images import DrawnImages, cut

Count = Annotated[int, Field(ge=1)]
SIZE = 28
TEMPERATURE = 0.1  # of concrete masks, as in the authors' code of concrete dropout

RATE = 0.95  # the largest dropout rate
FIRST = {"input_dropout": 0.05, "shift": 0.5, "rotation": 2.0, "noise": 0.05, "cutout": 2.0}
HYPERS = {
    "input_dropout": Hyper("input_dropout", (), 0.0, RATE, meaning="part of the pixels dropped"),
    "shift": Hyper("shift", (), 0.0, 6.0, meaning="largest shift in each direction, pixels"),
    "rotation": Hyper("rotation", (), 0.0, 45.0, meaning="largest rotation, degrees"),
    "noise": Hyper("noise", (), 0.0, 0.5, meaning="standard deviation of the pixels' noise"),
    "cutout": Hyper(
        "cutout", (), choices=tuple(range(15)), meaning="side of the erased square, pixels"
    ),
}


@task("regularised_mnist")
@dataclass(frozen=True)
class RegularisedMNIST(Task):
    """Dropout rates and augmentation strengths of a small network on few MNIST images."""

    network: Literal["mlp", "cnn"] = "mlp"
    """Two hidden layers of ``width``, or two 3x3 convolutions of ``width`` and twice that."""
    width: Count = 64
    tune: Literal["dropout", "augmentation", "all"] = "dropout"
    """What lam holds; the rest is off."""
    first_rate: Annotated[float, Field(ge=0, le=RATE)] = 0.05
    """First value of every dropout rate."""
    masks: Literal["hard", "concrete"] = "hard"
    n_train: Count = 1000
    n_valid: Count = 1000
    n_test: Count = 10000
    batch: Count = 128
    """Images of an inner step, and of the outer loss of an outer step."""
    source: Literal["auto", "metabench", "torchvision"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    data: ClassVar[tuple[str, ...]] = ("mnist",)

    def __post_init__(self) -> None:
        least = min(self.n_train, self.n_valid)
        if self.batch > least:
            raise SettingError(f"batch = {self.batch} of {least} images: take at most {least}")

    @property
    def lacks_selection(self) -> str | None:
        """Images that training and validation leave over are kept for it."""
        left = training_images("mnist", self.source) - self.n_train - self.n_valid
        return lacks_kept(self.n_valid, left)

    @property
    def offers(self) -> frozenset[str]:
        """A bounded lam that differs by example; derivatives in it for concrete masks."""
        own = {"outer_gradient", "best_response", "prediction", "per_example_lam"}
        own |= {"small_lam", "search_space"}
        return frozenset(own | GRADIENTS | {"lam_in_inner_loss"} if self.smooth else own)

    @property
    def smooth(self) -> bool:
        """Whether the inner loss can be differentiated in lam."""
        return self.masks == "concrete"

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        if self.smooth:
            return {}
        why = "dropout masks are zeros and ones here (masks = 'hard'): no derivative in lam"
        return dict.fromkeys(("second_order", "lam_in_inner_loss"), why)

    def build(self, seeds: Seeds, device: torch.device) -> RegularisedMNISTProblem:
        """Cut the parts from the training images. Raises DataMissing, SettingError."""
        images = load("mnist", None if self.source == "auto" else self.source)
        return RegularisedMNISTProblem(self, images, seeds, device)


class RegularisedMNISTProblem(DrawnImages):
    """Training batches: ``x`` [n, 1, 28, 28] in [0, 1], ``y`` [n], uniform ``input`` like ``x`` and
    ``hidden0``, ``hidden1`` [n, *units] for masks, ``move`` [n, 3] and ``corner`` [n, 2] uniform,
    ``grain`` normal like ``x``; outer batches ``x`` and ``y`` alone.

    lam: ``input_dropout`` [], ``hidden_dropout`` [2], and [] each ``shift``, ``rotation``,
    ``noise``, ``cutout``, as far as they are tuned.
    """

    def __init__(
        self,
        task: RegularisedMNIST,
        images: Images,
        seeds: Seeds,
        device: torch.device,
    ) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
        parts = cut("regularised_mnist", images, sizes, generator(seeds.data, "regularised_mnist"))
        self.parts = {
            split: {"x": x.to(device, self.dtype), "y": y.to(device)}
            for split, (x, y) in parts.items()
        }
        self.size = task.batch
        n = task.width
        if task.network == "mlp":
            self.units: tuple[tuple[int, ...], ...] = ((n,), (n,))
            shapes: list[tuple[int, ...]] = [(n, SIZE * SIZE), (n, n), (CLASSES, n)]
        else:
            self.units = ((n, SIZE // 2, SIZE // 2), (2 * n, SIZE // 4, SIZE // 4))
            shapes = [(n, 1, 3, 3), (2 * n, n, 3, 3), (CLASSES, math.prod(self.units[1]))]
        self.shapes = dict(zip(("layer0", "layer1", "head"), shapes, strict=True))
        names: list[str] = []
        if task.tune != "augmentation":
            names += ["input_dropout", "hidden_dropout"]
        if task.tune != "dropout":
            names += ["shift", "rotation", "noise"] + ([] if task.smooth else ["cutout"])
        hidden = Hyper("hidden_dropout", (2,), 0.0, RATE, meaning="part of each layer dropped")
        self.hypers = tuple(HYPERS.get(name, hidden) for name in names)

    def init_outer(self) -> Params:
        """The tuned strengths."""
        first = {**FIRST, "input_dropout": self.task.first_rate}
        return {
            h.name: torch.full(
                h.shape, first.get(h.name, self.task.first_rate),
                dtype=self.dtype, device=self.device,
            )
            for h in self.hypers
        }  # fmt: skip

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Weights and biases of three layers, uniform within 1 / sqrt(inputs)."""
        gen = generator(self.seeds.init, "weights")
        theta: Params = {}
        for name, shape in self.shapes.items():
            bound = math.prod(shape[1:]) ** -0.5
            for kind, of in (("weight", shape), ("bias", shape[:1])):
                drawn = torch.rand(of, generator=gen, dtype=self.dtype)
                theta[f"{name}.{kind}"] = ((2 * drawn - 1) * bound).to(self.device)
        return theta

    def logits(self, theta: Params, x: Tensor, drop: Sequence[Tensor | None]) -> Tensor:
        """[n, 10] of images [n, 1, 28, 28]; ``drop`` multiplies what each hidden layer gives."""
        mlp = self.task.network == "mlp"
        x = x.flatten(1) if mlp else x
        for i, mask in enumerate(drop):
            w, b = theta[f"layer{i}.weight"], theta[f"layer{i}.bias"]
            if mlp:
                x = F.relu(F.linear(x, w, b))
            else:
                x = F.relu(F.max_pool2d(F.conv2d(x, w, b, padding=1), 2))
            x = x if mask is None else x * mask
        return F.linear(x.flatten(1), theta["head.weight"], theta["head.bias"])

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10] of the regularised network."""
        x = self.augmented(lam, batch)
        drop: list[Tensor | None] = [None, None]
        if "input_dropout" in lam:
            x = x * self.mask(batch["input"], lam["input_dropout"])
            rates = lam["hidden_dropout"]
            drop = [self.mask(batch[f"hidden{i}"], rates[..., i]) for i in range(2)]
        return self.logits(theta, x, drop)

    def mask(self, numbers: Tensor, rate: Tensor) -> Tensor:
        """1 / (1 - rate) where a unit stays, 0 where it is dropped; like ``numbers`` [n, ...]."""
        rate = rate.clamp(0.0, RATE).view(-1, *[1] * (numbers.dim() - 1))
        if self.task.smooth:
            numbers = numbers.clamp(1e-4, 1 - 1e-4)
            keep = ((numbers.logit() - rate.logit(eps=1e-4)) / TEMPERATURE).sigmoid()
        else:
            keep = (numbers >= rate).to(self.dtype)
        return keep / (1 - rate)

    def augmented(self, lam: Params, batch: Batch) -> Tensor:
        """Images [n, 1, 28, 28] turned, shifted, with noise and a square erased."""
        x = batch["x"]
        if "shift" not in lam:
            return x
        way = 2 * batch["move"] - 1
        angle = way[:, 0] * lam["rotation"] * (math.pi / 180)
        dx, dy = (way[:, i] * lam["shift"] * (2 / SIZE) for i in (1, 2))
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
        grid = F.affine_grid(rows, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        x = x + lam["noise"].view(-1, 1, 1, 1) * batch["grain"]
        if "cutout" not in lam:
            return x
        side = lam["cutout"].floor().view(-1, 1)
        at = torch.arange(SIZE, dtype=self.dtype, device=self.device)
        first = (batch["corner"] * SIZE).floor()[..., None] - (side / 2).floor()[:, None]
        inside = (at >= first) & (at < first + side[:, None])
        erased = inside[:, 0, :, None] & inside[:, 1, None, :]
        return x * (~erased[:, None]).to(self.dtype)

    def plain_logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of the network without dropout."""
        return self.logits(theta, x, (None, None))

    def draw(self, gen: torch.Generator) -> Batch:
        """A training batch with the numbers that its regularisers take."""
        batch, n = self.some("train", gen), self.task.batch

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=gen, dtype=self.dtype).to(self.device)

        if self.task.tune != "augmentation":
            batch["input"] = uniform(1, SIZE, SIZE)
            batch |= {f"hidden{i}": uniform(*units) for i, units in enumerate(self.units)}
        if self.task.tune != "dropout":
            batch |= {"move": uniform(3), "corner": uniform(2)}
            grain = torch.randn(n, 1, SIZE, SIZE, generator=gen, dtype=self.dtype)
            batch["grain"] = grain.to(self.device)
        return batch
