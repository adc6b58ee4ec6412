"""Pre-training on twenty binary tasks, half of them with random labels: weights must tell which.

A small case of multitask pre-training after Raghu et al.: Meta-learning to Improve Pre-training,
NeurIPS 2021, arXiv 2111.01754, made for this project. Inputs are normal [16]; two directions of
them make an angle a. A useful task asks whether cos(2a - phase) > 0, the fine-tuned one too, under
phases of their own: all follow from the same two features, cos 2a and sin 2a, neither of them
linear. A useless task's labels are coins, tossed once for each example, so that a network can
learn them by heart only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .families.pretraining.task_weights import (
    WeighedTasks,
    WeighedTasksProblem,
    split_tasks,
    task_weights,
)
from .families.pretraining.two_stage import ENCODER, Count, Share, three_roles
from .models.encoders import MLP, first_values


@task("pretrain_synthetic")
@dataclass(frozen=True)
class PretrainSynthetic(WeighedTasks):
    """Pre-training on 20 binary tasks, half with random labels: one weight a task, few labels."""

    n_tasks: Annotated[int, Field(ge=2)] = 20
    useless: Share = 0.5
    """Part of the tasks whose labels are coins."""
    spread: Share = 0.25
    """Phases of useful tasks lie within this part of a half turn from the fine-tuned one's."""
    inputs: Annotated[int, Field(ge=2)] = 16
    hidden: Count = 32
    features: Count = 8
    """What the heads see: few, so that tasks compete for them."""
    n_pretrain: Count = 400
    n_tune: Annotated[int, Field(ge=2)] = 20
    n_valid: Annotated[int, Field(ge=2)] = 40
    n_test: Annotated[int, Field(ge=2)] = 2000
    batch: Count | None = None
    """Pre-training examples of an inner step, labelled for every task; None: all."""

    data: ClassVar[tuple[str, ...]] = ()
    lacks_selection: ClassVar[None] = None

    def build(self, seeds: Seeds, device: torch.device) -> PretrainSyntheticProblem:
        """Draw directions, phases and examples."""
        return PretrainSyntheticProblem(self, seeds, device)


class PretrainSyntheticProblem(WeighedTasksProblem):
    """Pre-training batches: ``x`` [n, inputs], ``y`` [n, tasks] of zeros and ones."""

    classes = 2

    def __init__(self, task: PretrainSynthetic, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device, split_tasks(task.n_tasks, task.useless))
        self.task = task
        self.encoder = MLP(task.inputs, (task.hidden, task.features))
        self.feature_size = task.features
        gen = generator(seeds.data, "pretrain_synthetic")
        plane = torch.linalg.qr(torch.randn(task.inputs, 2, generator=gen, dtype=torch.float64))[0]
        off = 2 * torch.rand(task.n_tasks + 1, generator=gen, dtype=torch.float64) - 1
        off[-1] = 0
        phases = math.pi * task.spread * off

        def draw(n: int) -> tuple[Tensor, Tensor]:
            """Inputs [n, inputs] and the labels [n, tasks + 1] of useful tasks."""
            x = torch.randn(n, task.inputs, generator=gen, dtype=torch.float64)
            z = x @ plane
            angle = 2 * torch.atan2(z[:, 1], z[:, 0])
            return x, torch.cos(angle[:, None] - phases) > 0

        x, right = draw(task.n_pretrain)
        coins = torch.rand(task.n_pretrain, task.n_tasks, generator=gen, dtype=torch.float32) < 0.5
        y = torch.where(split_tasks(task.n_tasks, task.useless), coins, right[:, :-1])
        self.examples = {"x": x.to(device, self.dtype), "y": y.to(device, self.dtype)}
        parts = []
        for n in (task.n_tune, task.n_valid, task.n_test, task.n_valid):
            x, right = draw(n)
            parts.append({"x": x.to(device, self.dtype), "y": right[:, -1].long().to(device)})
        self.roles = three_roles(*parts)

    def first_weights(self) -> Params:
        """An encoder, and the heads ``pretrain.weight`` [tasks, features] and bias."""
        gen = generator(self.seeds.init, "pretrain_synthetic")
        drawn = first_values(self.encoder.shapes(), gen, self.dtype)
        theta = {f"{ENCODER}{k}": v.to(self.device) for k, v in drawn.items()}
        shape = (self.task.n_tasks, self.feature_size)
        head = torch.randn(shape, generator=gen, dtype=torch.float64) / shape[1] ** 0.5
        theta["pretrain.weight"] = head.to(self.device, self.dtype)
        theta["pretrain.bias"] = theta["pretrain.weight"].new_zeros(shape[0])
        return theta

    def encode(self, theta: Params, x: Tensor) -> Tensor:
        """[n, features]."""
        return self.encoder.features(theta, x, ENCODER)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, tasks]."""
        features = self.encode(theta, batch["x"])
        return F.linear(features, theta["pretrain.weight"], theta["pretrain.bias"])

    def pretraining_loss(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """mean over examples and tasks of w_t BCE."""
        each = F.binary_cross_entropy_with_logits(prediction, batch["y"], reduction="none")
        return (each.mean(0) * task_weights(lam)).mean()

    def pretraining(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """All examples, or a draw for every step."""
        size, n = self.task.batch, self.task.n_pretrain
        if size is None or size >= n:
            return self.examples

        def drawn(t: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, t)
            chosen = torch.randperm(n, generator=gen)[:size].to(self.device)
            return {k: v[chosen] for k, v in self.examples.items()}

        return drawn
