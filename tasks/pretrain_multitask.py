"""Pre-training on CIFAR-100's superclasses, some with corrupted labels, for one with few labels.

After the multitask experiments of Raghu et al.: Meta-learning to Improve Pre-training, NeurIPS
2021, arXiv 2111.01754, which are on protein graphs. A superclass is a task: tell its five classes
apart. The encoder is shared, every pre-training task has a head; one superclass is held out for
fine-tuning (two with ``unseen``: lam is learned for one and theta judged on the other). Differs:
images for graphs, labels that are corrupted on purpose, one fine-tuning task for forty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.method import Positive
from metabench.contract.problem import Batch, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import cifar100 as cifar
from .data.images import shrunk
from .data.left_over import kept, lacks_kept
from .families.pretraining.task_weights import (
    WeighedTasks,
    WeighedTasksProblem,
    split_tasks,
    task_weights,
)
from .families.pretraining.two_stage import ENCODER, Count, Share, three_roles
from .models.encoders import ResNet, first_values

WAYS = 5
"""Classes of a superclass."""


@task("pretrain_multitask")
@dataclass(frozen=True)
class PretrainMultitask(WeighedTasks):
    """Pre-training on superclasses of CIFAR-100, some corrupted: one weight a task, few labels."""

    source: cifar.Source = "torchvision"
    """All 600 images of a class, or the 160 that the layout "metabench" has of each. Results of
    the two are not comparable, so nothing is chosen unasked."""
    n_tasks: Annotated[int, Field(ge=2, le=19)] = 16
    """Superclasses to pre-train on."""
    corrupted: Share = 0.5
    """Part of the tasks whose labels are redrawn."""
    redrawn: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of a corrupted task's labels that is redrawn, uniformly from its five classes."""
    unseen: bool = False
    """Judge on another superclass than lam is learned for."""
    n_pretrain: Count = 120
    """Images of a class to pre-train on."""
    n_tune: Count = 10
    """Images of a class to fine-tune on."""
    n_valid: Count = 20
    """Images of a class for the outer loss."""
    n_test: Count = 100
    """Images of a class to test on."""
    batch: Count = 4
    """Images of a task in an inner step."""
    width: Count = 16
    stages: Count = 3
    blocks: Count = 1
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""

    tune_lr: Positive = 0.1
    final_lr: Positive = 0.1
    final_steps: Count = 200

    data: ClassVar[tuple[str, ...]] = ("cifar100",)

    def __post_init__(self) -> None:
        if self.unseen and self.n_tasks > 18:
            raise ValueError("unseen holds out two of the 20 superclasses: n_tasks is at most 18")

    @property
    def lacks_selection(self) -> str | None:
        """Images of each class that the parts leave over are kept for it."""
        wanted = self.n_tune + self.n_valid + self.n_test
        return lacks_kept(self.n_valid, cifar.IMAGES[self.source] - wanted)

    def build(self, seeds: Seeds, device: torch.device) -> PretrainMultitaskProblem:
        """Draw superclasses, images and labels. Raises DataMissing, SettingError."""
        images = cifar.images(self.source, {"all": cifar.NAMES}, "all")
        return PretrainMultitaskProblem(self, seeds, device, images)


