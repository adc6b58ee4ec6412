"""Classifiers of images with a Gaussian prior, its precisions lam; theta is trained to the MAP.

Inner loss over N training images: mean cross-entropy and 1/(2N) sum_i delta_i theta_i^2, which is
minus the log of likelihood and prior, by N. ``validation`` is the part of the images that is cut
off for methods with a validation loss; at 0 all are trained on, and only methods without one apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Evidence
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError

from ...data.images import CLASSES, Images, OfImages, shrunk
from ...models.classifier import Classifier, Kind
from .drawn_images import cut

Count = Annotated[int, Field(ge=1)]
PRECISION = "log_precision"
LOW, HIGH = -8.0, 8.0
NO_VALIDATION = dict.fromkeys(
    ("outer_gradient", "search_space"),
    "all examples are trained on: there is no validation loss (validation = 0)",
)
"""What a task without validation examples lacks, and why."""


@dataclass(frozen=True)
class BayesianImages(OfImages):
    """Settings of tasks whose network has a prior."""

    registered_name: ClassVar[str]
    precisions: Literal["one", "layer", "weight"] = "layer"
    """One log precision, one a layer (its biases included), or one a weight."""
    first_log_precision: Annotated[float, Field(ge=LOW, le=HIGH)] = 0.0
    network: Kind = "mlp"
    """The classifier: linear, one hidden layer, or two convolutions."""
    width: Count = 20
    shrink: Count = 2
    """Images are averaged over squares of this many pixels a side."""
    n_train: Annotated[int, Field(ge=2)] = 1000
    """Images to learn from, those for validation included."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The part of them that is cut off to judge lam by."""
    n_test: Count = 10000
    batch: Count = 100
    """Images of an inner step; all where there are fewer."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    evaluations: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation and not 0 < self.n_valid < self.n_train:
            raise ValueError(
                f"validation = {self.validation} of n_train = {self.n_train} images leaves one of "
                "both parts without any"
            )

    @property
    def outer_on_validation(self) -> bool:  # type: ignore[override]
        """Where images are cut off for validation; else the part "valid" is the training part."""
        return bool(self.validation)

    @property
    def n_valid(self) -> int:
        """Images that are cut off."""
        return round(self.validation * self.n_train)

    @property
    def taken(self) -> int:
        """Validation images are among ``n_train``."""
        return self.n_train

    @property
    def offers(self) -> frozenset[str]:
        """Likelihood and prior always; a validation loss where there are images for one."""
        own = {"second_order", "lam_in_inner_loss", "best_response", "prediction", "head"}
        own |= {"example_losses", "evidence"}
        if self.validation:
            own |= {*NO_VALIDATION}
        return frozenset(own if self.precisions == "weight" else own | {"small_lam"})

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        out = {} if self.validation else dict(NO_VALIDATION)
        if self.precisions == "weight":
            out["small_lam"] = "lam has a precision for every weight: too many scalars to search in"
        return out


class BayesianImagesProblem(Problem):
    """``parts``: split to "x" [n, channels, side, side] in 0..1 and "y" int64 [n]; without
    validation images the part "valid" is the training part. theta: weights and biases of ``head``,
    ``layer0``, ``layer1``. lam: ``log_precision`` [], or one with a layer's or weight's name after
    a dot."""

    carried = True
    head = ("head.weight", "head.bias")

    def __init__(
        self, task: BayesianImages, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: split to images [n, channels, side, side] and labels [n]; training and
        validation parts are cut from "train", the test part from "test"."""
        self.task, self.seeds, self.device = task, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        self.parts = self.cut(images)
        self.example_count = len(self.parts["train"]["y"])
        c, h, w = self.parts["train"]["x"].shape[1:]
        try:
            self.model = Classifier(task.network, (c, h, w), task.width, CLASSES)
        except ValueError as error:
            raise SettingError(f"task {task.registered_name}: {error}") from None
        drawn = self.model.draw(generator(seeds.init, task.registered_name))
        self.fresh = {k: v.to(device, self.dtype) for k, v in drawn.items()}
        self.prior_of = {
            k: {
                "one": PRECISION,
                "layer": f"{PRECISION}.{k.partition('.')[0]}",
                "weight": f"{PRECISION}.{k}",
            }[task.precisions]
            for k in self.fresh
        }
        self.hypers = tuple(
            Hyper(k, tuple(v.shape), LOW, HIGH, meaning="log of one over the prior variance")
            for k, v in self.first_precisions().items()
        )

    def cut(self, images: Images) -> dict[str, Batch]:
        """The parts, shrunk."""
        task, name = self.task, self.task.registered_name
        sizes = {"train": task.n_train - task.n_valid, "valid": task.n_valid, "test": task.n_test}
        gen, out = generator(self.seeds.data, name), {}
        for split, (x, y) in cut(name, images, sizes, gen).items():
            small = shrunk(self.seen(x, gen), task.shrink)
            out[split] = {"x": small.to(self.device, self.dtype), "y": y.to(self.device)}
        return out if task.validation else out | {"valid": out["train"]}

    def seen(self, x: Tensor, gen: torch.Generator) -> Tensor:
        """Images as this task has them."""
        return x

    def first_precisions(self) -> Params:
        """The first log precisions."""
        first = self.task.first_log_precision
        each = self.task.precisions == "weight"
        shapes = {self.prior_of[k]: v.shape if each else () for k, v in self.fresh.items()}
        return {k: self.fresh["head.bias"].new_full(s, first) for k, s in shapes.items()}

    def init_outer(self) -> Params:
        """The first log precisions."""
        return self.first_precisions()

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        return {k: v.clone() for k, v in self.fresh.items()}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10]."""
        return self.model.logits(theta, batch["x"])

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean cross-entropy and 1/(2N) sum delta theta^2."""
        penalty = self.diagonal_penalty(lam)
        prior = torch.stack([(penalty[k] * theta[k].square()).sum() for k in penalty]).sum()
        return F.cross_entropy(prediction, batch["y"]) + 0.5 * prior

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same of the batch's predictions."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def diagonal_penalty(self, lam: Params) -> Params:
        """delta / N."""
        return {k: v / self.example_count for k, v in self.evidence(lam).precision.items()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.predict(lam, theta, batch), batch["y"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return self.unpenalised_loss(lam, theta, batch)

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy of each image."""
        return F.cross_entropy(self.predict(lam, theta, batch), batch["y"], reduction="none")

    def evidence(self, lam: Params) -> Evidence:
        """Classes, and the precisions e^lam."""
        return Evidence({k: lam[name].exp() for k, name in self.prior_of.items()})

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training images."""
        return self.chosen("train", indices, generator)

    def chosen(
        self, split: str, indices: Tensor | None = None, gen: torch.Generator | None = None
    ) -> Batch:
        """Images of a part, None: all, with the numbers that their predictions take; without a
        generator an image has the same numbers always."""
        batch = self.parts[split]
        if gen is None:
            fixed = generator(self.seeds.evaluation, split)
            batch = batch | self.numbers(len(batch["y"]), fixed)
        if indices is not None:
            batch = {k: v[indices.to(self.device)] for k, v in batch.items()}
        return batch if gen is None else batch | self.numbers(len(batch["y"]), gen)

    def numbers(self, n: int, gen: torch.Generator) -> Batch:
        """What is random in the predictions of n images."""
        return {}

    def episode(self, split: str, index: int) -> Episode:
        """Training batches drawn anew for every step; all validation images to judge by in
        training, with numbers that are drawn anew for every outer step."""

        def inner(step: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, step)
            return self.take(
                torch.randperm(self.example_count, generator=gen)[: self.examples_per_batch], gen
            )

        if split != "train":
            return Episode(inner, self.chosen(split), index)
        gen = generator(self.seeds.batches, "outer", index)
        return Episode(inner, self.chosen("valid", gen=gen), index)

    @property
    def examples_per_batch(self) -> int:
        """Images of an inner batch."""
        return min(self.task.batch, self.example_count)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss (minus the log likelihood an image) of the episode's outer part; how
        many images theta is trained on, and lam is judged by."""
        logits, y = self.predict(lam, theta, episode.outer), episode.outer["y"]
        return {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(F.cross_entropy(logits, y)),
            "trained_on": float(self.example_count),
            "validated_on": float(self.task.n_valid),
        }
