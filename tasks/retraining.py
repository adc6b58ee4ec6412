"""Retraining of a trained classifier of photographs: plainly, with dropout, or by SPG.

Li, Cheng, Gu: Sequential Policy Gradient for Adaptive Hyperparameter Optimization, arXiv
2506.15051, 2025. A network is trained first, by Adam, always in the same way: that is the
checkpoint, and its training counts for nobody. Inner steps then train it on, on the same images, by
``form``: cross-entropy (``fine_tuning``; with ``rate`` above 0 behind dropout of the features), or
SPG's form A or B (:mod:`metabench.tasks.models.temporary_modules`), whose temporary modules are
part of theta and of no metric: what is judged is the network alone.

lam is lambda, the modules' weights in the inner loss, the dropout rates, or both. Outer loss: the
mean cross-entropy on validation images with right labels. The paper has none: there lambda and the
rates are given, and what adapts is each image's episode. With ``normalise``, as in the authors'
code, the gradient is taken times the detached factor exp(L_0 - L). That is the gradient of no loss,
so it is a field here, which methods differentiate with its factor.

Differs from the paper: three convolutions and a mean over places for ResNets and others, 16 x 16
pixels and few images for ImageNet, no augmentation, no weight decay, a constant step size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import cifar100
from .data.images import Images, load, shrunk, training_images
from .data.left_over import lacks_kept
from .families.images.drawn_images import cut
from .models import temporary_modules as spg

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, le=1)]

LAYERS = 3
HIGHEST = 0.9
"""The largest dropout rate."""


TRAINING = {"metabench": 120, "torchvision": 500}
"""Layout of CIFAR-100 to training images of a class."""


@task("retraining")
@dataclass(frozen=True)
class Retraining(Task):
    """Retraining of a trained classifier of photographs: plainly, with dropout, or by SPG."""

    form: Literal["fine_tuning", "spg_a", "spg_b"] = "spg_a"
    residual: spg.Residual = "linear"
    """What a temporary module adds: "linear" as in the paper, "linear_relu" as in its code, which
    stays 0."""
    weights: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.4, 0.2, 0.1)
    """First lambda, one a module."""
    rate: Annotated[float, Field(ge=0, le=HIGHEST)] = 0.2
    """First dropout rate, of every module, or before the head in fine-tuning, where 0 is none."""
    tune: Literal["weights", "rates", "both"] = "weights"
    """What lam holds; the rest stays as it is. Fine-tuning has rates alone."""
    normalise: bool = True
    """Scale SPG's gradient by exp(L_0 - L)."""
    top: Count = 1
    """An episode goes on where the label is among so many most likely classes."""
    cut: bool = False
    """Form B without the losses after an episode's end."""
    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    source: Literal["metabench", "torchvision"] = "metabench"
    """The layout to read: a part of the images, or all."""
    width: Count = 16
    """Channels of the first of three 3x3 convolutions; each next one has twice as many."""
    shrink: Count = 2
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 2000
    n_valid: Count = 1000
    n_test: Count = 2000
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the training labels that is another class, for the checkpoint and after."""
    batch: Count = 50
    checkpoint_steps: Annotated[int, Field(ge=0)] = 1000
    checkpoint_lr: Annotated[float, Field(gt=0)] = 0.003
    carried: bool = True
    """One retraining along the run; False: every outer step starts from the checkpoint."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        "accuracy", "loss", "checkpoint_accuracy", "gain", "module_norm",
    )  # fmt: skip
    evaluations: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self) -> None:
        if self.form == "fine_tuning" and self.tune != "rates":
            raise SettingError(
                f"task retraining: form fine_tuning has no weights, and tune is {self.tune!r}: "
                "set tune to 'rates'"
            )
        if self.cut and self.form != "spg_b":
            raise SettingError(f"task retraining: cut is for form spg_b; form is {self.form!r}")
        classes = 100 if self.dataset == "cifar100" else 10
        if self.top > classes:
            raise SettingError(
                f"task retraining: top is {self.top}: {self.dataset} has {classes} classes"
            )
        if self.batch > self.n_train:
            raise SettingError(f"task retraining: a batch of {self.batch} from {self.n_train}")

    @property
    def data(self) -> tuple[str, ...]:
        """The one that is set."""
        return (self.dataset,)

    @property
    def lacks_selection(self) -> str | None:
        """Images that training and validation leave over are kept for it."""
        there = training_images("cifar10", self.source)
        if self.dataset == "cifar100":
            there = 100 * TRAINING[self.source]
        return lacks_kept(self.n_valid, there - self.n_train - self.n_valid)

    @property
    def scaled(self) -> bool:
        """Whether inner steps follow a gradient times a factor."""
        return self.normalise and self.form != "fine_tuning"

    @property
    def offers(self) -> frozenset[str]:
        """Few bounded numbers; derivatives in the weights alone; a field where it is scaled."""
        own = {"outer_gradient", "small_lam", "search_space", "head"}
        if self.tune == "weights":
            own |= GRADIENTS | {"lam_in_inner_loss"}
        if self.scaled:
            own.add("field")
        return frozenset(own if self.carried else own | {"episodes"})

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        out = {
            "inner_loss": "SPG's normalised gradient is that of no loss (normalise = false: it is)",
            "lam_is_initialisation": "training starts at a checkpoint, not at lam",
        }
        if self.tune == "weights":
            return out
        why = "dropout masks are zeros and ones: no derivative in their rates (tune = 'weights')"
        return out | dict.fromkeys(("second_order", "lam_in_inner_loss"), why)

    def build(self, seeds: Seeds, device: torch.device) -> RetrainingProblem:
        """Cut the parts and train the checkpoint. Raises DataMissing, SettingError."""
        return RetrainingProblem(self, seeds, device, _checkpoint(_common(self), seeds, device))


