"""A user's model whose first weights are learned: lam is where theta starts.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017. Inner problems come from a list, from
a function of a generator, or are one data set, from whose training every outer step starts anew.
Dropout of the model drops in what an inner problem trains on; what judges it sees the whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.problems import dropout
from metabench.problems.data import Inner
from metabench.problems.given import Given


class InitialisationProblem(Problem):
    """Batches: ``x`` [n, ...] and ``y`` [n, ...], inner ones with the numbers of dropout. lam and
    theta: the parameters that the model trains, by their names."""

    def __init__(
        self,
        given: Given,
        seeds: Seeds,
        device: torch.device,
        *,
        batch_size: int | None,
        meta_batch: int,
    ) -> None:
        """``batch_size``: examples of an inner step (None: all); ``meta_batch``: inner problems of
        an outer step."""
        self.given, self.seeds, self.device, self.batch_size = given, seeds, device, batch_size
        self.network, self.judge = given.network(seeds, device), given.judge
        self.head, self.module = given.head, self.network.module
        self.batch_norms = given.batch_norms
        self.evaluations = given.evaluations
        self.episodes_per_step = 1 if given.inners is None else meta_batch

    def init_outer(self) -> Params:
        """The model's own first weights."""
        return {k: v.clone() for k, v in self.network.start.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """lam itself."""
        return {k: lam[k] for k in self.network.start}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Of a batch [n, ...]."""
        return self.network(theta, batch["x"], dropout.dropout_of(batch))

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean loss."""
        return self.judge.loss(prediction, batch["y"]).mean()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean loss on what an inner problem trains on."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean loss on what judges it, without dropout."""
        return self.judge.loss(self.network(theta, batch["x"]), batch["y"]).mean()

    def episode(self, split: str, index: int) -> Episode:
        """An inner problem. Raises IndexError past the end of a split that is evaluated."""
        found = self.inner_problem(split, index)
        support, query = ({k: v.to(self.device) for k, v in part.batch.items()} for part in found)
        n, drops = len(support["y"]), self.network.drops
        size = n if self.batch_size is None else min(n, self.batch_size)
        if size == n and not drops:
            return Episode(support, query, index)
        address = (self.seeds.batches, split, index)
        return Episode(Steps(support, size, address, drops), query, index)

    def inner_problem(self, split: str, index: int) -> Inner:
        """Number ``index`` of a split, on the CPU."""
        inners = self.given.inners
        if inners is not None:
            return inners[split].draw(self.seeds, split, index)
        splits = self.given.splits
        if split != "train" and index > 0:
            raise IndexError(f"split {split!r} has one episode")
        return Inner(splits["train"], splits["valid" if split == "train" else split])

    def count(self, split: str) -> int | None:
        """As many inner problems as a list has; those of a function never end; of one data set
        one, unless its batches differ."""
        if self.given.inners is not None:
            return self.given.inners[split].count
        differ = self.batch_size is not None or self.network.drops
        return None if differ and split == "train" else 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of what judges the inner problem."""
        batch = episode.outer
        return self.judge.report(self.network(theta, batch["x"]), batch["y"])


class Steps:
    """The batch of each inner step, drawn by its number: different examples of a support set, and
    what dropout takes."""

    def __init__(
        self, support: Batch, size: int, address: tuple[int | str, ...], drops: bool
    ) -> None:
        self.support, self.size, self.address, self.drops = support, size, address, drops

    def __call__(self, step: int) -> Batch:
        """``size`` examples."""
        y = self.support["y"]
        gen = generator(*self.address, step)
        at = torch.randperm(len(y), generator=gen)[: self.size].to(y.device)
        batch = {k: v[at] for k, v in self.support.items()}
        if self.drops:
            batch[dropout.NUMBER] = dropout.numbers(self.size, gen).to(y.device)
        return batch
