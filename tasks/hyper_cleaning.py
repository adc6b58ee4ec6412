"""Data hyper-cleaning: a weight for every training example, half of whose labels were redrawn.

Franceschi, Donini, Frasconi, Pontil, ICML 2017; settings of Shen, Chen: On Penalty-based Bilevel
Gradient Descent Method, ICML 2023, section 6.2 and the authors' code. Inner loss
mean_i sigmoid(x_i) CE_i(theta) on the training part with its labels as they are, outer loss the
mean CE on a validation part with right labels. All three parts are cut from the training images.

A redrawn ("polluted") label comes uniformly from all ten classes, as in the authors' code: one in
ten of them is the right one by chance. "clean" below means nominally so, never redrawn; the share
of right labels among the redrawn is the metric ``polluted_but_right``, and ``f1_right`` counts
examples with right labels as clean. With ``exact`` a metric is what the benchmark of single-loop
methods plots (Dagreou, Ablin, Vaiter, Moreau, NeurIPS 2022, arXiv 2201.13409): the squared norm of
the hypergradient at the exact inner minimum. Differs from the paper's code: test accuracy is that
of the state that the validation part selects, not the best along the run.
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
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import task
from metabench.hypergradients import reference

from .data.images import CLASSES, OfImages, shrunk
from .data.left_over import with_selection
from .models import softmax
from .models.classifier import first_weights, layered

SURE = 40.0
"""A logit whose sigmoid is 1 (or, negated, nearly 0) in float32."""

Count = Annotated[int, Field(ge=1)]


@task("hyper_cleaning")
@dataclass(frozen=True)
class HyperCleaning(OfImages):
    """Data hyper-cleaning: one weight a training example, half of whose labels were redrawn."""

    network: Literal["linear", "mlp"] = "linear"
    hidden: Count = 300
    """Units of the MLP's one sigmoid layer."""
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    n_train: Count = 5000
    n_valid: Count = 5000
    n_test: Count = 10000
    polluted: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of the training labels that is redrawn."""
    weights: Literal["even", "clean"] = "even"
    """The first lam: every weight 1/2, or 1 for examples that were never polluted and 0 for the
    others. With method ``fixed`` the latter is perfect cleaning; theta of a penalty method may pass
    it, since it is fitted to the validation part too."""
    batch: Count | None = None
    """Training examples of an inner step; None: all."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """The inner loss has l2 / 2 times the squared norm of theta added (none in the paper)."""
    carried: bool = True
    """One training along the run; False: every outer step trains from the same fresh weights."""
    dtype: Literal["float32", "float64"] = "float32"
    fresh: bool = settings.later(False)
    """Every training episode starts from a random network of its own, as in the authors' code of
    RHG (``carried`` must be False); evaluation from the same one."""
    outer_batch: Count | None = settings.later(None)
    """Validation examples of an outer step, drawn with replacement; None: all."""
    exact: bool = settings.later(False)
    """The metric ``hypergradient_square``, too: |d/dlam F(lam, theta*(lam))|^2 over all training
    and all validation examples, theta* by Newton's method. For a linear network of up to about a
    thousand float64 weights, with ``l2``."""

    metric: ClassVar[str] = "accuracy"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("small_lam", "search_space"),
            "lam has a weight for every training example: too many scalars to search in",
        ),
        "best_response": "with minibatches, or with a new network every time, every training "
        "episode is another inner problem",
        "per_example_lam": "an example has a weight of its own already: it cannot see another lam",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch is not None and self.batch > self.n_train:
            raise ValueError(f"a batch of {self.batch} from {self.n_train} training examples")
        if self.outer_batch is not None and self.outer_batch > self.n_valid:
            raise ValueError(f"outer_batch = {self.outer_batch} of {self.n_valid} examples")
        if self.exact and (self.network, self.dtype, self.l2 > 0) != ("linear", "float64", True):
            raise ValueError(
                "exact needs a strictly convex inner loss in float64: network linear, l2 above 0 "
                "and dtype float64"
            )
        if self.fresh and self.carried:
            raise ValueError("fresh starts a new network every time: set carried to false")

    @property
    def taken(self) -> int:
        """Test images are cut from the training images too."""
        return self.n_train + self.n_valid + self.n_test

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, a network with a head, episodes where theta starts anew, and with batches
        examples by number."""
        own = {"lam_in_inner_loss", "head", "module"}
        if self.batch is not None:
            own.add("example_losses")
        if self.batch is None and self.outer_batch is None and not self.fresh:
            own.add("best_response")
        return GRADIENTS | (own if self.carried else own | {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> HyperCleaningProblem:
        """Draw the parts, redraw labels, draw the first weights."""
        return HyperCleaningProblem(self, seeds, device, self.images()["train"])


class HyperCleaningProblem(Problem):
    """``parts``: split to images "x" [n, pixels] in 0..1 and labels "y" int64 [n]; ``clean`` and
    ``right`` bool [n_train]. lam: ``logit`` [n_train]. theta: weights and biases of ``head`` and,
    for the MLP, ``hidden``."""

    head = ("head.weight", "head.bias")
    module: nn.Module

    def __init__(
        self, task: HyperCleaning, seeds: Seeds, device: torch.device, given: tuple[Tensor, Tensor]
    ) -> None:
        """``given``: images [n, channels, height, width] and labels [n] to cut the parts from."""
        self.task, self.seeds, self.carried, self.device = task, seeds, task.carried, device
        dtype = getattr(torch, task.dtype)
        self.example_count, size = task.n_train, task.outer_batch
        self.outer_blocks = 0 if size is None or task.n_valid % size else task.n_valid // size
        images, labels = given
        sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
        if task.taken > len(images):
            raise SettingError(
                f"task hyper_cleaning: n_train + n_valid + n_test is {task.taken}; {task.dataset} "
                f"has {len(images)} training images"
            )
        gen = generator(seeds.data, "hyper_cleaning")
        sizes = with_selection(sizes, len(images))
        order = torch.randperm(len(images), generator=gen)[: sum(sizes.values())]
        self.parts: dict[str, Batch] = {}
        for split, chosen in zip(sizes, order.split([*sizes.values()]), strict=True):
            x = shrunk(images[chosen], task.shrink).flatten(1).to(device, dtype)
            self.parts[split] = {"x": x, "y": labels[chosen].to(device)}

        train = self.parts["train"]
        redrawn = int(task.polluted * task.n_train)
        noise = torch.randint(CLASSES, (redrawn,), generator=gen).to(device)
        self.clean = torch.arange(task.n_train, device=device) >= redrawn
        true = train["y"]
        train["y"] = torch.cat([noise, true[redrawn:]])
        self.right = train["y"] == true

        hidden = task.hidden if task.network == "mlp" else None
        x = train["x"]
        self.module = layered(x.shape[1], hidden, nn.Sigmoid(), CLASSES, x)
        self.start = first_weights(self.module, generator(seeds.init, "hyper_cleaning"))
        self.module.load_state_dict(self.start)
        self.hypers = (
            Hyper("logit", (task.n_train,), meaning="logit of each training example's weight"),
        )

    def init_outer(self) -> Params:
        """logit [n_train]: 0, or the bound's."""
        zero = self.parts["train"]["x"].new_zeros(self.task.n_train)
        if self.task.weights == "even":
            return {"logit": zero}
        return {"logit": torch.where(self.clean, zero + SURE, zero - SURE)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The episode's own first weights where it has some, else the same every time."""
        return {k: episode.outer.get(f"start.{k}", v) for k, v in self.start.items()}

    def logits(self, theta: Params, x: Tensor) -> Tensor:
        """[n, 10] of images [n, pixels]."""
        if "hidden.weight" in theta:
            x = F.linear(x, theta["hidden.weight"], theta["hidden.bias"]).sigmoid()
        return F.linear(x, theta["head.weight"], theta["head.bias"])

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """mean_i sigmoid(x_i) CE_i."""
        loss = cross_entropy(self.logits(theta, batch["x"]), batch["y"])
        logit = lam["logit"]
        if "index" in batch:
            logit = logit[batch["index"]]
        value = (logit.sigmoid() * loss).mean()
        return value + self.penalty(theta) if self.task.l2 else value

    def penalty(self, theta: Params) -> Tensor:
        """l2 / 2 |theta|^2."""
        norm = torch.stack([theta[k].square().sum() for k in self.start]).sum()
        return 0.5 * self.task.l2 * norm

    @property
    def examples_per_batch(self) -> int:
        """Training examples of an inner batch."""
        return self.task.batch or self.example_count

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training examples and their places."""
        x, y = (self.parts["train"][k][indices] for k in ("x", "y"))
        return {"x": x, "y": y, "index": indices}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """sigmoid(x_i) CE_i and the penalty of all of theta."""
        logit = lam["logit"][batch["index"]] if "index" in batch else lam["logit"]
        loss = cross_entropy(self.logits(theta, batch["x"]), batch["y"])
        weighted = logit.sigmoid() * loss
        return weighted + self.penalty(theta) if self.task.l2 else weighted

    def outer_block(self, b: int) -> Batch:
        """Validation examples, ``outer_batch`` at a time."""
        size = self.task.outer_batch or self.task.n_valid
        return {k: v[b * size : (b + 1) * size] for k, v in self.parts["valid"].items()}

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on right labels."""
        return cross_entropy(self.logits(theta, batch["x"]), batch["y"]).mean()

    def episode(self, split: str, index: int) -> Episode:
        """Inner batches from the training part; the outer one from the validation part (some of it
        in training, where it is drawn), or the test part for "test"."""
        inner: Batch | Callable[[int], Batch] = self.parts["train"]
        if (size := self.task.batch) is not None:
            train, address = self.parts["train"], (self.seeds.batches, split, index)

            def inner(t: int) -> Batch:
                gen = generator(*address, t)
                chosen = torch.randperm(self.task.n_train, generator=gen)[:size].to(self.device)
                return {"x": train["x"][chosen], "y": train["y"][chosen], "index": chosen}

        outer = self.parts["valid" if split == "train" else split]
        if (judges := self.task.outer_batch) is not None and split == "train":
            gen = generator(self.seeds.batches, split, index, "outer")
            rows = torch.randint(self.task.n_valid, (judges,), generator=gen).to(self.device)
            outer = {k: v[rows] for k, v in outer.items()}
        if self.task.fresh and split == "train":
            first = first_weights(self.module, generator(self.seeds.init, "hyper_cleaning", index))
            outer = outer | {f"start.{k}": v for k, v in first.items()}
        return Episode(inner, outer, index)

    def count(self, split: str) -> int | None:
        """One; training episodes never end where their batches or their first weights differ."""
        task = self.task
        differ = task.batch is not None or task.outer_batch is not None or task.fresh
        return None if split == "train" and differ else 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Loss and accuracy on the split, how well lam tells clean examples, and
        :meth:`hypergradient_square` with ``exact``.

        An example counts as found clean where its logit is 0 or above.
        """
        batch = episode.outer
        logits = self.logits(theta, batch["x"])
        found = lam["logit"] >= 0
        precision, recall, f1 = detection(found, self.clean)
        redrawn = ~self.clean
        more = {"hypergradient_square": self.hypergradient_square(lam)} if self.task.exact else {}
        return {
            "accuracy": float((logits.argmax(1) == batch["y"]).double().mean()),
            "loss": float(cross_entropy(logits, batch["y"]).mean()),
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "f1_right": detection(found, self.right)[2],
            "polluted_but_right": float(self.right[redrawn].double().mean())
            if bool(redrawn.any())
            else 0.0,
            **more,
        }

    def hypergradient_square(self, lam: Params) -> float:
        """|d/dlam F(lam, theta*(lam))|^2 of all training and all validation examples."""
        train = self.parts["train"]
        x, weights = train["x"], lam["logit"].detach().sigmoid() / self.example_count
        padded = torch.cat([x, x.new_ones(len(x), 1)], 1)
        # theta is the weights row by row, then the biases; with them in ``padded`` each row of
        # weights is followed by its bias.
        place = torch.arange(CLASSES * padded.shape[1]).view(CLASSES, -1)
        order = torch.cat([place[:, :-1].flatten(), place[:, -1]])

        def hessian(flat: Tensor) -> Tensor:
            theta = autodiff.unflatten(flat, self.start)
            p = self.logits(theta, x).softmax(1)
            h = softmax.dense_hessian(padded, p, weights)[order][:, order]
            return h + self.task.l2 * torch.eye(len(h), dtype=h.dtype, device=h.device)

        whole = Episode(train, self.parts["valid"], 0)
        known = reference.exact(self, lam, self.start, whole, hessian=hessian)
        return float(autodiff.dot(known.grad, known.grad))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each example [n], logits [n, classes].

    Classes go first for the softmax: over a short last dimension the library's takes as long as
    the product before it, and a plain step a third longer.
    """
    likelihoods = logits.t().log_softmax(0)
    return -likelihoods.gather(0, labels[None])[0]


def detection(found: Tensor, true: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of a detector, bool [n] against bool [n]; 0 where undefined."""
    hits = float((found & true).sum())
    precision = hits / max(float(found.sum()), 1.0)
    recall = hits / max(float(true.sum()), 1.0)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return precision, recall, f1
