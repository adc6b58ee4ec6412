"""SEAL's recipes on passages: which training makes a language model remember best.

Zweiger, Pari, Guo, Akyurek, Kim, Agrawal: Self-Adapting Language Models, 2025, arXiv 2506.10943,
its few-shot form: a self-edit is a recipe (learning rate, epochs, loss on all tokens or on the
output's alone, which augmentations), here for a SQuAD passage in place of an ARC task. theta: LoRA
deltas from zero, trained as the recipe says; the reward is what closed-book answers are worth then.
lam: a table of logits for each part of a recipe; a recipe's parts are drawn one by one.

    p(recipe) = prod_part softmax(lam_part)[choice]

Differs from the paper: the policy is that table, not the language model itself; the augmentations
are of texts (documents made without a model):

    sentences   each sentence of the passage by itself
    reordered   the passage with its sentences in another order
    cloze       each sentence with one of its words or numbers asked for, as a question is

The output's tokens of a document are its text without the title, the answer in a cloze.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.core.registry import task

from .families.policy import RewardedEdit, RewardedProblem
from .families.self_edit import Count
from .models.language import lora
from .models.language.pretrained import Passage

Augmentation = Literal["sentences", "reordered", "cloze"]
Tokens = Literal["all", "output"]


@dataclass(frozen=True)
class Recipe:
    """How deltas are trained on a passage."""

    rate: float
    epochs: int
    tokens: Tokens
    augmentations: frozenset[str]


@task("self_edit_recipe")
@dataclass(frozen=True)
class SelfEditRecipe(RewardedEdit):
    """SEAL's few-shot form: learn the recipe by which a language model takes in a passage."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = (1e-4, 1e-3, 5e-3)
    epochs: tuple[Count, ...] = (2, 5, 10)
    tokens: tuple[Tokens, ...] = ("all", "output")
    """Which tokens of a document the loss is taken of."""
    augmentations: tuple[Augmentation, ...] = ("sentences", "reordered", "cloze")
    """Each of them on or off."""

    recipe_parts: ClassVar[tuple[str, ...]] = ("rates", "epochs", "tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in (*self.recipe_parts, "augmentations"):
            values = getattr(self, part)
            if len(set(values)) != len(values) or not (values or part == "augmentations"):
                raise ValueError(f"{part}: name each choice once, and at least one")

    def build(self, seeds: Seeds, device: torch.device) -> SelfEditRecipeProblem:
        """Load model and passages. Raises DataMissing."""
        return SelfEditRecipeProblem(self, seeds, device)


class SelfEditRecipeProblem(RewardedProblem):
    """lam: logits ``rates``, ``epochs``, ``tokens`` and, [off, on], one of each augmentation's
    name, float64. Actions: ``choices`` int64 [n, parts], one a table."""

    def __init__(self, task: SelfEditRecipe, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        self.task = task
        sizes = {part: len(getattr(task, part)) for part in task.recipe_parts}
        sizes |= {str(name): 2 for name in task.augmentations}
        self.hypers = tuple(
            Hyper(name, (n,), meaning=f"logit of each choice of {name}")
            for name, n in sizes.items()
        )

    def init_outer(self) -> Params:
        """Every recipe alike."""
        return {h.name: torch.zeros(h.shape, dtype=torch.float64, device=self.device)
                for h in self.hypers}  # fmt: skip

    def sample(self, lam: Params, episode: Episode, n: int, generator: torch.Generator) -> Batch:
        """n recipes."""
        columns = [
            lam[h.name].detach().softmax(0).cpu().multinomial(n, True, generator=generator)
            for h in self.hypers
        ]
        return {"choices": torch.stack(columns, 1).to(self.device)}

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """The sum over parts of log softmax of the logits [n]."""
        choices = actions["choices"].unbind(1)
        pairs = zip(self.hypers, choices, strict=True)
        return torch.stack([lam[h.name].log_softmax(0)[c] for h, c in pairs]).sum(0)

    def recipe(self, choices: tuple[int, ...]) -> Recipe:
        """What a row of an action stands for."""
        task = self.task
        rate, epochs, tokens, *on = choices
        names = [name for name, chosen in zip(task.augmentations, on, strict=True) if chosen]
        return Recipe(task.rates[rate], task.epochs[epochs], task.tokens[tokens], frozenset(names))

    def documents(self, passage: Passage, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """ids and mask [documents, edit_tokens]: the passage, then what augmentations make of it,
        a document of each in turn while there is room."""
        title, text = f"{passage.title}\n", passage.context
        parts = sentences(text)
        made: dict[str, list[tuple[str, str]]] = {
            "sentences": [(title, part) for part in parts] if len(parts) > 1 else [],
            "reordered": [(title, " ".join(parts[1:] + parts[:1]))] if len(parts) > 1 else [],
            "cloze": [
                (f"Topic: {passage.title}\nQuestion: {asked}\nAnswer:", f" {answer}\n")
                for asked, answer in map(cloze, parts) if answer
            ],
        }  # fmt: skip
        chosen = [made[name] for name in self.task.augmentations if name in recipe.augmentations]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*chosen))
        pairs = [(title, text), *(pair for pair in turns if pair is not None)]
        texts, starts = [], []
        for before, output in pairs[: self.task.documents]:
            # Half of the room is the output's: a longer title loses its beginning.
            prompt = self.lm.begin + self.lm.encode(before)[-(self.task.edit_tokens // 2) :]
            texts.append(prompt + self.lm.encode(output))
            starts.append(len(prompt))
        ids, mask = self.rows(texts, self.task.documents, self.task.edit_tokens)
        if recipe.tokens == "output":
            for i, start in enumerate(starts):
                mask[i, :start] = 0.0
        return ids, mask

    def adapted(self, lam: Params, episode: Episode, actions: Batch) -> Params:
        """theta trained by each recipe [n, ...]."""
        rows = [tuple(row) for row in actions["choices"].tolist()]
        trained = self.trained_by(lam, episode, list(dict.fromkeys(rows)))
        return lora.stacked([trained[row] for row in rows])

    def trained_by(
        self, lam: Params, episode: Episode, rows: list[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Params]:
        """theta of different recipes."""
        passage = self.passage_of(episode)
        out: dict[tuple[int, ...], Params] = {}
        # Those of as many epochs come together: fewer steps are taken by some of a batch alone.
        rows = sorted(rows, key=lambda row: self.recipe(row).epochs)
        for at in range(0, len(rows), self.task.at_once):
            some = rows[at : at + self.task.at_once]
            recipes = [self.recipe(row) for row in some]
            texts = [self.documents(passage, recipe) for recipe in recipes]
            ids, mask = (torch.stack(x) for x in zip(*texts, strict=True))
            rates = mask.new_tensor([recipe.rate for recipe in recipes])[:, None, None]
            starts = lora.stacked([self.start] * len(some))
            theta = self.trained(lam, ids, mask, starts, [r.epochs for r in recipes], rates)
            out |= {row: {k: v[i] for k, v in theta.items()} for i, row in enumerate(some)}
        return out

    @torch.no_grad()
    def rewards(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """The reward that is set [n]; a recipe that is drawn again is not trained again."""
        rows = [tuple(row) for row in actions["choices"].tolist()]
        different = list(dict.fromkeys(rows))
        known: dict[tuple[int, ...], float] = {}
        for at in range(0, len(different), self.task.at_once):
            some = different[at : at + self.task.at_once]
            trained = self.trained_by(lam, episode, some)
            theta = lora.stacked([trained[row] for row in some])
            found = self.rewarded_by(self.adapters(lam, theta), episode)
            known |= dict(zip(some, found.tolist(), strict=True))
        return torch.tensor([known[row] for row in rows], dtype=torch.float64, device=self.device)


def sentences(text: str) -> list[str]:
    """A text cut where a sentence seems to end."""
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])", text.strip()) if part]


def cloze(sentence: str) -> tuple[str, str]:
    """The sentence with a gap, and what stood there: its last number, or else its last run of
    capitalised words but the first word; the answer is empty where it has neither."""
    found = list(re.finditer(r"\b\d[\d,.]*(?<![,.])", sentence))
    found = found or list(re.finditer(r"(?<=\s)[A-Z][\w'-]*(?:\s[A-Z][\w'-]*)*", sentence))
    if not found:
        return sentence, ""
    start, end = found[-1].span()
    return f"{sentence[:start]}___{sentence[end:]}", sentence[start:end]
