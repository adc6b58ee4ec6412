"""The two tasks that :func:`metabench.problem_from` makes: a class for every problem, under a name
of its own, whose setting ``fingerprint`` says which problem it is.

A cell has the fingerprint in its key. So records of two problems never meet, whatever they are
called, and a cell whose problem is not the one that is known here is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract.problem import Problem
from metabench.contract.seeds import Seeds
from metabench.contract.task import Task
from metabench.core.errors import SettingError
from metabench.problems.given import FEW, Given
from metabench.problems.initialisation import InitialisationProblem
from metabench.problems.learnables import Strengths, Weights
from metabench.problems.supervised import SupervisedProblem

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class OwnProblem(Task):
    """A problem of a user's own."""

    fingerprint: str = ""
    """The sha256 of the model and its first weights, the data, the losses, and all that is learned:
    not to be set, but to be compared."""
    batch_size: Count | None = None
    """Examples of an inner step; None: all."""

    given: ClassVar[Given]
    known_as: ClassVar[str]
    """The fingerprint of ``given``."""
    goal: ClassVar[Literal["max", "min"]]
    data: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.fingerprint != self.known_as:
            raise SettingError(
                f"fingerprint = {self.fingerprint[:12]!r} is another problem; here "
                f"{self.registered_name!r} means {self.known_as[:12]!r}: other data, another model "
                "or other code (Python's version counts where functions were given). Make that "
                "problem again, and give problems that differ names that differ"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of the judge."""
        return self.given.judge.metrics

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The test split, where one was given."""
        return self.given.evaluations

    @property
    def shared(self) -> set[str]:
        """What the model gives, whatever is learned."""
        found = self.given.found
        own = {"outer_gradient", "prediction"}
        own |= set() if found.once else {"second_order"}
        own |= set() if found.frozen or found.drops else {"module"}
        return own | ({"head"} if self.given.head else set())

    @property
    def shared_lacks(self) -> dict[str, str]:
        """Why the model does not give the rest."""
        own = {}
        if self.given.found.once:
            own["second_order"] = f"the inner loss has one derivative only: {self.given.found.once}"
        if self.given.found.frozen:
            own["module"] = "the model has frozen parameters, which are neither lam nor theta"
        elif self.given.found.drops:
            own["module"] = "the model has dropout, which called by itself no seed of a run decides"
        if not self.given.head:
            own["head"] = "nobody says which layer is the last: head='NAME OF A SUBMODULE'"
        return own


@dataclass(frozen=True)
class Supervised(OwnProblem):
    """A user's model and data with decays, weights of examples, augmentations or a function of
    their own to learn."""

    carried: bool = True
    """One training along the run; False: every outer step trains from the model's first weights."""
    outer_batch_size: Count | None = None
    """Validation examples of an outer step; None: all."""

    outer_on_validation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, split in (("batch_size", "train"), ("outer_batch_size", "valid")):
            size, there = getattr(self, name), len(self.given.splits[split].y)
            if size is not None and size > there:
                raise SettingError(f"{name} = {size}, and {split} has {there} examples")

    @property
    def full_batch(self) -> bool:
        """Whether every inner step sees the same batch."""
        return self.batch_size is None and not self.given.is_random

    @property
    def same_problem(self) -> bool:
        """Whether every outer step has the same inner problem and the same outer batch."""
        return self.full_batch and self.outer_batch_size is None

    @property
    def offers(self) -> frozenset[str]:
        """By the parts of lam, and by what the model turned out to be."""
        given, own = self.given, self.shared | {"lam_in_inner_loss"}
        if not given.one_loss:
            own.discard("prediction")
        if given.numbers <= FEW:
            own.add("small_lam")
        if given.bounded:
            own.add("search_space")
        if not self.carried:
            own.add("episodes")
        if self.carried or self.same_problem:
            own.add("best_response")
        if self.same_problem:
            own.add("full_batch")
        if given.found.by_itself:
            own.add("example_losses")
        if self.differs_by_example:
            own.add("per_example_lam")
        if given.convex and given.found.by_itself:
            own.add("strongly_convex")
        return frozenset(own | ({"evidence"} if given.likelihood else set()))

    @property
    def differs_by_example(self) -> bool:
        """Whether every example can see a lam of its own: a lam that is nothing but strengths."""
        alone = self.given.has(Strengths) and len(self.given.learned) == 1
        return alone and self.given.found.gated and self.given.found.by_itself

    @property
    def lacks(self) -> Mapping[str, str]:
        """Why some needs are not met, in words."""
        given, own = self.given, self.shared_lacks
        own |= {
            "lam_is_initialisation": "lam is in the inner loss: it is not where theta starts",
            "small_lam": f"lam has {given.numbers} numbers, more than {FEW}",
            "search_space": "not all of lam has bounds: bounds={'NAME': (low, high)}",
            "strongly_convex": "the inner loss is known to be strongly convex only where the "
            "model is one linear layer, the loss a default one, and decays are learned",
            "best_response": "with minibatches every outer step trains on another inner problem",
            "evidence": "the inner loss is a likelihood with a Gaussian prior only where the "
            "loss is a default one and nothing but decays is learned",
        }
        if given.many_classes:
            own["evidence"] = "an example has several classes, whose mean loss is no likelihood"
        elif given.found.drops:
            own["evidence"] = "dropout makes another inner loss of every step: no one likelihood"
        elif given.found.by_itself and not given.found.row_by_row:
            own["evidence"] = "torch.func has no derivatives of each example for such a model"
        if given.has(Weights):
            own["search_space"] = "lam has a weight for every training example, without bounds"
        if not self.same_problem:
            own["full_batch"] = "batches, augmentations or dropout are drawn anew at every step"
        if not given.found.by_itself:
            why = "the model's prediction of an example depends on the others of its batch"
            needs = ("example_losses", "per_example_lam", "strongly_convex", "evidence")
            own |= dict.fromkeys(needs, why)
        elif given.has(Strengths) and not given.found.gated:
            own["per_example_lam"] = "the model has operations besides linear and convolution ones"
        for part in given.learned:
            own |= part.lacks
        return own

    @property
    def lacks_selection(self) -> str | None:
        """Examples given for it."""
        if "selection" in self.given.splits:
            return None
        return "no examples were given for it: problem_from(..., selection=...)"

    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        """On a device. Raises SettingError where a function given has changed."""
        self.given.check_functions()
        return SupervisedProblem(
            self.given,
            seeds,
            device,
            carried=self.carried,
            batch_size=self.batch_size,
            outer_batch_size=self.outer_batch_size,
        )


@dataclass(frozen=True)
class Initialisation(OwnProblem):
    """A user's model whose first weights are learned on inner problems of their own."""

    meta_batch: Count = 4
    """Inner problems of an outer step; of one data set there is one."""

    @property
    def outer_on_validation(self) -> bool:  # type: ignore[override]
        """Where one data set is given, validation examples judge training."""
        return self.given.inners is None

    @property
    def offers(self) -> frozenset[str]:
        """Episodes that start at lam."""
        own = self.shared | {"lam_is_initialisation", "episodes"}
        if self.given.batch_norms:
            own.add("batch_norms")
        if self.given.inners is None and self.batch_size is None and not self.given.is_random:
            own.add("full_batch")
        return frozenset(own)

    @property
    def lacks(self) -> Mapping[str, str]:
        """Why some needs are not met, in words."""
        weights = "lam is the weights of a network: neither few scalars nor bounds to search in"
        return self.shared_lacks | {
            "small_lam": weights,
            "search_space": weights,
            "carried": "theta starts at lam in every outer step",
            "lam_in_inner_loss": "lam is where theta starts: the inner loss does not have it",
            "best_response": "lam is where theta starts: its minimiser need not depend on it",
            "embedding": "lam is all weights: no head is left to theta",
        }

    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        """On a device. Raises SettingError where a function given has changed."""
        self.given.check_functions()
        return InitialisationProblem(
            self.given, seeds, device, batch_size=self.batch_size, meta_batch=self.meta_batch
        )