class PretrainMultitaskProblem(WeighedTasksProblem):
    """Pre-training batches: ``x`` [tasks, n, 3, size, size] and ``y`` int64 [tasks, n].

    ``superclasses``: names of those pre-trained on, ``held_out``: of the fine-tuned ones; ``right``
    bool [tasks, images of a task]: labels that are true.
    """

    classes = WAYS

    def __init__(
        self, task: PretrainMultitask, seeds: Seeds, device: torch.device, images: Tensor
    ) -> None:
        """``images``: uint8 [100, images of a class, 3, 32, 32]."""
        super().__init__(task, seeds, device, split_tasks(task.n_tasks, task.corrupted))
        self.task = task
        per_class = images.shape[1]
        wanted = task.n_tune + task.n_valid + task.n_test
        if max(wanted, task.n_pretrain) > per_class:
            raise SettingError(
                f"task pretrain_multitask: n_pretrain is {task.n_pretrain}, n_tune + n_valid + "
                f"n_test {wanted}; a class has {per_class} images"
            )
        self.encoder = ResNet(2, 3, task.width, task.stages, task.blocks)
        self.feature_size = self.encoder.feature_size
        gen = generator(seeds.data, "pretrain_multitask")
        names = list(cifar.SUPERCLASSES)
        order = [names[i] for i in torch.randperm(len(names), generator=gen).tolist()]
        held_out = 2 if task.unseen else 1
        self.held_out = order[:held_out]
        self.superclasses = order[held_out : held_out + task.n_tasks]

        def drawn(name: str, n: int) -> Tensor:
            """[5, n, 3, size, size], values around 0."""
            members = [cifar.NAMES.index(member) for member in cifar.SUPERCLASSES[name].split()]
            picked = [images[c, torch.randperm(per_class, generator=gen)[:n]] for c in members]
            x = torch.stack(picked).to(self.dtype) / 127.5 - 1
            small: Tensor = shrunk(x.flatten(0, 1), task.shrink).unflatten(0, (WAYS, n))
            return small.to(device)

        self.x = torch.stack([drawn(s, task.n_pretrain).flatten(0, 1) for s in self.superclasses])
        true = torch.arange(WAYS, device=device).repeat_interleave(task.n_pretrain)
        true = true.expand(task.n_tasks, -1)
        noise = torch.randint(WAYS, true.shape, generator=gen).to(device)
        swapped = (torch.rand(true.shape, generator=gen, dtype=torch.float32) < task.redrawn).to(
            device
        )
        self.y = torch.where(self.useless[:, None] & swapped, noise, true)
        self.right = self.y == true

        cuts = [task.n_tune, task.n_valid, task.n_test]
        if n := kept(task.n_valid, per_class - wanted):
            cuts.append(n)
        each = [
            [examples(part) for part in drawn(s, sum(cuts)).split(cuts, 1)] for s in self.held_out
        ]
        self.roles = three_roles(*each[0])
        if task.unseen:
            self.roles["test"] = three_roles(*each[1])["test"]

    def first_weights(self) -> Params:
        """An encoder, and heads: ``pretrain.weight`` [tasks, 5, features], ``bias`` [tasks, 5]."""
        gen = generator(self.seeds.init, "pretrain_multitask")
        drawn = first_values(self.encoder.shapes(), gen, self.dtype)
        theta = {f"{ENCODER}{k}": v.to(self.device) for k, v in drawn.items()}
        shape = (self.task.n_tasks, WAYS, self.feature_size)
        head = torch.randn(shape, generator=gen, dtype=torch.float64) / shape[2] ** 0.5
        theta["pretrain.weight"] = head.to(self.device, self.dtype)
        theta["pretrain.bias"] = theta["pretrain.weight"].new_zeros(shape[:2])
        return theta

    def encode(self, theta: Params, x: Tensor) -> Tensor:
        """[n, features] of images [n, 3, size, size]."""
        return self.encoder.features(theta, x, ENCODER)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [tasks, n, 5]."""
        x = batch["x"]
        features: Tensor = self.encode(theta, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        weight, bias = theta["pretrain.weight"], theta["pretrain.bias"]
        return features @ weight.transpose(1, 2) + bias[:, None]

    def pretraining_loss(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """mean over tasks and images of w_t CE."""
        each = F.cross_entropy(prediction.flatten(0, 1), batch["y"].flatten(), reduction="none")
        each = each.view(batch["y"].shape)
        return (each.mean(1) * task_weights(lam)).mean()

    def pretraining(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """Some images of every task, drawn for every step."""
        tasks, n = self.y.shape
        size = min(self.task.batch, n)
        rows = torch.arange(tasks, device=self.device)[:, None]

        def drawn(t: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, t)
            chosen = torch.randint(n, (tasks, size), generator=gen).to(self.device)
            return {"x": self.x[rows, chosen], "y": self.y[rows, chosen]}

        return drawn


def examples(part: Tensor) -> Batch:
    """Images [5, n, ...] as examples of five classes."""
    y = torch.arange(len(part), device=part.device).repeat_interleave(part.shape[1])
    return {"x": part.flatten(0, 1), "y": y}
