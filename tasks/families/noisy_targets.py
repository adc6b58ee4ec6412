"""What the tasks that learn a loss share: wrong training targets, and a family of losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task

from ..models import losses


class Learning(Task):
    """What such a task offers, by its settings."""

    form: losses.ClassForm | losses.NumberForm
    batch: int | None
    carried: bool

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, a head, the prediction; where lam is a few scalars, bounds to search in."""
        own = {"lam_in_inner_loss", "head", "prediction"}
        if self.form in losses.SEARCHABLE:
            own |= {"small_lam", "search_space"}
        if self.carried or self.batch is None:
            own.add("best_response")
        return GRADIENTS | (own if self.carried else own | {"episodes"})

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        long = f"lam is {LONG.get(self.form, '')}: too many scalars to search in"
        return {
            **dict.fromkeys(("small_lam", "search_space"), long),
            "per_example_lam": "all training examples share one loss",
            "lam_is_initialisation": "lam is a loss, not the initial value of theta",
        }


LONG = {
    "network": "a whole loss network",
    "weight_net": "a whole weight net",
    "transition": "a whole transition matrix",
    "examples": "a weight for every training example",
}


class LearningProblem(Problem):
    """``parts``: split to "x" [n, ...], targets "y" [n] and places "index" [n]; ``wrong`` bool
    [n_train], which training targets are; ``size``: examples of an inner step; ``learned``: the
    family of losses; ``name``: of the task. A subclass fills them in."""

    head = ("head.weight", "head.bias")
    name: str
    seeds: Seeds
    device: torch.device
    dtype: torch.dtype
    l2: float
    parts: dict[str, Batch]
    wrong: Tensor
    size: int
    learned: losses.Learned

    def init_outer(self) -> Params:
        """The form's first values."""
        first = self.learned.first(generator(self.seeds.init, self.name, "lam"))
        return {k: v.to(self.device, self.dtype) for k, v in first.items()}

    @abstractmethod
    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Of every example [n, ...]."""

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """Mean learned loss, and l2 / 2 |theta|^2."""
        value = self.learned.loss(lam, prediction, batch["y"], batch["index"]).mean()
        if self.l2:
            norms = [v.square().sum() for v in theta.values()]
            value = value + 0.5 * self.l2 * torch.stack(norms).sum()
        return value

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean learned loss on targets as they are, and the penalty."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def batches(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """Inner batches of an episode: of ``size`` training examples, or all of them."""
        if self.size >= len(self.wrong):
            return self.parts["train"]
        return lambda t: self.some("train", self.size, split, index, t)

    def some(self, split: str, size: int, *address: int | str) -> Batch:
        """Different examples of a part."""
        part = self.parts[split]
        gen = generator(self.seeds.batches, *address)
        chosen = torch.randperm(len(part["y"]), generator=gen)[:size].to(self.device)
        return {k: v[chosen] for k, v in part.items()}

    def count(self, split: str) -> int | None:
        """One; where training starts anew with other batches, training episodes never end."""
        endless = self.size < len(self.wrong) and not self.carried
        return None if split == "train" and endless else 1
