"""Over-fitting a validation set: one weight decay for every weight, on a few images.

Lorraine, Vicol, Duvenaud: Optimizing Millions of Hyperparameters by Implicit Differentiation,
AISTATS 2020, section 5.1. Inner loss: mean cross-entropy on the training images and
1/2 sum_i e^{lam_i} w_i^2 over all weights and biases; outer loss: mean cross-entropy on the
validation images. With 50 and 50 images the many decays can bring validation error to zero while
test error stays. Sizes and the first decay (-4) as in the authors' MNIST script; the factor 1/2 is
this project's.

With ``against_exact`` the metrics say how good a method's first hypergradient was (their
comparison of inverses): after one outer step of plain gradient descent with step size 1, lam has
moved by minus the hypergradient, which is held against the one that the whole Hessian's
pseudo-inverse gives at the same theta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import (
    GRADIENTS,
    Batch,
    Episode,
    Hyper,
    Params,
    Problem,
    count_numbers,
)
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .data.images import CLASSES, OfImages, enough, shrunk
from .data.left_over import with_selection
from .models.classifier import first_weights, layered
from .models.softmax import SoftmaxHessian

DECAY = "log_decay."
"""Prefix of a decay's name before that of the weights it is for."""

MOST = 2.0
"""The largest log decay: plain inner steps of up to 0.2 stay stable there."""

Count = Annotated[int, Field(ge=1)]