class Checkpoint(NamedTuple):
    """``parts``: split to "x" [n, 3, height, width], of mean 0 and deviation 1 by channel on the
    training part, and "y" int64 [n]; the first of the training labels are wrong ones. ``theta``:
    weight and bias of ``layer0`` .. ``layer2`` and ``head``."""

    parts: dict[str, Batch]
    theta: Params


class RetrainingProblem(Problem):
    """Training batches: "x" and "y" of some images, and uniform "drop" [n, T, features] for dropout
    (T = 1 in fine-tuning). lam: ``weight`` [T], ``rate`` [T], as tuned. theta: the network's
    parameters, and for SPG ``moduleT.weight`` [features, features] and ``moduleT.bias``."""

    head = ("head.weight", "head.bias")

    def __init__(
        self, task: Retraining, seeds: Seeds, device: torch.device, checkpoint: Checkpoint
    ) -> None:
        self.task, self.seeds, self.device, self.carried = task, seeds, device, task.carried
        self.parts, self.checkpoint = checkpoint
        like = self.checkpoint["head.bias"]
        self.features = self.checkpoint["head.weight"].shape[1]
        spg_form = task.form != "fine_tuning"
        self.rates = like.new_full((len(task.weights) if spg_form else 1,), task.rate)
        self.weights = like.new_tensor(task.weights)
        n = len(task.weights) if spg_form else 0
        self.start = self.checkpoint | spg.first_modules(n, like, self.features)
        size = self.rates.shape
        whole = {
            "weights": Hyper("weight", size, 0.0, 1.0, meaning="weight of each module's loss"),
            "rates": Hyper("rate", size, 0.0, HIGHEST, meaning="dropout rate of each module"),
        }
        self.hypers = tuple(h for name, h in whole.items() if task.tune in (name, "both"))

    def init_outer(self) -> Params:
        """The given weights and rates, as far as they are tuned."""
        first = {"weight": self.weights, "rate": self.rates}
        return {h.name: first[h.name].clone() for h in self.hypers}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The checkpoint, and modules that add nothing."""
        return dict(self.start)

    def losses(self, lam: Params, theta: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """L, and L_0: the loss of the features as they are."""
        h, rates = pooled(theta, batch["x"]), lam.get("rate", self.rates)
        if self.task.form == "fine_tuning":
            h = spg.dropped(h, rates[0], batch["drop"][:, 0])
            value = F.cross_entropy(judged(theta, h), batch["y"])
            return value, value
        logits = judged(theta, spg.trajectory(theta, h, rates, batch["drop"], self.task.residual))
        masks = spg.episode_masks(logits, batch["y"], self.task.top)
        labels = batch["y"].expand(masks.shape)
        losses = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
        weights = lam.get("weight", self.weights)
        if self.task.form == "spg_a":
            return spg.form_a(losses, masks, weights), losses[0].mean()
        return spg.form_b(losses, masks, weights, self.task.cut), losses[0].mean()

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params | None:
        """exp(L_0 - L) times the gradient of L."""
        if not self.task.scaled:
            return None
        live = any(v.requires_grad for v in (*theta.values(), *lam.values()))

        def loss(t: Params) -> tuple[Tensor, Params]:
            value, first = self.losses(lam, t, batch)
            return value, {"first": first}

        value, g, rest = autodiff.grad_and_rest(
            loss, theta, create_graph=live or autodiff.is_functional()
        )
        factor = (rest["first"] - value).exp()
        return {k: factor * v for k, v in g.items()}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """L. The field is zero where its gradient is: the factor is above 0."""
        return self.losses(lam, theta, batch)[0]

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy of the network alone."""
        return F.cross_entropy(judged(theta, pooled(theta, batch["x"])), batch["y"])

    def episode(self, split: str, index: int) -> Episode:
        """Training images and dropout drawn anew for every step; judged by the validation part in
        training, else by the split's own."""

        def inner(step: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, step)
            batch = some(self.parts["train"], self.task.batch, gen)
            shape = (self.task.batch, len(self.rates), self.features)
            drop = torch.rand(shape, generator=gen, dtype=torch.float64)
            return batch | {"drop": drop.to(self.device, self.rates.dtype)}

        return Episode(inner, self.parts["valid" if split == "train" else split], index)

    def count(self, split: str) -> int | None:
        """One; where training starts anew, other batches make another episode."""
        return None if split == "train" and not self.carried else 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss of the network without its modules; accuracy of the checkpoint, and the
        gain over it; ``module_norm``: the norm of all R_t."""
        batch = episode.outer
        logits = judged(theta, pooled(theta, batch["x"]))
        before = judged(self.checkpoint, pooled(self.checkpoint, batch["x"]))
        found, first = (
            float((z.argmax(1) == batch["y"]).double().mean()) for z in (logits, before)
        )
        squares = sum(float(v.square().sum()) for k, v in theta.items() if k.startswith("module"))
        return {
            "accuracy": found,
            "loss": float(F.cross_entropy(logits, batch["y"])),
            "checkpoint_accuracy": first,
            "gain": found - first,
            "module_norm": squares**0.5,
        }


def pooled(theta: Params, x: Tensor) -> Tensor:
    """Features [n, 4 width] of images [n, 3, height, width]: convolutions with ReLU, pooled in
    between, and the mean over places."""
    for i in range(LAYERS):
        x = F.conv2d(x, theta[f"layer{i}.weight"], theta[f"layer{i}.bias"], padding=1)
        x = F.max_pool2d(x.relu(), 2) if i + 1 < LAYERS else x.relu()
    return x.mean((-2, -1))


def judged(theta: Params, h: Tensor) -> Tensor:
    """Logits [..., classes] of features [..., size]: the shared head."""
    return F.linear(h, theta["head.weight"], theta["head.bias"])


def some(part: Batch, n: int, gen: torch.Generator) -> Batch:
    """n different images of a part."""
    chosen = torch.randperm(len(part["y"]), generator=gen)[:n].to(part["y"].device)
    return {k: v[chosen] for k, v in part.items()}


def photographs(dataset: str, source: cifar100.Source) -> Images:
    """The splits "train" and "test" of CIFAR-10 or CIFAR-100, images in 0..1. Raises
    DataMissing."""
    if dataset == "cifar10":
        return load(dataset, source)
    every = cifar100.images(source, {}, "train")
    classes, n, train = *every.shape[:2], TRAINING[source]
    labels = torch.arange(classes)[:, None].expand(classes, n)
    return {
        split: (every[:, part].flatten(0, 1).float() / 255, labels[:, part].flatten())
        for split, part in (("train", slice(train)), ("test", slice(train, n)))
    }


def checkpoint(task: Retraining, seeds: Seeds, device: torch.device, images: Images) -> Checkpoint:
    """Parts of ``images`` (split to images and labels), and the network after a first training."""
    dtype: torch.dtype = getattr(torch, task.dtype)
    classes = int(images["train"][1].max()) + 1
    test = torch.randperm(len(images["test"][1]), generator=generator(0, "retraining", "test"))
    images = {"train": images["train"], "test": (images["test"][0][test], images["test"][1][test])}
    sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
    gen = generator(seeds.data, "retraining")
    drawn = cut("retraining", images, sizes, gen)
    parts = {
        k: {"x": shrunk(x, task.shrink).to(device, dtype), "y": y} for k, (x, y) in drawn.items()
    }
    x, y = parts["train"]["x"], parts["train"]["y"].clone()
    if min(x.shape[-2:]) < 4:
        raise SettingError(f"task retraining: shrink = {task.shrink} leaves {x.shape[-1]} pixels")
    wrong = int(task.noise * task.n_train)
    y[:wrong] = (y[:wrong] + torch.randint(1, classes, (wrong,), generator=gen)) % classes
    parts["train"]["y"] = y
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    for part in parts.values():
        part |= {"x": (part["x"] - mean) / deviation, "y": part["y"].to(device)}

    theta = autodiff.leaf(first_weights(task, classes, generator(seeds.init, "retraining"), x))
    adam = torch.optim.Adam(theta.values(), task.checkpoint_lr)
    for step in range(task.checkpoint_steps):
        batch = some(parts["train"], task.batch, generator(seeds.batches, "checkpoint", step))
        with torch.enable_grad():
            loss = F.cross_entropy(judged(theta, pooled(theta, batch["x"])), batch["y"])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Checkpoint(parts, autodiff.detach(theta))


def first_weights(task: Retraining, classes: int, gen: torch.Generator, like: Tensor) -> Params:
    """Normal with variance 2 / inputs (He et al. 2015); biases zero."""
    sizes = [3, *(task.width * 2**i for i in range(LAYERS))]
    shapes = {f"layer{i}": (sizes[i + 1], sizes[i], 3, 3) for i in range(LAYERS)}
    out: Params = {}
    for name, shape in {**shapes, "head": (classes, sizes[-1])}.items():
        inputs = torch.Size(shape[1:]).numel()
        drawn = torch.randn(shape, generator=gen, dtype=torch.float64) * (2 / inputs) ** 0.5
        out[f"{name}.weight"] = drawn.to(like)
        out[f"{name}.bias"] = like.new_zeros(shape[0])
    return out


SHARED = {
    "dataset", "source", "width", "shrink", "n_train", "n_valid", "n_test", "noise", "batch",
    "checkpoint_steps", "checkpoint_lr", "dtype",
}  # fmt: skip
"""The settings that a checkpoint depends on."""


def _common(task: Retraining) -> Retraining:
    """The same, with the defaults of what the checkpoint does not depend on."""
    own: dict[str, Any] = {f.name: f.default for f in fields(task) if f.name not in SHARED}
    return replace(task, **own)


@lru_cache(maxsize=64)
def _checkpoint(task: Retraining, seeds: Seeds, device: torch.device) -> Checkpoint:
    """Shared between cells of a process: never changed in place."""
    return checkpoint(task, seeds, device, photographs(task.dataset, task.source))
