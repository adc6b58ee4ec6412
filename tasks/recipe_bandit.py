"""A policy over training recipes with every answer known: SEAL's loop without a language model.

Derived from Zweiger et al.: Self-Adapting Language Models, 2025, arXiv 2506.10943 (its recipes for
ARC are settings of a training). An action is a recipe, (learning rate, epochs); training is
gradient descent on a/2 theta^2 from theta = 1: theta_T = (1 - lr a)^T, and every loss is known.
Episodes differ in the curvature a, or not at all. lam: logits of a table of recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

Count = Annotated[int, Field(ge=1)]


@task("recipe_bandit")
@dataclass(frozen=True)
class RecipeBandit(Task):
    """A policy over recipes (learning rate, epochs) for a quadratic: rewards in closed form."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = (0.01, 0.1, 0.5, 2.5)
    epochs: tuple[Count, ...] = (1, 4)
    spread: Annotated[float, Field(ge=0)] = 0.5
    """log a is uniform within this of 0."""
    reward: Literal["loss", "success"] = "loss"
    """Minus the loss after training, or 1 where it is below ``enough`` and 0 elsewhere."""
    enough: Annotated[float, Field(gt=0)] = 0.05
    meta_batch: Count = 8

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "expected_reward", "best_reward")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
         "small_lam", "search_space", "best_response", "prediction"),
        "lam is a policy whose actions are sampled: there are rewards, and no derivatives",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("rates", "epochs"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: name each choice once, and at least one")

    @property
    def offers(self) -> frozenset[str]:
        """A policy."""
        return frozenset({"policy"})

    def build(self, seeds: Seeds, device: torch.device) -> RecipeBanditProblem:
        """The table of recipes."""
        return RecipeBanditProblem(self, seeds, device)


class RecipeBanditProblem(Problem):
    """lam: ``logit`` [recipes], learning rates slowest; theta: ``w`` [], float64; actions:
    ``recipe`` int64 [n]."""

    def __init__(self, task: RecipeBandit, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.episodes_per_step = task.meta_batch
        pairs = [(r, float(n)) for r in task.rates for n in task.epochs]
        self.recipes = torch.tensor(pairs, dtype=torch.float64, device=device)
        self.hypers = (Hyper("logit", (len(pairs),), meaning="logit of each recipe"),)

    def init_outer(self) -> Params:
        """Every recipe alike."""
        return {"logit": self.recipes.new_zeros(len(self.recipes))}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """1."""
        return {"w": self.recipes.new_ones(())}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """a/2 w^2."""
        return 0.5 * batch["a"] * theta["w"].square()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same."""
        return self.inner_loss(lam, theta, batch)

    def losses(self, episode: Episode) -> Tensor:
        """The loss after each recipe [recipes]."""
        a, (rate, n) = episode.outer["a"], self.recipes.T
        after: Tensor = 0.5 * a * ((1 - rate * a) ** n).square()
        return after

    def table(self, episode: Episode) -> Tensor:
        """The reward of each recipe [recipes]."""
        losses = self.losses(episode)
        if self.task.reward == "loss":
            return -losses
        return (losses < self.task.enough).to(losses)

    def sample(self, lam: Params, episode: Episode, n: int, generator: torch.Generator) -> Batch:
        """``recipe`` [n]."""
        shares = lam["logit"].softmax(0).cpu()
        return {"recipe": shares.multinomial(n, True, generator=generator).to(self.device)}

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """log softmax of the logits [n]."""
        return lam["logit"].log_softmax(0)[actions["recipe"]]

    def adapted(self, lam: Params, episode: Episode, actions: Batch) -> Params:
        """(1 - lr a)^T [n]."""
        rate, n = self.recipes[actions["recipe"]].T
        return {"w": (1 - rate * episode.outer["a"]) ** n}

    def rewards(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """[n], by the table."""
        return self.table(episode)[actions["recipe"]]

    def best_of(self, lam: Params, episode: Episode, m: int) -> Tensor:
        """p(a recipe is the best of m draws) [recipes]: F^m - (F - p)^m with F the mass of the
        recipes that are no better. For rewards that are all different."""
        share, reward = lam["logit"].softmax(0), self.table(episode)
        below = (reward[None, :] <= reward[:, None]).to(share) @ share
        return below**m - (below - share) ** m

    def episode(self, split: str, index: int) -> Episode:
        """A curvature of its own."""
        gen = generator(self.seeds.data, split, index)
        u = 2 * torch.rand((), generator=gen, dtype=torch.float64) - 1
        batch = {"a": (self.task.spread * u).exp().to(self.device)}
        return Episode(batch, dict(batch), index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """``loss`` of theta; ``expected_reward`` of the policy, exactly; ``best_reward`` of any
        recipe."""
        loss = float(self.outer_loss(lam, theta, episode.outer))
        table = self.table(episode)
        return {
            "loss": loss,
            "expected_reward": float(lam["logit"].softmax(0) @ table),
            "best_reward": float(table.max()),
        }