@task("weight_decay")
@dataclass(frozen=True)
class WeightDecay(OfImages):
    """Over-fitting a validation set: one weight decay for every weight, on a few images."""

    network: Literal["linear", "mlp"] = "linear"
    hidden: Count = 50
    """Units of the MLP's one tanh layer."""
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 50
    n_valid: Count = 50
    n_test: Count = 10000
    first_log_decay: float = -4.0
    trained: Annotated[int, Field(ge=0)] = 0
    """Plain gradient steps of size 0.1 that the first theta has behind it: how close to the inner
    minimum a run starts."""
    against_exact: bool = False
    """Metrics ``cosine`` and ``distance`` (relative) of lam's first step to the exact one's; with
    one outer step, ``outer_solver`` sgd, ``outer_lr`` 1 and no inner steps. For a small theta."""
    carried: bool = True
    """One training along the run; False: every outer step trains from the same fresh weights."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = {
        "small_lam": "lam has a decay for every weight: too many scalars to search in"
    }

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, a network with a head, and episodes where theta starts anew."""
        own = {"lam_in_inner_loss", "best_response", "search_space", "head", "module"}
        own |= {"example_losses"}
        return GRADIENTS | (own if self.carried else own | {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> WeightDecayProblem:
        """Draw the parts and the first weights."""
        return WeightDecayProblem(self, seeds, device, self.images())


class WeightDecayProblem(Problem):
    """``parts``: split to images "x" [n, pixels] in 0..1 and labels "y" int64 [n]. theta: weights
    and biases of ``head`` and, for the MLP, ``hidden``. lam: a log decay for each, under
    ``log_decay.`` and its name."""

    head = ("head.weight", "head.bias")

    def __init__(
        self,
        task: WeightDecay,
        seeds: Seeds,
        device: torch.device,
        images: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        """``images``: split to images [n, channels, height, width] and labels [n]; training and
        validation parts are cut from "train", the test part from "test"."""
        self.task, self.seeds, self.carried, self.device = task, seeds, task.carried, device
        self.example_count, dtype = task.n_train, getattr(torch, task.dtype)
        sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
        gen = generator(seeds.data, "weight_decay")
        self.parts: dict[str, Batch] = {}
        for source, splits in (("train", ("train", "valid")), ("test", ("test",))):
            x, y = images[source]
            wanted = {s: sizes[s] for s in splits}
            named = " + ".join(f"n_{s}" for s in splits)
            enough("weight_decay", task.dataset, named, sum(wanted.values()), len(x))
            if source == "train":
                wanted = with_selection(wanted, len(x))
            order = torch.randperm(len(x), generator=gen)[: sum(wanted.values())]
            for split, chosen in zip(wanted, order.split([*wanted.values()]), strict=True):
                self.parts[split] = {
                    "x": shrunk(x[chosen], task.shrink).flatten(1).to(device, dtype),
                    "y": y[chosen].to(device),
                }
        hidden = task.hidden if task.network == "mlp" else None
        x = self.parts["train"]["x"]
        self.module = layered(x.shape[1], hidden, nn.Tanh(), CLASSES, x)
        self.start = first_weights(self.module, generator(seeds.init, "weight_decay"))
        self.module.load_state_dict(self.start)
        self.begin = self._trained()
        self.hypers = tuple(
            Hyper(DECAY + k, tuple(v.shape), -20.0, MOST, meaning="log of each weight's decay")
            for k, v in self.start.items()
        )

    def _trained(self) -> Params:
        lam, theta = self.init_outer(), dict(self.start)
        for _ in range(self.task.trained):
            g = autodiff.grad(lambda t: self.inner_loss(lam, t, self.parts["train"]), theta)[1]
            theta = autodiff.axpy(-0.1, g, theta)
        return theta

    def init_outer(self) -> Params:
        """A log decay for every number of theta."""
        first = self.task.first_log_decay
        return {DECAY + k: torch.full_like(v, first) for k, v in self.start.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time, ``trained`` for so many steps at the first lam."""
        return dict(self.begin)

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of images [n, pixels]."""
        if "hidden.weight" in theta:
            x = F.linear(x, theta["hidden.weight"], theta["hidden.bias"]).tanh()
        return F.linear(x, theta["head.weight"], theta["head.bias"])

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^lam, in the names of theta."""
        return {k: lam[DECAY + k].exp() for k in self.start}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits(theta, batch["x"]), batch["y"])

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training images."""
        return {k: v[indices] for k, v in self.parts["train"].items()}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy of each image."""
        return F.cross_entropy(self.logits(theta, batch["x"]), batch["y"], reduction="none")

    def inner_hessian(
        self, lam: Params, theta: Params, batch: Batch
    ) -> Callable[[Params], Params] | None:
        """In closed form for the linear model."""
        if self.task.network == "mlp":
            return None
        p = self.logits(theta, batch["x"]).softmax(1)
        return SoftmaxHessian(batch["x"], p, *self.head)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy and 1/2 sum e^lam w^2."""
        decay = self.diagonal_penalty(lam)
        terms = [(decay[k] * theta[k].square()).sum() for k in decay]
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * torch.stack(terms).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return self.unpenalised_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """All training images; the validation images to judge by, or the test images for "test"."""
        return Episode(
            self.parts["train"], self.parts["valid" if split == "train" else split], index
        )

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def exact_hypergradient(self, theta: Params) -> Tensor:
        """-(d2 G / dlam dtheta) H^+ grad F at the first lam, flat [n], H built whole [n, n]."""
        lam, inner = self.init_outer(), self.parts["train"]

        def slope(p: Params, t: Params) -> Params:
            return autodiff.grad(lambda x: self.inner_loss(p, x, inner), t, create_graph=True)[1]

        _, (to_lam, to_theta) = autodiff.pullbacks(slope, lam, theta)
        v = autodiff.grad(lambda t: self.outer_loss(lam, t, self.parts["valid"]), theta)[1]
        eye = torch.eye(count_numbers(theta), dtype=torch.float32).to(autodiff.flatten(v))
        h = torch.stack([autodiff.flatten(to_theta(autodiff.unflatten(e, theta))) for e in eye])
        x = torch.linalg.pinv((h + h.t()) / 2, hermitian=True) @ autodiff.flatten(v)
        return -autodiff.flatten(to_lam(autodiff.unflatten(x, theta)))

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Accuracy and loss on the split, and on the images of the other parts."""
        out = self._judged(theta, episode.outer, "")
        for name in ("train", "valid", "test"):
            out |= self._judged(theta, self.parts[name], f"{name}_")
        return out | self._compared(lam, theta) if self.task.against_exact else out

    def _compared(self, lam: Params, theta: Params) -> dict[str, float]:
        true = self.exact_hypergradient(theta)
        step = autodiff.flatten(self.init_outer()) - autodiff.flatten(lam)
        sizes = step.norm() * true.norm()
        return {
            "cosine": float(step @ true / sizes) if sizes > 0 else 0.0,
            "distance": float((step - true).norm() / true.norm()),
        }

    def _judged(self, theta: Params, batch: Batch, prefix: str) -> dict[str, float]:
        logits = self.logits(theta, batch["x"])
        return {
            f"{prefix}accuracy": float((logits.argmax(1) == batch["y"]).double().mean()),
            f"{prefix}loss": float(F.cross_entropy(logits, batch["y"])),
        }
