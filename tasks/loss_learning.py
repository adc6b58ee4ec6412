"""Learning a loss: images with wrong training labels, clean validation images as the outer loss.

Inner loss: mean of a loss with parameters lam on the training part, whose labels are partly wrong;
outer loss: mean cross-entropy on a validation part with right labels. Forms of lam: the exponent of
the generalised cross-entropy, a Taylor polynomial, a small network, a weight net (Meta-Weight-Net),
a transition matrix, a weight for each example; :mod:`metabench.tasks.models.losses` cites them.
Noise as in Shu et al.: Meta-Weight-Net, NeurIPS 2019, and the authors' code: "uniform" redraws a
label from all classes (the right one included) with probability ``rate``, "flip" gives it to one
other class, drawn once for each class, "flip2" to one of two others.

With method ``fixed`` the first lam is a baseline: form "gce" with ``q`` 0 is cross-entropy, 1 half
of the mean absolute error, 0.7 what its authors recommend; ``train_on`` gives the bounds. Differs
from Meta-Weight-Net: smaller networks, no augmentation; a test part that the validation part's best
state is judged on (its steps are the method ``one_step``'s with ``real_step``). A learned scale of
the loss is a learned step size too: ``effective_step`` reports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data.images import CLASSES, OfImages, enough, shrunk
from .data.left_over import kept
from .families.noisy_targets import Learning, LearningProblem
from .models import losses
from .models.classifier import Classifier, Kind

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@task("loss_learning")
@dataclass(frozen=True)
class LossLearning(OfImages, Learning):
    """Learning a loss: images with wrong labels to train on, clean ones for the outer loss."""

    form: losses.ClassForm = "taylor"
    """What lam is; "examples" has a logit for every training image."""
    q: Share = 0.0
    """First exponent of form "gce"."""
    noise: Literal["uniform", "flip", "flip2"] = "uniform"
    rate: Share = 0.4
    """Probability that a training label is redrawn."""
    train_on: Literal["noisy", "right", "valid"] = "noisy"
    """The training part as it is, only those of it whose labels are right (perfect cleaning), or
    the validation part in its place (no noisy data at all)."""
    network: Kind = "mlp"
    """Linear; one hidden ReLU layer of ``width``; or two 3x3 convolutions of ``width`` and twice
    that, each pooled, with ReLU."""
    width: Count = 64
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 1000
    n_valid: Count = 100
    """Clean images, as many of each class as go evenly."""
    n_test: Count = 10000
    batch: Count | None = 100
    """Training images of an inner step; None: all."""
    valid_batch: Count | None = None
    """Validation images of an outer step; None: all."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """The inner loss has l2 / 2 times the squared norm of theta added."""
    carried: bool = True
    """One training along the run; False: every outer step trains from the same fresh weights."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True
    evaluations: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.valid_batch is not None and self.valid_batch > self.n_valid:
            raise ValueError(f"valid_batch = {self.valid_batch} of {self.n_valid} images")

    @property
    def metrics(self) -> tuple[str, ...]:
        """A transition matrix has its error too."""
        own = ("transition_error",) if self.form == "transition" else ()
        return (
            "accuracy", "loss", "fitted_wrong", "effective_step", "weight_right", "weight_wrong",
            *own,
        )  # fmt: skip

    def build(self, seeds: Seeds, device: torch.device) -> LossLearningProblem:
        """Cut the parts, redraw labels. Raises DataMissing, SettingError."""
        return LossLearningProblem(self, seeds, device, self.images())


