"""What tasks share whose training batches are images drawn anew for every inner step.

Inner loss: mean cross-entropy of a network on images that lam changes; outer loss: mean
cross-entropy on validation images as they are.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError

from ...data.images import Images
from ...data.left_over import with_selection


class DrawnImages(Problem):
    """A subclass fills in ``parts`` (split to "x" and "y") and ``size``, the images of a batch.

    Outer batches have ``x`` and ``y`` alone.
    """

    carried = True
    seeds: Seeds
    device: torch.device
    parts: dict[str, Batch]
    size: int

    @abstractmethod
    def draw(self, gen: torch.Generator) -> Batch:
        """A training batch."""

    @abstractmethod
    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, classes] of a training batch under lam."""

    @abstractmethod
    def plain_logits(self, theta: Params, x: Tensor) -> Tensor:
        """Logits [n, classes] of images as they are."""

    def some(self, split: str, gen: torch.Generator) -> Batch:
        """A batch of different images of a part."""
        part = self.parts[split]
        picked = torch.randperm(len(part["y"]), generator=gen)[: self.size].to(self.device)
        return {k: v[picked] for k, v in part.items()}

    def episode(self, split: str, index: int) -> Episode:
        """Training batches drawn anew for every step; in training a validation batch for the outer
        loss, else the whole validation or test part."""

        def inner(step: int) -> Batch:
            return self.draw(generator(self.seeds.batches, split, index, step))

        if split != "train":
            return Episode(inner, self.parts[split], index)
        gen = generator(self.seeds.batches, "outer", index)
        return Episode(inner, self.some("valid", gen), index)

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(prediction, batch["y"])

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on training images under lam."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on images as they are: lam enters through theta alone."""
        return F.cross_entropy(self.plain_logits(theta, batch["x"]), batch["y"])

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on the episode's outer part, images as they are."""
        logits, y = self.plain_logits(theta, episode.outer["x"]), episode.outer["y"]
        return {
            "accuracy": float((logits.argmax(1) == y).double().mean()),
            "loss": float(F.cross_entropy(logits, y)),
        }


def cut(
    task: str, images: Images, sizes: dict[str, int], gen: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and validation part of the shuffled training images, the first test images, and the
    part "selection" of the training images that come next, where so many are left over.

    ``sizes``: images of "train", "valid" and "test". Raises SettingError where there are fewer.
    """
    (x, y), (test_x, test_y) = images["train"], images["test"]
    wanted = sizes["train"] + sizes["valid"]
    if wanted > len(x) or sizes["test"] > len(test_x):
        raise SettingError(
            f"task {task}: n_train + n_valid = {wanted} of {len(x)} training images, "
            f"n_test = {sizes['test']} of {len(test_x)} test images"
        )
    cuts = with_selection({"train": sizes["train"], "valid": sizes["valid"]}, len(x))
    parts = torch.randperm(len(x), generator=gen)[: sum(cuts.values())].split([*cuts.values()])
    chosen = dict(zip(cuts, parts, strict=True))
    out = {split: (x[chosen[split]], y[chosen[split]]) for split in ("train", "valid")}
    out["test"] = test_x[: sizes["test"]], test_y[: sizes["test"]]
    # After the others: what a task draws for each part stays what it was.
    return out | {k: (x[at], y[at]) for k, at in chosen.items() if k not in out}
