"""A learned optimiser: lam = a small network that says how each weight of another one moves.

After Metz, Maheswaranathan, Nixon, Freeman, Sohl-Dickstein: Understanding and Correcting
Pathologies in the Training of Learned Optimizers, ICML 2019, arXiv 1810.10180: a network per
parameter, from the gradient and momenta at several rates to a direction and a size,

    w <- w + scale d exp(e),    (d, e) = net(g, m_1, m_2, m_3, w),    m_i <- b_i m_i + (1 - b_i) g,

each input over its root mean square in its tensor. Data, networks and the start are this project's
own and small: digits of 7x7 pixels, one tanh layer, and a first lam that is d = -m_2, momentum of
a fixed length. theta holds weights and momenta; steps follow a field that makes this step with
plain descent and ``inner_lr`` = 1. Every episode has first weights and batches of its own, so that
tests are trainings never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .data.images import CLASSES, Images, OfImages, enough, shrunk

Count = Annotated[int, Field(ge=1)]
MOMENTA = (0.5, 0.9, 0.99)
FEATURES = 2 + len(MOMENTA)
LAYERS = ("hidden", "head")
TINY = 1e-8
"""Added to a mean square: a momentum is 0 at first."""


@task("learned_optimiser")
@dataclass(frozen=True)
class LearnedOptimiser(OfImages):
    """A learned optimiser (after Metz 2019): lam = a network from gradients to updates."""

    units: Annotated[int, Field(ge=1, le=100)] = 16
    """Units of lam's one ReLU layer."""
    scale: Annotated[float, Field(gt=0)] = 0.03
    """Length of a first step in every weight, by root mean square."""
    hidden: Count = 16
    """Units of theta's one tanh layer."""
    test_hidden: Count | None = None
    """Of theta's in the test; None: as in training."""
    shrink: Count = 4
    """Images are averaged over squares of this many pixels a side."""
    batch: Count = 32
    """Images of an inner step, drawn with replacement."""
    outer_batch: Count = 256
    """Images of the outer loss in training."""
    n_train: Count = 5000
    n_valid: Count = 1000
    n_test: Count = 2000
    meta_batch: Count = 1
    """Trainings an outer step."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    lacks_selection: ClassVar[str] = (
        "its outer level does not learn on the split 'valid', which serves"
    )
    lacks: ClassVar[dict[str, str]] = {
        "lam_in_inner_loss": "lam is the rule that theta moves by: no loss has it",
        "lam_is_initialisation": "lam is the rule that theta moves by, not where it starts",
        "inner_loss": "inner steps follow a rule that is learned, not the gradient of a loss",
    }

    @property
    def offers(self) -> frozenset[str]:
        """A field with derivatives, few scalars, and episodes without end."""
        return GRADIENTS | {"field", "small_lam", "episodes"}

    def build(self, seeds: Seeds, device: torch.device) -> LearnedOptimiserProblem:
        """Cut the parts. Raises DataMissing."""
        return LearnedOptimiserProblem(self, seeds, device, self.images())


class LearnedOptimiserProblem(Problem):
    """``parts``: split to images "x" [n, pixels] less 1/2 and labels "y" int64 [n]. theta: weights
    "w.hidden.weight" [hidden, pixels] ... "w.head.bias" [10], and for each momentum i "m{i}.", the
    same names and shapes. lam: "hidden.weight" [units, 5], "hidden.bias", "head.weight" [2, units],
    "head.bias" and "skip" [5], a linear part of the direction."""

    def __init__(
        self, task: LearnedOptimiser, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: "train" and "test" to images [n, channels, height, width] and labels [n]."""
        self.task, self.seeds = task, seeds
        self.kind = {"dtype": getattr(torch, task.dtype), "device": device}
        self.episodes_per_step = task.meta_batch
        (x, y), (test_x, test_y) = images["train"], images["test"]
        wanted = task.n_train + task.n_valid
        enough("learned_optimiser", task.dataset, "n_train + n_valid", wanted, len(x))
        enough("learned_optimiser", task.dataset, "n_test", task.n_test, len(test_x))
        order = torch.randperm(len(x), generator=generator(seeds.data, "learned_optimiser"))
        train, valid = order[:wanted].split([task.n_train, task.n_valid])
        self.parts: dict[str, Batch] = {}
        for split, xs, ys in (
            ("train", x[train], y[train]),
            ("valid", x[valid], y[valid]),
            ("test", test_x[: task.n_test], test_y[: task.n_test]),
        ):
            small = shrunk(xs, task.shrink).flatten(1).to(**self.kind) - 0.5
            self.parts[split] = {"x": small, "y": ys.to(device)}

    def init_outer(self) -> Params:
        """d = -m_2 and e = 0; a random layer below a head of zeros."""
        n = self.task.units
        gen = generator(self.seeds.init, "learned_optimiser")
        weight = torch.randn(n, FEATURES, generator=gen, dtype=torch.float64) * FEATURES**-0.5
        skip = torch.zeros(FEATURES, dtype=torch.float64)
        skip[2] = -1.0
        lam = {
            "hidden.weight": weight,
            "hidden.bias": weight.new_zeros(n),
            "head.weight": weight.new_zeros(2, n),
            "head.bias": weight.new_zeros(2),
            "skip": skip,
        }
        return {k: v.to(**self.kind) for k, v in lam.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The episode's first weights, and momenta of 0."""
        prefix = "start."
        held = episode.outer.items()
        start = {k.removeprefix(prefix): v for k, v in held if k.startswith(prefix)}
        theta = {f"w.{k}": v.clone() for k, v in start.items()}
        for i in range(len(MOMENTA)):
            theta |= {f"m{i}.{k}": torch.zeros_like(v) for k, v in start.items()}
        return theta

    def activations(self, theta: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the hidden layer [n, hidden], and logits [n, 10], of images [n, pixels]."""
        h = F.linear(x, theta["w.hidden.weight"], theta["w.hidden.bias"]).tanh()
        return h, F.linear(h, theta["w.head.weight"], theta["w.head.bias"])

    def gradient(self, theta: Params, batch: Batch) -> Params:
        """Of the mean cross-entropy, in the weights' names without "w."; by hand, so that every
        transformation of functions can go through it."""
        x, y = batch["x"], batch["y"]
        h, logits = self.activations(theta, x)
        up = (logits.softmax(1) - F.one_hot(y, CLASSES).to(x)) / len(x)
        down = (up @ theta["w.head.weight"]) * (1 - h.square())
        return {
            "hidden.weight": down.t() @ x, "hidden.bias": down.sum(0),
            "head.weight": up.t() @ h, "head.bias": up.sum(0),
        }  # fmt: skip

    def update(self, lam: Params, features: Tensor) -> Tensor:
        """scale d exp(e) [...] of features [..., 5]."""
        h = F.linear(features, lam["hidden.weight"], lam["hidden.bias"]).relu()
        out = F.linear(h, lam["head.weight"], lam["head.bias"])
        return self.task.scale * (out[..., 0] + features @ lam["skip"]) * out[..., 1].exp()

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """Minus the step of every part of theta."""
        out = {}
        for name, g in self.gradient(theta, batch).items():
            w, momenta = theta[f"w.{name}"], []
            for i, b in enumerate(MOMENTA):
                old = theta[f"m{i}.{name}"]
                momenta.append(b * old + (1 - b) * g)
                out[f"m{i}.{name}"] = old - momenta[-1]
            out[f"w.{name}"] = -self.update(
                lam, torch.stack([normalised(v) for v in (g, *momenta, w)], -1)
            )
        return {k: out[k] for k in theta}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy, which lam's rule has the gradient of."""
        return self.outer_loss(lam, theta, batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.activations(theta, batch["x"])[1], batch["y"])

    def some(self, n: int, *address: int | str) -> Batch:
        """Training images, drawn with replacement by address."""
        part = self.parts["train"]
        rows = torch.randint(len(part["y"]), (n,), generator=generator(*address))
        return {k: v[rows.to(v.device)] for k, v in part.items()}

    def episode(self, split: str, index: int) -> Episode:
        """A training of its own; judged on other images of the split."""
        task, address = self.task, (self.seeds.batches, "learned_optimiser", split, index)
        hidden = (task.test_hidden or task.hidden) if split == "test" else task.hidden
        gen = generator(self.seeds.init, "learned_optimiser", split, index)
        start = {}
        inputs = self.parts["train"]["x"].shape[1]
        for name, shape in zip(LAYERS, ((hidden, inputs), (CLASSES, hidden)), strict=True):
            weight = torch.randn(shape, generator=gen, dtype=torch.float64) * shape[1] ** -0.5
            start[f"start.{name}.weight"] = weight.to(**self.kind)
            start[f"start.{name}.bias"] = weight.new_zeros(shape[0]).to(**self.kind)
        training = split == "train"
        judge = self.some(task.outer_batch, *address, "outer") if training else self.parts[split]
        return Episode(lambda t: self.some(task.batch, *address, t), judge | start, index)

    def count(self, split: str) -> int | None:
        """They never end."""
        return None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Cross-entropy and accuracy after the training."""
        logits, y = self.activations(theta, episode.outer["x"])[1], episode.outer["y"]
        return {
            "loss": float(F.cross_entropy(logits, y)),
            "accuracy": float((logits.argmax(1) == y).double().mean()),
        }


def normalised(x: Tensor) -> Tensor:
    """x over the root of its mean square."""
    return x * (x.square().mean() + TINY).rsqrt()
