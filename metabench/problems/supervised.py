"""A user's model on a user's data: decays, weights of examples, augmentations are learned.

    min over lam of  mean_i l_i(theta*) on validation examples,
    theta*(lam) a minimiser of  mean_i w_i l_i(theta) + 1/2 sum_j c_j theta_j^2  on training ones

with what lam is in it as :mod:`metabench.problems.learnables` says. In training images are
augmented and the model's dropout drops; validation and test see images as they are and the whole
model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metabench.contract.declared import Evidence
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.problems import dropout
from metabench.problems.given import Given
from metabench.problems.learnables import Model, Own


class SupervisedProblem(Problem):
    """``parts``: split to ``x`` [n, ...] and ``y`` [n, ...]; the training part has ``index`` int64
    [n] too. Inner batches have the numbers that augmentation and dropout take besides. theta: the
    parameters that the model trains, by their names. lam: as the parts of it say."""

    def __init__(
        self,
        given: Given,
        seeds: Seeds,
        device: torch.device,
        *,
        carried: bool,
        batch_size: int | None,
        outer_batch_size: int | None,
    ) -> None:
        """``batch_size``, ``outer_batch_size``: examples of an inner step and of the outer loss of
        an outer step; None: all."""
        self.seeds, self.device, self.carried = seeds, device, carried
        self.batch_size, self.outer_batch_size = batch_size, outer_batch_size
        self.full_batch = batch_size is None and not given.is_random
        self.network = given.network(seeds, device)
        self.judge, self.learned = given.judge, given.learned
        self.own = next((part for part in given.learned if isinstance(part, Own)), None)
        self.parts: dict[str, Batch] = {
            k: {name: v.to(device) for name, v in part.batch.items()}
            for k, part in given.splits.items()
        }
        train = self.parts["train"]
        self.example_count = len(train["y"])
        train["index"] = torch.arange(self.example_count, device=device)
        self.head, self.module = given.head, self.network.module
        self.hypers = tuple(h for part in given.learned for h in part.hypers)
        self.evaluations = given.evaluations
        self.dtype = given.dtype

    @property
    def examples_per_batch(self) -> int:
        """Those of a batch, or all."""
        return self.example_count if self.batch_size is None else self.batch_size

    def init_outer(self) -> Params:
        """The first values of every part."""
        first = {k: v for part in self.learned for k, v in part.first.items()}
        return {k: v.to(self.device).clone() for k, v in first.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The model's first parameters, the same every time."""
        return dict(self.network.start)

    def inputs(self, lam: Params, batch: Batch) -> Tensor:
        """What the model sees of a training batch."""
        x = batch["x"]
        for part in self.learned:
            x = part.inputs(lam, batch, x)
        return x

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Of a training batch, augmented [n, ...]."""
        return self.network(theta, self.inputs(lam, batch), dropout.dropout_of(batch))

    def weighted(self, lam: Params, batch: Batch, losses: Tensor) -> Tensor:
        """What stands in the mean for losses [n]."""
        for part in self.learned:
            losses = part.weighted(lam, batch, losses)
        return losses

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """w_i l_i of each training example [n]; of a function of the user's in the place of l."""
        if self.own is not None:
            model = Model(partial(self.network, dropout=dropout.dropout_of(batch)), theta)
            losses = self.own.losses(lam, model, self.inputs(lam, batch), batch["y"])
        else:
            losses = self.judge.loss(self.predict(lam, theta, batch), batch["y"])
        return self.weighted(lam, batch, losses)

    def diagonal_penalty(self, lam: Params) -> Params | None:
        """The decays, where they are learned."""
        return {k: v for part in self.learned for k, v in part.penalty(lam).items()} or None

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """mean_i w_i l_i."""
        return self.example_losses(lam, theta, batch).mean()

    def penalised(self, value: Tensor, lam: Params, theta: Params) -> Tensor:
        """With 1/2 sum c theta^2 added."""
        parts = [
            (c * theta[k].square()).sum() for k, c in (self.diagonal_penalty(lam) or {}).items()
        ]
        return value + 0.5 * torch.stack(parts).sum() if parts else value

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """mean_i w_i l_i + 1/2 sum c theta^2."""
        return self.penalised(self.unpenalised_loss(lam, theta, batch), lam, theta)

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """The inner loss of what :meth:`predict` gives."""
        losses = self.weighted(lam, batch, self.judge.loss(prediction, batch["y"]))
        return self.penalised(losses.mean(), lam, theta)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """mean_i l_i on examples as they are."""
        return self.judge.loss(self.network(theta, batch["x"]), batch["y"]).mean()

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training examples with the numbers that they take; without a generator those of an
        example are always the same."""
        train = self.parts["train"]
        at = indices.to(self.device)
        batch = {k: v[at] for k, v in train.items()}
        if generator is None:
            whole = self.numbers(train["x"], torch.Generator().manual_seed(0))
            return batch | {k: v[at] for k, v in whole.items()}
        return batch | self.numbers(batch["x"], generator)

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """What the parts of lam, and dropout, take of random numbers for inputs ``x`` [n, ...]."""
        drawn = {k: v for part in self.learned for k, v in part.numbers(x, gen).items()}
        drawn = {k: v.to(self.device, self.dtype) for k, v in drawn.items()}
        if self.network.drops:
            drawn[dropout.NUMBER] = dropout.numbers(len(x), gen).to(self.device)
        return drawn

    def evidence(self, lam: Params) -> Evidence:
        """Precisions n c. The mean over C squares is a normal likelihood of variance C / 2."""
        n, penalty = self.example_count, self.diagonal_penalty(lam) or {}
        y = self.parts["train"]["y"]
        noise = None
        if self.judge.noise == "normal":
            noise = next(iter(penalty.values())).new_tensor(y[0].numel() / 2)
        return Evidence({k: n * c for k, c in penalty.items()}, noise)

    def episode(self, split: str, index: int) -> Episode:
        """Training examples, all or drawn anew for every step; judged by validation examples in
        training, by those of the split else."""
        inner: Batch | Callable[[int], Batch] = self.parts["train"]
        if not self.full_batch:
            inner = Steps(self, (self.seeds.batches, split, index))
        if split != "train":
            return Episode(inner, self.parts[split], index)
        valid, size = self.parts["valid"], self.outer_batch_size
        if size is None:
            return Episode(inner, valid, index)
        gen = generator(self.seeds.batches, "outer", index)
        at = torch.randperm(len(valid["y"]), generator=gen)[:size].to(self.device)
        return Episode(inner, {k: v[at] for k, v in valid.items()}, index)

    def count(self, split: str) -> int | None:
        """One; training episodes that start anew never end where their batches differ."""
        same = self.carried or (self.full_batch and self.outer_batch_size is None)
        return 1 if same or split != "train" else None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of the episode's outer examples."""
        batch = episode.outer
        return self.judge.report(self.network(theta, batch["x"]), batch["y"])


class Steps:
    """The training batch of each inner step, drawn by its number."""

    def __init__(self, problem: SupervisedProblem, address: tuple[int | str, ...]) -> None:
        self.problem, self.address = problem, address

    def __call__(self, step: int) -> Batch:
        """Different examples, with the numbers that they take."""
        problem, gen = self.problem, generator(*self.address, step)
        n, size = problem.example_count, problem.batch_size
        if size is None:
            return {**problem.parts["train"], **problem.numbers(problem.parts["train"]["x"], gen)}
        return problem.take(torch.randperm(n, generator=gen)[:size], gen)
