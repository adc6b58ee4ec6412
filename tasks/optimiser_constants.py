"""The constants of an optimiser: step size and weight decay, and which optimiser, for small images.

The outer problem of K. Li, F. Li, arXiv 2409.09240, 2024 (cross-entropy search for the constants of
stochastic training), whose data and networks we do not know: these are this project's own. theta is
trained from scratch on minibatches of 7x7 digits, as lam says; the outer loss is the cross-entropy
of validation images. Each episode is a training with first weights and batches of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import InnerRule
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .data.images import CLASSES, Images, OfImages, enough, shrunk
from .data.left_over import with_selection
from .models.classifier import Classifier

Count = Annotated[int, Field(ge=1)]
OPTIMISERS = ("sgd", "momentum", "adam")


@task("optimiser_constants")
@dataclass(frozen=True)
class OptimiserConstants(OfImages):
    """Step size, weight decay and choice of the optimiser that trains a small classifier."""

    tune: Literal["rate and decay", "optimiser"] = "rate and decay"
    """"optimiser": also which of sgd, momentum and adam, and the momentum, which counts only for
    the second. Else it is plain sgd."""
    network: Literal["linear", "mlp"] = "mlp"
    hidden: Count = 32
    """Units of the MLP's one ReLU layer."""
    shrink: Count = 4
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 200
    n_valid: Count = 500
    n_test: Count = 2000
    batch: Count = 20
    """Images of an inner step, drawn with replacement."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
         "best_response", "prediction", "full_batch", "strongly_convex"),
        "lam sets the inner solver: it is searched for, not differentiated",
    )  # fmt: skip

    @property
    def offers(self) -> frozenset[str]:
        """Bounds of a few numbers, and episodes."""
        return frozenset({"search_space", "small_lam", "episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> OptimiserConstantsProblem:
        """Draw the parts. Raises DataMissing."""
        return OptimiserConstantsProblem(self, seeds, device, self.images())


class OptimiserConstantsProblem(Problem):
    """``parts``: split to images "x" [n, channels, height, width] in 0..1 and labels "y" int64 [n].
    lam, float64: "rate" [], "decay" [], and "optimiser" [] (its number), "momentum" []."""

    def __init__(
        self, task: OptimiserConstants, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.kind = {"dtype": getattr(torch, task.dtype), "device": device}
        gen = generator(seeds.data, "optimiser_constants")
        self.parts: dict[str, Batch] = {}
        for source, splits in (("train", ("train", "valid")), ("test", ("test",))):
            x, y = images[source]
            sizes = {split: getattr(task, f"n_{split}") for split in splits}
            named = " + ".join(f"n_{split}" for split in splits)
            enough("optimiser_constants", task.dataset, named, sum(sizes.values()), len(x))
            if source == "train":
                sizes = with_selection(sizes, len(x))
            order = torch.randperm(len(x), generator=gen)[: sum(sizes.values())]
            for split, chosen in zip(sizes, order.split([*sizes.values()]), strict=True):
                part = shrunk(x[chosen], task.shrink).to(**self.kind)
                self.parts[split] = {"x": part, "y": y[chosen].to(device)}
        _, channels, height, width = self.parts["train"]["x"].shape
        self.model = Classifier(task.network, (channels, height, width), task.hidden, CLASSES)
        self.hypers = (
            Hyper("rate", (), 1e-4, 10.0, log=True, meaning="step size"),
            Hyper("decay", (), 1e-6, 1.0, log=True, meaning="weight decay"),
        )
        if task.tune == "optimiser":
            self.hypers += (
                Hyper("optimiser", (), choices=OPTIMISERS, meaning="inner solver"),
                Hyper("momentum", (), 0.0, 0.99, only_if=("optimiser", ("momentum",))),
            )

    def init_outer(self) -> Params:
        """Plain sgd with step size 0.1 and decay 1e-4."""
        first = {"rate": 0.1, "decay": 1e-4, "optimiser": 0.0, "momentum": 0.9}
        at = self.device
        return {
            h.name: torch.tensor(first[h.name], dtype=torch.float64, device=at) for h in self.hypers
        }

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Weights of the episode's own."""
        return {k: v.clone() for k, v in self.start(episode).items()}

    def start(self, episode: Episode) -> Params:
        """The first weights, which the episode brings along."""
        return {name: episode.outer[f"start.{name}"] for name in self.model.names}

    def inner_rule(self, lam: Params) -> InnerRule:
        """Step size, solver and momentum of lam."""
        chosen = OPTIMISERS[int(lam["optimiser"])] if "optimiser" in lam else "sgd"
        own = {"momentum": float(lam["momentum"])} if chosen == "momentum" else {}
        return InnerRule(float(lam["rate"]), chosen, own)

    def diagonal_penalty(self, lam: Params) -> Params:
        """The decay, on weights and not on biases."""
        decay = lam["decay"].to(self.kind["dtype"])
        return {name: decay for name in self.model.names if name.endswith("weight")}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.model.logits(theta, batch["x"]), batch["y"])

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy and decay / 2 times the sum of the squared weights."""
        squares = [(c * theta[k].square()).sum() for k, c in self.diagonal_penalty(lam).items()]
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * torch.stack(squares).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return self.unpenalised_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """A training of its own; judged on the split's images, in training on those of "valid"."""
        address = (self.seeds.batches, split, index)
        gen = generator(self.seeds.init, "optimiser_constants", split, index)
        start = {f"start.{k}": v.to(**self.kind) for k, v in self.model.draw(gen).items()}
        judge = self.parts["valid" if split == "train" else split]

        def batch(step: int) -> Batch:
            n = len(self.parts["train"]["y"])
            rows = torch.randint(n, (self.task.batch,), generator=generator(*address, step))
            return {k: v[rows.to(v.device)] for k, v in self.parts["train"].items()}

        return Episode(batch, judge | start, index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Cross-entropy and accuracy."""
        scores = self.model.logits(theta, episode.outer["x"])
        y = episode.outer["y"]
        return {
            "loss": float(F.cross_entropy(scores, y)),
            "accuracy": float((scores.argmax(1) == y).double().mean()),
        }
