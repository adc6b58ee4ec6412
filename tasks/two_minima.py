"""A double well whose tilt is learned: two inner minima for every lam, one good and one poor.

Inner G(lam, theta) = h (theta^2 - 1)^2 - lam theta, outer F(theta) = (theta - c)^2 / 2 with c near
the right well. lam stays below the tilt 8 h / sqrt(27) at which a well vanishes. A point estimate
of theta sees one well only: from the right it asks for the lam at which that well's bottom is c,
where the left well is the deeper one; from the left it tilts as far as it may. The outer loss
expected under p(theta | lam), proportional to exp(-G / temperature), sees both and is smooth in
lam. In the manner of the toy problem of Kim, Hospedales, AAAI 2025 (two inner solutions, one good,
one poor), whose functions were not found: these are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData

NODES, REACH = 4001, 4.0  # of the trapezoidal rule; exp(-G) is nothing beyond


@task("two_minima")
@dataclass(frozen=True)
class TwoMinima(Task):
    """A double well whose tilt is learned: two inner minima, a good and a poor one."""

    height: Annotated[float, Field(gt=0)] = 1.0
    """h, the barrier between the wells at lam = 0."""
    target: float = 0.9
    """c, where the outer loss is least."""
    temperature: Annotated[float, Field(gt=0)] = 0.4
    """Of the expectation that ``expected_loss`` takes; give a sampling solver the same."""
    spread: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the first theta."""
    carried: bool = True
    """One theta, started once a seed; else every episode has a start of its own."""

    metric: ClassVar[str] = "expected_loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    data: ClassVar[tuple[str, ...]] = ()

    lacks: ClassVar[dict[str, str]] = {
        "best_response": "there are two inner minima: which one theta is in is no function of lam"
    }

    @property
    def offers(self) -> frozenset[str]:
        """One bounded scalar in the inner loss."""
        own = {"lam_in_inner_loss", "small_lam", "search_space"}
        return GRADIENTS | own | (set() if self.carried else {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> TwoMinimaProblem:
        """Nothing to load."""
        return TwoMinimaProblem(self, seeds, device)


class TwoMinimaProblem(NoData):
    """theta and lam ("tilt") have shape []; float64."""

    def __init__(self, task: TwoMinima, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.seeds, self.device = task, task.carried, seeds, device
        self.zero = torch.zeros((), dtype=torch.float64, device=device)
        bound = 1.2 * task.height
        self.hypers = (Hyper("tilt", (), -bound, bound, meaning="pull of theta to the right"),)

    def init_outer(self) -> Params:
        """No tilt."""
        return {"tilt": self.zero.clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """A normal draw: one a seed, or one an episode."""
        index = 0 if self.carried else episode.index
        gen = generator(self.seeds.init, "two minima", index)
        draw = torch.randn((), generator=gen, dtype=torch.float64)
        return {"theta": self.task.spread * draw.to(self.zero.device)}

    def energy(self, tilt: Tensor, theta: Tensor) -> Tensor:
        """h (theta^2 - 1)^2 - lam theta, of the shape of theta."""
        return self.task.height * (theta.square() - 1).square() - tilt * theta

    def loss(self, theta: Tensor) -> Tensor:
        """(theta - c)^2 / 2, of the shape of theta."""
        return 0.5 * (theta - self.task.target).square()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G."""
        return self.energy(lam["tilt"], theta["theta"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F."""
        return self.loss(theta["theta"])

    def expected_loss(self, lam: Params) -> Tensor:
        """E[F] under p(theta | lam) proportional to exp(-G / temperature), by quadrature; in the
        graph of lam."""
        theta = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64, device=self.zero.device)
        weights = torch.softmax(-self.energy(lam["tilt"], theta) / self.task.temperature, 0)
        return (weights * self.loss(theta)).sum()

    def expected_hypergradient(self, lam: Params) -> Tensor:
        """The derivative of :meth:`expected_loss` []."""
        return autodiff.grad(self.expected_loss, lam)[1]["tilt"]

    def count(self, split: str) -> int | None:
        """One where theta is carried."""
        return 1 if self.carried else None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The expected loss at lam, and the loss at theta with the well that theta is in."""
        return {
            "expected_loss": float(self.expected_loss(lam)),
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "right_well": float(theta["theta"] > 0),
        }