class LossLearningProblem(LearningProblem):
    """``parts``: split to images "x" [n, channels, height, width] in 0..1, labels "y" int64 [n] and
    places "index" [n]; ``wrong`` bool, which training labels are not the image's; ``transition``
    [10, 10], the probability of a label (column) for each class. theta: weights and biases of
    ``head`` and ``layer0``, ``layer1``, as the network has them."""

    name = "loss_learning"

    def __init__(
        self,
        task: LossLearning,
        seeds: Seeds,
        device: torch.device,
        images: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        """``images``: split to images [n, channels, height, width] and labels [n]; training and
        validation parts are cut from "train", the test part from "test"."""
        self.task, self.seeds, self.carried, self.device = task, seeds, task.carried, device
        self.dtype, self.l2 = getattr(torch, task.dtype), task.l2
        self.parts: dict[str, Batch] = {}
        self.cut(images)
        self.pollute()
        if task.train_on == "right":
            self.keep(~self.wrong)
        elif task.train_on == "valid":
            self.parts["train"] = self.parts["valid"]
            self.wrong = torch.zeros(task.n_valid, dtype=torch.bool, device=device)
        n = len(self.wrong)
        self.size = n if task.batch is None else min(task.batch, n)
        self.learned = losses.of_classes(task.form, n=n, classes=CLASSES, q=task.q)
        self.hypers = self.learned.hypers
        c, h, w = self.parts["train"]["x"].shape[1:]
        try:
            self.model = Classifier(task.network, (c, h, w), task.width, CLASSES)
        except ValueError as error:
            raise SettingError(f"task loss_learning: {error}") from None

    def cut(self, images: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Parts in an order of the data's seed, the validation part balanced between classes."""
        task = self.task
        (x, y), test = images["train"], images["test"]
        wanted = task.n_train + task.n_valid
        enough("loss_learning", task.dataset, "n_train + n_valid", wanted, len(x))
        enough("loss_learning", task.dataset, "n_test", task.n_test, len(test[0]))
        order = torch.randperm(len(x), generator=generator(self.seeds.data, "loss_learning"))
        # The first image of each class, then the second of each, and so on.
        one_hot = F.one_hot(y[order], CLASSES)
        turn = (one_hot.cumsum(0) * one_hot).sum(1)
        valid = turn.argsort(stable=True)[: task.n_valid]
        rest = torch.ones(len(order), dtype=torch.bool)
        rest[valid] = False
        chosen = {
            "train": (x, y, order[rest][: task.n_train]),
            "valid": (x, y, order[valid]),
            "test": (*test, torch.arange(task.n_test)),
        }
        if n := kept(task.n_valid, len(x) - wanted):
            chosen["selection"] = x, y, order[rest][task.n_train :][:n]
        for split, (a, b, places) in chosen.items():
            self.parts[split] = {
                "x": shrunk(a[places], task.shrink).to(self.device, self.dtype),
                "y": b[places].to(self.device),
                "index": torch.arange(len(places), device=self.device),
            }

    def pollute(self) -> None:
        """Redraw training labels by ``transition``."""
        task, gen = self.task, generator(self.seeds.data, "loss_learning", "noise")
        p, eye = task.rate, torch.eye(CLASSES, dtype=torch.float64)
        if task.noise == "uniform":
            to = torch.full_like(eye, 1 / CLASSES)
        else:
            others = 1 if task.noise == "flip" else 2
            # Steps of 1 .. 9 classes on: never the class itself.
            draws = [torch.randperm(CLASSES - 1, generator=gen) + 1 for _ in range(CLASSES)]
            steps = torch.stack(draws)[:, :others]
            to = torch.zeros_like(eye)
            to.scatter_(1, (torch.arange(CLASSES)[:, None] + steps) % CLASSES, 1 / others)
        self.transition = (1 - p) * eye + p * to
        true = self.parts["train"]["y"]
        drawn = torch.multinomial(self.transition[true.cpu()], 1, generator=gen).squeeze(1)
        self.parts["train"]["y"] = drawn.to(self.device)
        self.wrong = self.parts["train"]["y"] != true

    def keep(self, mask: Tensor) -> None:
        """Leave only some of the training part. Raises SettingError where none is left."""
        if not bool(mask.any()):
            raise SettingError("task loss_learning: train_on = 'right', and no label is")
        part = {k: v[mask] for k, v in self.parts["train"].items()}
        part["index"] = torch.arange(len(part["y"]), device=self.device)
        self.parts["train"], self.wrong = part, self.wrong[mask]

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time."""
        first = self.model.draw(generator(self.seeds.init, "loss_learning"))
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of images [n, channels, height, width]."""
        return self.model.logits(theta, x)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, 10]."""
        return self.logits(theta, batch["x"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on right labels."""
        return losses.cross_entropy(self.logits(theta, batch["x"]), batch["y"]).mean()

    def episode(self, split: str, index: int) -> Episode:
        """Inner batches from the training part; the outer one from the validation part in training,
        else the whole part."""
        inner = self.batches(split, index)
        if split == "train" and (size := self.task.valid_batch) is not None:
            return Episode(inner, self.some("valid", size, "outer", index), index)
        return Episode(inner, self.parts["valid" if split == "train" else split], index)

    def count(self, split: str) -> int | None:
        """One; where training starts anew with other batches, training episodes never end."""
        if split == "train" and self.task.valid_batch is not None and not self.carried:
            return None
        return super().count(split)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on the split; on the training part ``effective_step``, ``weight_right``
        and ``weight_wrong`` (against cross-entropy's slopes) and ``fitted_wrong``, the share of its
        wrong labels that the network repeats; ``transition_error``, the mean distance of the
        matrix's entries from the true ones."""
        logits, y = self.logits(theta, episode.outer["x"]), episode.outer["y"]
        train = self.parts["train"]
        fit = self.logits(theta, train["x"])
        repeats = (fit.argmax(1) == train["y"])[self.wrong].double()
        out = {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(losses.cross_entropy(logits, y).mean()),
            "fitted_wrong": float(repeats.mean()) if len(repeats) else 0.0,
            **losses.pulls(
                self.learned, losses.cross_entropy, lam, fit, train["y"], train["index"],
                self.wrong,
            ),
        }  # fmt: skip
        if self.task.form == "transition":
            gap = lam["transition"].double().softmax(1).cpu() - self.transition
            out["transition_error"] = float(gap.abs().mean())
        return out
