"""The iterated prisoners' dilemma of two learners: from which starts do they reach what?

Two players remember one round. Each has five logits: to cooperate at first, and after (C, C),
(C, D), (D, C), (D, D), own action first. Losses of a round are 1 each for both cooperating, 2 each
for both defecting, 3 and 0 for a cooperator that meets a defector; discounted over rounds,

    L_i = (1 - discount) p0' (I - discount T)^-1 r_i,

with T the 4 x 4 transition matrix of their actions. Both descend their own loss at once: a field.
``branches`` pairs learn side by side, each from its own row of lam. Two kinds of end count as
solutions: defection (both losses at least 1.9) and tit-for-tat (both at most 1.2, and each
cooperates less than half the time with who has just defected). Outer loss: how alike the ends are,
the mean over all pairs of branches of exp(-|L - L'|^2 / (2 * 0.5^2)).

The game is that of Lorraine et al., "Lyapunov Exponents for Diversity in Differentiable Games",
AAMAS 2022, arXiv 2112.14570; thresholds and outer loss are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData

PLAYERS = ("first", "second")
STATES = 5
LOSSES = ((1.0, 3.0, 0.0, 2.0), (1.0, 0.0, 3.0, 2.0))
"""Of each player after (C, C), (C, D), (D, C), (D, D), the first player's action first."""
SWAPPED = [0, 1, 3, 2, 4]
"""The second player's logits in the first one's order."""
BETRAYED = 2
"""The logit after own cooperation and the other's defection."""
DEFECTION, COOPERATION = 1.9, 1.2
WIDTH = 0.5


@task("prisoners")
@dataclass(frozen=True)
class Prisoners(Task):
    """The iterated prisoners' dilemma, several pairs of learners at once; lam is their starts."""

    branches: Annotated[int, Field(ge=2)] = 20
    """Pairs that learn."""
    spread: Annotated[float, Field(gt=0)] = 1.0
    """Deviation of the first starts' logits."""
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.96

    metric: ClassVar[str] = "solutions"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = (
        "solutions", "defecting", "reciprocal", "loss",
    )  # fmt: skip
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[frozenset[str]] = GRADIENTS | {
        "field", "lam_is_initialisation", "full_batch", "episodes", "branches",
    }  # fmt: skip

    def build(self, seeds: Seeds, device: torch.device) -> PrisonersProblem:
        """Draw the starts."""
        return PrisonersProblem(self, seeds, device)


class PrisonersProblem(NoData):
    """float64. theta and lam: "first" and "second" [branches, 5]."""

    def __init__(self, task: Prisoners, seeds: Seeds, device: torch.device) -> None:
        self.task, self.device = task, device
        gen = generator(seeds.init, "prisoners")
        drawn = torch.randn(2, task.branches, STATES, generator=gen, dtype=torch.float64)
        self.start = (task.spread * drawn).to(device)
        self.rewards_lost = torch.tensor(LOSSES, dtype=torch.float64, device=device)

    def init_outer(self) -> Params:
        """The drawn starts."""
        return dict(zip(PLAYERS, self.start.clone(), strict=True))

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """lam itself."""
        return {k: lam[k] for k in PLAYERS}

    def losses(self, theta: Params) -> Tensor:
        """What each player of each branch loses a round [2, b]."""
        p, q = theta["first"].sigmoid(), theta["second"].sigmoid()[..., SWAPPED]
        both = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)  # [b, 5, 4]
        g, (first, moves) = self.task.discount, both.split([1, STATES - 1], -2)
        eye = torch.eye(STATES - 1, dtype=p.dtype, device=p.device)
        visits: Tensor = (1 - g) * torch.linalg.solve(eye - g * moves, first, left=False)[..., 0, :]
        return self.rewards_lost @ visits.mT

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """Each player's gradient of its own loss, branch by branch."""
        live = any(v.requires_grad for v in theta.values())

        def own(moved: Params) -> Tensor:
            # Each half has one player that moves, so that one product serves both.
            pairs = {
                "first": torch.cat([moved["first"], theta["first"]]),
                "second": torch.cat([theta["second"], moved["second"]]),
            }
            first, second = self.losses(pairs).chunk(2, 1)
            return first[0].sum() + second[1].sum()

        return autodiff.grad(own, theta, create_graph=live or autodiff.is_functional())[1]

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |field|^2."""
        parts = self.field(lam, theta, batch).values()
        return 0.5 * torch.stack([v.square().sum() for v in parts]).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """How alike the ends are: 1 where all are the same."""
        ends = self.losses(theta)
        apart = (ends[:, :, None] - ends[:, None, :]).square().sum(0)
        return (-apart / (2 * WIDTH**2)).exp().mean()

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """How many of the two solutions are found, the share of each, and the outer loss."""
        ends = self.losses(theta)
        wary = torch.stack([theta[k][:, BETRAYED] < 0 for k in PLAYERS]).all(0)
        found = {
            "defecting": (ends >= DEFECTION).all(0),
            "reciprocal": (ends <= COOPERATION).all(0) & wary,
        }
        return {
            "solutions": float(sum(bool(v.any()) for v in found.values())),
            **{k: float(v.double().mean()) for k, v in found.items()},
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
        }
