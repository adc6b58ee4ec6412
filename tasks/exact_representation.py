"""A few-shot representation with a known hypergradient: how good is a method's, on real episodes?

Franceschi, Frasconi, Salzo, Grazzi, Pontil, ICML 2018 (lam = the body of a convolutional network,
theta = a linear head for each episode, from zeros), all in float64. Differs: 1/2 ``decay`` |head|^2
is added to the inner loss, for without it a few support images are separable and no head is best.

The metrics judge the first outer step, as in the task ``exact_decay``: after one step of plain
gradient descent with step size 1, lam has moved by minus the mean hypergradient of the step's
episodes that the method has found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params
from metabench.contract.seeds import Seeds
from metabench.contract.task import Task
from metabench.core.registry import task, tasks
from metabench.hypergradients import reference

from .families.episodes.few_shot_problem import FewShotProblem

Count = Annotated[int, Field(ge=1)]


@task("exact_representation")
@dataclass(frozen=True)
class ExactRepresentation(Task):
    """Few-shot representation with the exact hypergradient to compare with."""

    images: Literal["omniglot", "glyphs"] = "omniglot"
    ways: Annotated[int, Field(ge=2)] = 5
    shots: Count = 5
    queries: Count = 5
    filters: Annotated[int, Field(ge=1, le=32)] = 8
    """The head has ``ways`` (4 ``filters`` + 1) numbers."""
    meta_batch: Count = 4
    decay: Annotated[float, Field(gt=0)] = 0.05
    source: Literal["auto", "metabench", "torchvision", "learn2learn"] = "auto"
    """Where Omniglot is read from."""

    metric: ClassVar[str] = "relative_error"
    goal: ClassVar[Literal["max", "min"]] = "min"

    @property
    def data(self) -> tuple[str, ...]:
        """Glyphs need none."""
        return ("omniglot",) if self.images == "omniglot" else ()

    @property
    def offers(self) -> frozenset[str]:
        """What a representation offers."""
        return GRADIENTS | {
            "base_classes", "episodes", "embedding", "lam_in_inner_loss"
        }  # fmt: skip

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        few = "lam cannot be expanded: the weights of a network are neither few nor bounded"
        why = "lam is a representation here, not the initial value of theta"
        own = dict.fromkeys(("small_lam", "search_space"), few)
        own["best_response"] = "every episode has a minimiser of its own"
        return own | dict.fromkeys(("lam_is_initialisation", "head"), why)

    def build(self, seeds: Seeds, device: torch.device) -> ExactRepresentationProblem:
        """Load the images. Raises DataMissing."""
        own = {"source": self.source} if self.images == "omniglot" else {}
        few_shot = tasks.get(self.images)(
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            filters=self.filters,
            meta_batch=self.meta_batch,
            formulation="representation",
            dtype="float64",
            **own,
        )
        splits = {split: few_shot.classes(split) for split in ("train", "valid", "test")}
        return ExactRepresentationProblem(few_shot, splits, seeds, device, self.decay)


class ExactRepresentationProblem(FewShotProblem):
    """As a few-shot problem in the formulation "representation", with a decay of the head."""

    def __init__(
        self, few_shot: object, splits: object, seeds: Seeds, device: torch.device, decay: float
    ) -> None:
        super().__init__(few_shot, splits, seeds, device)  # type: ignore[arg-type]
        self.decay = decay

    def diagonal_penalty(self, lam: Params) -> Params:
        """The decay, of weight and bias of the head."""
        some = next(iter(lam.values()))
        return dict.fromkeys(self.head, torch.full_like(some.reshape(-1)[0], self.decay))

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the support set."""
        return super().inner_loss(lam, theta, batch)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the support set and 1/2 decay |head|^2."""
        size = torch.stack([v.square().sum() for v in theta.values()]).sum()
        return super().inner_loss(lam, theta, batch) + 0.5 * self.decay * size

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the query set."""
        return super().inner_loss(lam, theta, batch)

    @cached_property
    def known(self) -> Params:
        """The mean hypergradient of the first outer step's episodes at the first lam."""
        lam = self.init_outer()
        episodes = [self.episode("train", i) for i in range(self.episodes_per_step)]
        with autodiff.functional():
            found = [reference.exact(self, lam, self.init_inner(lam, e), e) for e in episodes]
        return autodiff.mean(known.grad for known in found)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of lam's first step what :func:`metabench.hypergradients.reference.compare` says, and the
        query ``loss`` and ``accuracy``."""
        first = self.init_outer()
        step = {k: first[k] - lam[k] for k in first}
        own = super().metrics(lam, theta, episode)
        return {
            **reference.compare(step, self.known),
            "loss": own["loss"],
            "accuracy": own["accuracy"],
        }
