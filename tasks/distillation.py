"""Dataset distillation: a few synthetic images on which a network learns to tell real ones.

Wang, Zhu, Torralba, Efros: Dataset Distillation, 2018, arXiv 1811.10959. lam = the pixels of
``batches`` batches of ``per_class`` images a class, and on request a step size for every inner
step. Inner loss: the cross-entropy on batch t mod ``batches`` at step t; outer loss: that on real
images. lam enters through what theta is trained on, and no penalty.

With network "linear", weights of zero, one image a class and one step of size eta,
W_k = (eta / 10) (x_k - mean x): the images x_k = (10 / eta) (W_k - mean W) make any classifier W,
and the least outer loss is that of logistic regression without bias. Step sizes are factors of the
inner loss, exp(log_rate), so that the step of plain descent is ``inner_lr`` times as long; the
authors' code has softplus in the place of exp. Differs from the authors' code further: a validation
part of the training images is kept to choose the state by.
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
from .models.classifier import Classifier
from .models.lenet import LeNet

Count = Annotated[int, Field(ge=1)]


@task("distillation")
@dataclass(frozen=True)
class Distillation(OfImages):
    """Dataset distillation (Wang 2018): lam = images from which a network learns in few steps."""

    network: Literal["linear", "mlp", "cnn", "lenet"] = "linear"
    """"linear" has no bias and starts from weights of zero; "lenet" is the paper's."""
    width: Count = 32
    """Units of the MLP's one layer, or filters of the CNN's first."""
    start: Literal["fixed", "random"] = "fixed"
    """The network's first weights: always the same ones, or new ones in every episode."""
    per_class: Count = 1
    """Synthetic images a class in a batch."""
    batches: Count = 1
    """Synthetic batches, which inner steps go through again and again."""
    rates: Annotated[int, Field(ge=0)] = 0
    """Inner steps whose size is learned, as a factor of ``inner_lr``; later ones have the last."""
    first: Literal["noise", "real", "mean", "logistic"] = "noise"
    """The first lam: standard normal pixels, a real image each, the mean of its class, or the
    images that make logistic regression on the training part: the answer for network "linear"
    and one step of size 1."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """The inner loss has l2 / 2 times the squared norm of theta added (none in the paper)."""
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    batch: Count = 512
    """Real images of an outer step in training (1,024 in the paper's code)."""
    n_train: Count = 50_000
    n_valid: Count = 5_000
    n_test: Count = 10_000
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    lacks: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("small_lam", "search_space"),
            "lam is the pixels of images: too many scalars to search in, without bounds",
        ),
        "lam_is_initialisation": "lam is what theta is trained on, not where it starts",
    }
    lacks_selection: ClassVar[str] = (
        "its outer level does not learn on the split 'valid', which serves"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "linear" and self.start == "random":
            raise ValueError("network linear starts from weights of zero: set start to fixed")
        if self.first == "logistic" and self.network != "linear":
            raise ValueError(f"first logistic is for network linear, not for {self.network}")
        if self.batch > self.n_train:
            raise ValueError(f"a batch of {self.batch} from {self.n_train} training images")

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, lam in the inner loss, and episodes."""
        return GRADIENTS | {"lam_in_inner_loss", "episodes"}

    def build(self, seeds: Seeds, device: torch.device) -> DistillationProblem:
        """Cut the parts. Raises DataMissing."""
        return DistillationProblem(self, seeds, device, self.images())


class DistillationProblem(Problem):
    """``parts``: split to images "x" [n, channels, height, width], with mean 0 and deviation 1 over
    all pixels of the training part, and labels "y" int64 [n]. lam: "images" [batches, 10 *
    per_class, channels, height, width], labels in order, and "log_rate" [rates]. An inner batch is
    "step" [1], its number."""

    def __init__(
        self, task: Distillation, seeds: Seeds, device: torch.device, images: Images
    ) -> None:
        """``images``: "train" and "test" to images [n, channels, height, width] and labels [n]."""
        self.task, self.seeds, self.device = task, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        (x, y), (test_x, test_y) = images["train"], images["test"]
        wanted = task.n_train + task.n_valid
        enough("distillation", task.dataset, "n_train + n_valid", wanted, len(x))
        enough("distillation", task.dataset, "n_test", task.n_test, len(test_x))
        order = torch.randperm(len(x), generator=generator(seeds.data, "distillation"))[:wanted]
        train, valid = order.split([task.n_train, task.n_valid])
        scale = shrunk(x[train], task.shrink).double()
        middle, deviation = scale.mean(), scale.std(correction=0)
        self.parts: dict[str, Batch] = {}
        for split, xs, ys in (
            ("train", x[train], y[train]),
            ("valid", x[valid], y[valid]),
            ("test", test_x[: task.n_test], test_y[: task.n_test]),
        ):
            small = (shrunk(xs, task.shrink).double() - middle) / deviation
            self.parts[split] = {"x": small.to(device, self.dtype), "y": ys.to(device)}
        c, h, w = self.parts["train"]["x"].shape[1:]
        self.model: Classifier | LeNet
        if task.network == "lenet":
            self.model = LeNet((c, h, w), CLASSES)
        else:
            self.model = Classifier(task.network, (c, h, w), task.width, CLASSES)
        self.labels = torch.arange(CLASSES, device=device).repeat_interleave(task.per_class)

    def init_outer(self) -> Params:
        """images, and log_rate of 0."""
        task, real = self.task, self.parts["train"]
        gen = generator(self.seeds.init, "distillation images")
        n, of = len(self.labels), tuple(real["x"].shape[1:])
        if task.first == "noise":
            x = torch.randn(task.batches, n, *of, generator=gen, dtype=torch.float64)
            x = x.to(self.device, self.dtype)
        elif task.first == "logistic":
            w = logistic_regression(real["x"].flatten(1).double(), real["y"])
            made = (CLASSES * (w - w.mean(0))).reshape(CLASSES, *of).to(self.dtype)
            x = made[self.labels].repeat(task.batches, 1, 1, 1, 1)
        else:
            x = real["x"].new_zeros(task.batches, n, *of)
            for at, label in enumerate(self.labels.tolist()):
                mine = real["x"][real["y"] == label]
                for one in x:
                    picked = mine[torch.randint(len(mine), (), generator=gen)]
                    one[at] = mine.mean(0) if task.first == "mean" else picked
        return {"images": x} | ({"log_rate": x.new_zeros(task.rates)} if task.rates else {})

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The weights that the episode brings along."""
        prefix = "start."
        held = episode.outer.items()
        return {k.removeprefix(prefix): v.clone() for k, v in held if k.startswith(prefix)}

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of images [n, channels, height, width]."""
        if self.task.network == "linear":
            return F.linear(x.flatten(1), theta["head.weight"])
        return self.model.logits(theta, x)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the step's synthetic batch, the penalty, times the step's rate."""
        task, step = self.task, batch["step"]
        x = lam["images"][step % task.batches][0]
        loss = F.cross_entropy(self.logits(theta, x), self.labels)
        if task.l2:
            norm = torch.stack([v.square().sum() for v in theta.values()]).sum()
            loss = loss + 0.5 * task.l2 * norm
        if task.rates:
            loss = lam["log_rate"][step.clamp(max=task.rates - 1)][0].exp() * loss
        return loss

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on real images."""
        return F.cross_entropy(self.logits(theta, batch["x"]), batch["y"])

    def first_weights(self, *address: int | str) -> Params:
        """A network's, by address; weights of zero where it is linear."""
        weights = self.model.draw(generator(self.seeds.init, "distillation", *address))
        if self.task.network == "linear":
            weights = {"head.weight": torch.zeros_like(weights["head.weight"]).flatten(1)}
        return {f"start.{k}": v.to(self.device, self.dtype) for k, v in weights.items()}

    def episode(self, split: str, index: int) -> Episode:
        """A network, and real images: some of the training part, or all of another."""
        address = (split, index) if self.task.start == "random" else ()
        outer = self.parts[split]
        if split == "train" and self.task.batch < self.task.n_train:
            gen = generator(self.seeds.batches, "distillation", index)
            rows = torch.randperm(self.task.n_train, generator=gen)[: self.task.batch]
            outer = {k: v[rows.to(self.device)] for k, v in outer.items()}

        def inner(step: int) -> Batch:
            return {"step": torch.tensor([step], device=self.device)}

        return Episode(inner, outer | self.first_weights(*address), index)

    def count(self, split: str) -> int | None:
        """One where the network is always the same; training ends never where batches differ."""
        differ = split == "train" and self.task.batch < self.task.n_train
        return None if differ or self.task.start == "random" else 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on real images."""
        logits, y = self.logits(theta, episode.outer["x"]), episode.outer["y"]
        return {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(F.cross_entropy(logits, y)),
        }

    def pictures(self, lam: Params, theta: Params, episode: Episode) -> Params:
        """The first synthetic image of every class, each from its darkest to its lightest pixel."""
        out = {}
        for label in range(CLASSES):
            grey = lam["images"][0, label * self.task.per_class].mean(0)
            low, high = grey.min(), grey.max()
            out[f"class {label}"] = (grey - low) / (high - low).clamp(min=1e-12)
        return out


def logistic_regression(x: Tensor, y: Tensor, decay: float = 1e-6, steps: int = 120) -> Tensor:
    """W [10, features], without bias, of least mean cross-entropy on rows x [n, features] and
    labels y [n], plus decay / 2 times its squared norm: after ``steps`` of L-BFGS from zero."""
    w = x.new_zeros(CLASSES, x.shape[1]).requires_grad_()
    rule = torch.optim.LBFGS(
        [w], max_iter=steps, tolerance_grad=1e-9, tolerance_change=0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        rule.zero_grad()
        value = F.cross_entropy(F.linear(x, w), y) + 0.5 * decay * w.square().sum()
        value.backward()
        return value

    rule.step(closure)
    return w.detach()
