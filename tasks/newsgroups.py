"""How strongly to regularise a linear classifier of posts: 20 Newsgroups, a smooth convex problem.

Pedregosa: Hyperparameter Optimization with Approximate Gradient, ICML 2016, arXiv 1602.02355,
section 5. Inner loss: the sum over training posts of the logistic loss (two classes) or the
cross-entropy (twenty), and 1/2 sum_j e^{lam_j} w_j^2; outer loss: the first sum on validation
posts. Rows are word counts scaled to unit norm; two classes are topics 0 to 9 against 10 to 19, as
in the author's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .data import newsgroups
from .models import decay, softmax, sparse

TOPICS = 20


@task("newsgroups")
@dataclass(frozen=True)
class Newsgroups(Task):
    """Regularisation of a linear classifier of posts: one decay, one a class, or one a word."""

    classes: Literal[2, 20] = 2
    decays: Literal["one", "class", "word"] = "one"
    posts: Literal["three parts", "as published"] = "three parts"
    """"as published": train on the earlier 60 % of each topic, and the later 40 % are both what the
    outer loss sees and what is tested. Else the later ones are halved, by the data seed."""
    n_train: Annotated[int, Field(ge=20)] | None = None
    """Training posts, drawn by the data seed; None: all."""
    first_log_decay: Annotated[float, Field(ge=-12, le=6)] = 0.0
    carried: Literal[True] = True
    """One training along the run: sparse batches of several episodes cannot be stacked."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "log_decay")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ("newsgroups20",)
    lacks: ClassVar[dict[str, str]] = {
        "small_lam": "lam has a decay for every word: too many scalars to search in"
    }

    lacks_selection: ClassVar[str] = "every later post validates or tests"

    def __post_init__(self) -> None:
        if self.decays == "class" and self.classes == 2:
            raise ValueError("two classes share one vector of weights: a decay a class needs 20")

    @property
    def offers(self) -> frozenset[str]:
        """One strongly convex problem with derivatives and bounds."""
        own = {"lam_in_inner_loss", "best_response", "search_space", "full_batch"}
        own |= {"strongly_convex"} | (set() if self.decays == "word" else {"small_lam"})
        return GRADIENTS | own | {"example_losses"}

    def build(self, seeds: Seeds, device: torch.device) -> NewsgroupsProblem:
        """Cut the parts."""
        return NewsgroupsProblem(self, seeds, device, newsgroups.load())


class NewsgroupsProblem(Problem):
    """float64. ``parts``: split to a sparse matrix (:mod:`tasks.models.sparse`) and "y" [n]: -1 or
    1, or int64 topics. theta: "w" [words] or [words, 20]. lam: "log_decay" [1], [20] or
    [words]."""

    def __init__(
        self, task: Newsgroups, seeds: Seeds, device: torch.device, posts: newsgroups.Posts
    ) -> None:
        self.task, self.carried = task, task.carried
        gen = generator(seeds.data, "newsgroups")
        earlier, later = (np.flatnonzero(posts.later == part) for part in (False, True))
        rows = {"train": earlier, "valid": later, "test": later}
        if task.n_train is not None:
            rows["train"] = earlier[torch.randperm(len(earlier), generator=gen)[: task.n_train]]
        if task.posts == "three parts":
            order = later[torch.randperm(len(later), generator=gen).numpy()]
            rows["valid"], rows["test"] = np.array_split(order, 2)
        self.parts: dict[str, Batch] = {}
        for split, chosen in rows.items():
            batch = sparse.batch_of(posts.x[np.sort(chosen)], device, torch.float64)
            y = torch.from_numpy(posts.topics[np.sort(chosen)]).to(device)
            binary = 1.0 - 2.0 * (y < TOPICS // 2).double()
            self.parts[split] = {**batch, "y": binary if task.classes == 2 else y}
        words = posts.x.shape[1]
        self.shape = (words,) if task.classes == 2 else (words, TOPICS)
        self.decays = {"one": 1, "class": TOPICS, "word": words}[task.decays]
        self.example_count, self.design = len(rows["train"]), posts.x[np.sort(rows["train"])]
        # |X|_2^2 <= |X|_1 |X|_inf: proved, where power iteration would only estimate.
        largest, outer = (
            float(abs(x).sum(0).max() * abs(x).sum(1).max())
            for x in (posts.x[rows["train"]], posts.x[rows["valid"]])
        )
        second, third = softmax.BENDS if task.classes == TOPICS else softmax.LOGISTIC_BENDS
        self.bend, self.outer_bend = largest * second, outer * second
        longest = float(posts.x[rows["train"]].power(2).sum(1).max()) ** 0.5
        self.twist = largest * longest * third
        self.hypers = (
            Hyper("log_decay", (self.decays,), -12.0, 6.0, meaning="log of the weights' penalty"),
        )

    def init_outer(self) -> Params:
        """log_decay [1], [20] or [words]."""
        y = self.parts["train"]["values"]
        return {"log_decay": y.new_full((self.decays,), self.task.first_log_decay)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Weights of zero."""
        return {"w": self.parts["train"]["values"].new_zeros(self.shape)}

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^lam, broadcast to the weights."""
        c = lam["log_decay"].exp()
        words = self.task.decays == "word" and self.task.classes == TOPICS
        return {"w": c[:, None] if words else c}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The sum of the posts' losses."""
        scores, y = sparse.product(batch, theta["w"]), batch["y"]
        if self.task.classes == 2:
            return F.softplus(-y * scores).sum()
        return F.cross_entropy(scores, y, reduction="sum")

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The sum of the posts' losses and 1/2 sum e^lam w^2."""
        penalty = (self.diagonal_penalty(lam)["w"] * theta["w"].square()).sum()
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * penalty

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Training posts."""
        train = self.parts["train"]
        chosen = self.design[indices.cpu().numpy()]
        batch = sparse.batch_of(chosen, train["y"].device, torch.float64)
        return {**batch, "y": train["y"][indices]}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Of each post its loss times the number of posts: G has their sum."""
        scores, y = sparse.product(batch, theta["w"]), batch["y"]
        if self.task.classes == 2:
            losses = F.softplus(-y * scores)
        else:
            losses = F.cross_entropy(scores, y, reduction="none")
        return self.example_count * losses

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The sum of the posts' losses."""
        return self.unpenalised_loss(lam, theta, batch)

    def moduli(self, lam: Params) -> Moduli:
        """The least decay, and the largest with the largest bend of the losses; proved."""
        c = self.diagonal_penalty(lam)["w"]
        return decay.moduli(c, bend=self.bend, twist=self.twist, outer=self.outer_bend)

    def episode(self, split: str, index: int) -> Episode:
        """All training posts; the validation posts to judge by, or the test posts for "test"."""
        return Episode(
            self.parts["train"], self.parts["valid" if split == "train" else split], index
        )

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The loss (a sum), the accuracy, and the mean of the log decays."""
        scores, y = sparse.product(episode.outer, theta["w"]), episode.outer["y"]
        found = scores.sign() if self.task.classes == 2 else scores.argmax(1)
        return {
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "accuracy": float((found == y).double().mean()),
            "log_decay": float(lam["log_decay"].mean()),
        }
