"""A weight decay for every weight of multinomial logistic regression: smooth, convex, R^1440.

The logistic problem of Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 7(3), 2025,
arXiv 2308.10098, after Pedregosa, ICML 2016: MNIST at 12 x 12 pixels, no biases, log decays that
start at -3. Inner loss: mean cross-entropy and 1/2 sum e^lam w^2; outer loss: mean cross-entropy of
other images: of the test part with ``n_valid`` None, as published, else of the training part.

With ``pair``, ``decays`` = "pixel" and ``batch`` it is the logistic problem of benchmarks of
stochastic methods (Dagreou, Ablin, Vaiter, Moreau, NeurIPS 2022, arXiv 2201.13409, on ijcnn1): two
classes, a log decay a feature, batches of 64 for either loss. With ``exact`` a metric is what
that benchmark plots: the squared norm of the hypergradient at the exact inner minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import task
from metabench.hypergradients import reference

from .data.images import CLASSES, Images, enough, load, resized, training_images
from .data.left_over import lacks_kept, with_selection
from .models import decay, softmax

Count = Annotated[int, Field(ge=10)]
Digit = Annotated[int, Field(ge=0, lt=CLASSES)]

LOWEST, HIGHEST = -12.0, 6.0
"""Bounds of a log decay."""


@task("multinomial")
@dataclass(frozen=True)
class Multinomial(Task):
    """A weight decay for every weight of softmax regression on small MNIST images."""

    size: Annotated[int, Field(ge=1, le=28)] = 12
    """Pixels a side."""
    n_train: Count = 50_000
    n_valid: Count | None = 10_000
    """Cut from the training images; None, as published: the test images are what the outer loss
    sees too."""
    n_test: Count = 10_000
    first_log_decay: Annotated[float, Field(ge=LOWEST, le=HIGHEST)] = -3.0
    carried: bool = True
    source: Literal["auto", "metabench", "torchvision"] = "auto"
    pair: tuple[Digit, Digit] | None = settings.later(None)
    """The two digits to tell apart; None: all ten."""
    decays: Literal["weight", "pixel"] = settings.later("weight")
    """A decay for every weight, or one a pixel for all classes."""
    batch: Annotated[int, Field(ge=1)] | None = settings.later(None)
    """Training images of an inner step, and in training validation images of an outer one; None:
    all."""
    exact: bool = settings.later(False)
    """The metric ``hypergradient_square``, too: |d/dlam F(lam, theta*(lam))|^2 over all training
    and all validation images, theta* by Newton's method; at a bound what a step of it moves lam by.
    For up to about a thousand weights."""
    highest_log_decay: Annotated[float, Field(gt=LOWEST, le=HIGHEST)] = settings.later(HIGHEST)
    """Bound of every log decay. Plain inner steps need decays below 2 over their size, and
    stochastic steps of lam, whose gradient grows as e^lam, go to the bound at once."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ("mnist",)
    lacks: ClassVar[dict[str, str]] = {
        "small_lam": "lam has a decay for every weight: too many scalars to search in"
    }

    def __post_init__(self) -> None:
        if self.pair is not None and self.pair[0] == self.pair[1]:
            raise SettingError(f"pair is {self.pair[0]} twice: two digits are told apart")
        if self.first_log_decay > self.highest_log_decay:
            raise SettingError(
                f"first_log_decay = {self.first_log_decay} is above highest_log_decay = "
                f"{self.highest_log_decay}"
            )
        if self.batch is not None and self.batch > min(self.n_train, self.n_valid or self.n_test):
            raise SettingError(
                f"a batch of {self.batch} from {self.n_train} training images and "
                f"{self.n_valid or self.n_test} that validate"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """With ``exact`` one more."""
        more = ("hypergradient_square",) if self.exact else ()
        return ("loss", "accuracy", "log_decay", *more)

    @property
    def offers(self) -> frozenset[str]:
        """A strongly convex problem with derivatives and bounds; with batches, of images that can
        be taken by number, not the same one at every step."""
        own = {"lam_in_inner_loss", "search_space"}
        if not self.carried:
            own.add("episodes")
        if self.batch is None:
            own |= {"best_response", "full_batch", "strongly_convex"}
        else:
            own.add("example_losses")
        return GRADIENTS | own

    @property
    def lacks_selection(self) -> str | None:
        """Images of the training part are left over; not where test images validate."""
        if self.n_valid is None:
            return "test images validate, as published"
        if self.pair is not None:
            return "none are kept of a pair of digits"
        left = training_images("mnist", self.source) - self.n_train - self.n_valid
        return lacks_kept(self.n_valid, left)

    def build(self, seeds: Seeds, device: torch.device) -> MultinomialProblem:
        """Cut the parts."""
        found = load("mnist", None if self.source == "auto" else self.source)
        return MultinomialProblem(self, seeds, device, found)


class MultinomialProblem(Problem):
    """float64. ``parts``: split to images "x" [n, pixels] in 0..1 and labels "y" [n]. theta: "w"
    [classes, pixels]; lam: "log_decay", alike or [pixels]."""

    def __init__(
        self, task: Multinomial, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: "train" and "test" to images [n, 1, height, width] and labels [n]."""
        self.task, self.seeds, self.carried = task, seeds, task.carried
        self.example_count = task.n_train
        sizes = {"train": task.n_train, "valid": task.n_valid or 0, "test": task.n_test}
        gen = generator(seeds.data, "multinomial")
        self.parts: dict[str, Batch] = {}
        for source, splits in (("train", ("train", "valid")), ("test", ("test",))):
            x, y = images[source]
            if task.pair is not None:
                mine = (y == task.pair[0]) | (y == task.pair[1])
                x, y = x[mine], (y[mine] == task.pair[1]).long()
            named = " + ".join(f"n_{s}" for s in splits)
            wanted = {s: sizes[s] for s in splits}
            enough("multinomial", "mnist", named, sum(wanted.values()), len(x))
            if source == "train" and task.pair is None:
                wanted = with_selection(wanted, len(x))
            order = torch.randperm(len(x), generator=gen)[: sum(wanted.values())]
            for split, rows in zip(wanted, order.split([*wanted.values()]), strict=True):
                small = resized(x[rows].double(), task.size).flatten(1)
                self.parts[split] = {"x": small.to(device), "y": y[rows].to(device)}
        if task.n_valid is None:
            self.parts["valid"] = self.parts["test"]
        self.shape = (CLASSES if task.pair is None else 2, task.size**2)
        size, judges = task.batch, len(self.parts["valid"]["y"])
        self.outer_blocks = 0 if size is None or judges % size else judges // size
        by_lam = self.shape if task.decays == "weight" else self.shape[1:]
        high = task.highest_log_decay
        self.hypers = (
            Hyper("log_decay", by_lam, LOWEST, high, meaning="log of each weight's decay"),
        )

    def init_outer(self) -> Params:
        """log_decay [classes, pixels] or [pixels]."""
        x = self.parts["train"]["x"]
        return {"log_decay": x.new_full(self.hypers[0].shape, self.task.first_log_decay)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Weights of zero."""
        return {"w": self.parts["train"]["x"].new_zeros(self.shape)}

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^lam."""
        return {"w": lam["log_decay"].exp()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(F.linear(batch["x"], theta["w"]), batch["y"])

    @property
    def examples_per_batch(self) -> int:
        """Training images of an inner batch."""
        return self.task.batch or self.example_count

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training images."""
        return {k: v[indices] for k, v in self.parts["train"].items()}

    def outer_block(self, b: int) -> Batch:
        """Validation images, ``batch`` at a time."""
        size = self.examples_per_batch
        return {k: v[b * size : (b + 1) * size] for k, v in self.parts["valid"].items()}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy of each image."""
        return F.cross_entropy(F.linear(batch["x"], theta["w"]), batch["y"], reduction="none")

    def inner_hessian(
        self, lam: Params, theta: Params, batch: Batch
    ) -> Callable[[Params], Params] | None:
        """In closed form."""
        return softmax.SoftmaxHessian(
            batch["x"], F.linear(batch["x"], theta["w"]).softmax(1), weight="w"
        )

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy and 1/2 sum e^lam w^2."""
        penalty = (lam["log_decay"].exp() * theta["w"].square()).sum()
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * penalty

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return self.unpenalised_loss(lam, theta, batch)

    @cached_property
    def bends(self) -> tuple[float, float, float]:
        """Without decays: bounds of the inner Hessian, of how fast it changes, and of the outer
        Hessian."""
        inner, outer = (
            float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])
            for x in (self.parts[k]["x"] for k in ("train", "valid"))
        )
        longest = float(self.parts["train"]["x"].square().sum(1).max().sqrt())
        second, third = softmax.BENDS
        return second * inner, third * inner * longest, second * outer

    def moduli(self, lam: Params) -> Moduli | None:
        """The least decay, the largest with the largest bend of the loss, and the rest; proved. Not
        known of batches."""
        if self.task.batch is not None:
            return None
        c = self.diagonal_penalty(lam)["w"]
        bend, twist, outer = self.bends
        return decay.moduli(c, bend=bend, twist=twist, outer=outer)

    def episode(self, split: str, index: int) -> Episode:
        """All training images, or some in every step; the validation images to judge by (some in
        training, where there are batches), or the test images for "test"."""
        train, outer = self.parts["train"], self.parts["valid" if split == "train" else split]
        if self.task.batch is None:
            return Episode(train, outer, index)
        address = (self.seeds.batches, "multinomial", split, index)
        if split == "train":
            outer = self.some(outer, *address, "outer")
        return Episode(lambda step: self.some(train, *address, step), outer, index)

    def some(self, part: Batch, *address: int | str) -> Batch:
        """``batch`` images of a part, drawn with replacement by address."""
        n = self.task.batch or len(part["y"])
        rows = torch.randint(len(part["y"]), (n,), generator=generator(*address))
        return {k: v[rows.to(v.device)] for k, v in part.items()}

    def count(self, split: str) -> int | None:
        """One; training never ends where batches differ."""
        return None if split == "train" and self.task.batch is not None else 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Loss, accuracy, the mean of the log decays, and :meth:`hypergradient_square`."""
        logits, y = F.linear(episode.outer["x"], theta["w"]), episode.outer["y"]
        found = {
            "loss": float(F.cross_entropy(logits, y)),
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "log_decay": float(lam["log_decay"].mean()),
        }
        if self.task.exact:
            found["hypergradient_square"] = self.hypergradient_square(lam)
        return found

    def hypergradient_square(self, lam: Params) -> float:
        """|d/dlam F(lam, theta*(lam))|^2 of all training and all validation images; where a step
        against it leaves the bounds, |lam - the point projected back|^2."""
        x, penalty = self.parts["train"]["x"], self.diagonal_penalty(lam)["w"].detach()
        diagonal = penalty.expand(self.shape).flatten()
        weights = x.new_full((len(x),), 1 / len(x))

        def hessian(flat: Tensor) -> Tensor:
            p = F.linear(x, flat.view(self.shape)).softmax(1)
            return softmax.dense_hessian(x, p, weights) + torch.diag(diagonal)

        whole = Episode(self.parts["train"], self.parts["valid"], 0)
        zero = self.init_inner(lam, whole)
        known = reference.exact(self, lam, zero, whole, hessian=hessian)
        moved = self.project(autodiff.axpy(-1.0, known.grad, lam))
        return float((lam["log_decay"] - moved["log_decay"]).square().sum())
