"""All that a user has given for a problem, checked, and what was found out about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from metabench.contract.problem import count_numbers
from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError
from metabench.problems import network
from metabench.problems.data import Drawn, Inners, Pair
from metabench.problems.fingerprint import fingerprint
from metabench.problems.judged import Judge
from metabench.problems.learnables import Decays, Learnable, Own, Strengths, Weights
from metabench.problems.network import Network

FEW = 32
"""The most numbers of a lam of few scalars."""


@dataclass(frozen=True)
class Found:
    """What a module turned out to be on a few examples."""

    by_itself: bool
    """The prediction of an example does not depend on the others of its batch."""
    row_by_row: bool
    """torch.func can differentiate the prediction of each example for itself, all at once."""
    gated: bool
    """It can be called with weights that differ from example to example."""
    affine: bool
    """Predictions are affine in the parameters."""
    frozen: bool
    """It has parameters that are not trained."""
    drops: bool
    """It has dropout."""
    once: str
    """Why the inner loss has no second derivatives, in torch's words; "" where it has."""


@dataclass(frozen=True)
class Given:
    """``splits`` ("train", "valid", and "test", "selection" where there are some), or ``inners`` by
    split in their place; ``learned`` is empty where the initialisation is."""

    model: nn.Module | Callable[[], nn.Module]
    judge: Judge
    found: Found
    dtype: torch.dtype
    splits: dict[str, Pair] = field(default_factory=dict)
    inners: dict[str, Inners] | None = None
    learned: tuple[Learnable, ...] = ()
    head: tuple[str, ...] = ()
    batch_norms: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the user's functions, by what each is for."""

    @property
    def functions(self) -> dict[str, Any]:
        """The user's functions, by what each is for."""
        found: dict[str, Any] = {"loss": self.judge.loss, "metric": self.judge.own}
        if not isinstance(self.model, nn.Module):
            found["model"] = self.model
        for part in self.learned:
            if isinstance(part, Own):
                found["learn"] = part.function
        found |= {k: v.function for k, v in (self.inners or {}).items() if isinstance(v, Drawn)}
        return {k: v for k, v in found.items() if v is not None}

    def check_functions(self) -> None:
        """Raise SettingError where a function, or a value that it reads, is another one by now: the
        fingerprint would lie."""
        for what, function in self.functions.items():
            if fingerprint(function=function) != self.marks[what]:
                raise SettingError(
                    f"what its functions read has changed since the problem was made, of {what}: "
                    "make it again with problem_from"
                )

    def network(self, seeds: Seeds, device: torch.device) -> Network:
        """The model on a device; where a function makes it, with first weights of the seed."""
        return Network(network.made(self.model, seeds.init), device, self.found.drops)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The test split, where there is one."""
        return ("test",) if "test" in (self.inners or self.splits) else ()

    @property
    def is_random(self) -> bool:
        """Whether every inner step draws random numbers."""
        return self.found.drops or self.has(Strengths)

    @property
    def numbers(self) -> int:
        """How many lam has."""
        return sum(count_numbers(part.first) for part in self.learned)

    @property
    def bounded(self) -> bool:
        """Whether all of lam is between bounds."""
        hypers = [h for part in self.learned for h in part.hypers]
        return all(h.low is not None and h.high is not None for h in hypers)

    @property
    def one_loss(self) -> bool:
        """Whether the inner loss is made of the judge's loss of a prediction, by example."""
        return not self.has(Own)

    def has(self, *kinds: type[Learnable]) -> bool:
        """Whether lam has a part of one of these kinds."""
        return any(isinstance(part, kinds) for part in self.learned)

    @property
    def convex(self) -> bool:
        """Whether the inner loss is strongly convex in theta at every lam: an affine model, a
        convex loss of it, weights above 0, and a decay of every parameter."""
        known = self.judge.noise is not None and self.one_loss and self.found.affine
        return known and self.has(Decays)

    @property
    def likelihood(self) -> bool:
        """Whether the inner loss is minus the log of a likelihood and of a Gaussian prior."""
        alone = self.has(Decays) and not self.has(Weights, Own, Strengths)
        known = self.judge.noise is not None and not self.many_classes
        found = self.found
        return alone and known and found.by_itself and found.row_by_row and not found.drops

    @property
    def many_classes(self) -> bool:
        """Whether an example has classes [...] by logits [classes, ...], not one class: the loss is
        the mean over them."""
        return self.judge.noise == "classes" and self.splits["train"].y.dim() > 1
