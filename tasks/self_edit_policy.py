"""SEAL, knowledge incorporation: a language model learns to write what it should be trained on.

Zweiger, Pari, Guo, Akyurek, Kim, Agrawal: Self-Adapting Language Models, 2025, arXiv 2506.10943,
and the authors' repository. An episode is a SQuAD passage. lam: LoRA deltas of the model as it
writes; an action is a self-edit, text sampled after the passage; theta: LoRA deltas on top of lam,
from zero, trained on the text's lines and the passage, each with the title before it. The reward
is how well the adapted model answers closed-book questions. Several edits are adapted at once, as
a batch of deltas on one frozen base.

Differs from the paper: an inner step is Adam on all documents at once (the paper: one at a time);
questions are judged by likelihood or word for word (the paper: by a large model); lam goes on from
round to round (the paper merges it); the prompts' wording is a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench import lora
from metabench.method import SolverName
from metabench.problem import Batch, Episode, Params, Seeds, generator
from metabench.registry import solvers, tasks

from ._lm import Passage
from ._self_edit import Count, Prompt, SelfEdit, SelfEditProblem


@tasks.register("self_edit_policy")
@dataclass(frozen=True)
class SelfEditPolicy(SelfEdit):
    """SEAL: a language model writes its own training texts, rewarded by closed-book answers."""

    prompt: Prompt = "implications"
    """The form of self-edit that is asked for."""
    sample_tokens: Count = 96
    """Of a self-edit at most."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    documents: Annotated[int, Field(ge=2)] = 8
    """Texts of a training at most: the passage, and the edit's first lines."""
    adapt_steps: Count = 10
    adapt_lr: Annotated[float, Field(gt=0)] = 1e-3
    adapt_solver: SolverName = "adam"
    repeats: Count = 1
    """Trainings of a self-edit, from deltas drawn anew, that its reward is the mean of (s)."""
    at_once: Count = 16
    """Deltas adapted in one batch."""
    reward: Literal["log_likelihood", "exact_match"] = "log_likelihood"
    policy_rank: Count = 4
    policy_alpha: Annotated[float, Field(gt=0)] = 8.0

    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
         "small_lam", "search_space", "best_response", "prediction"),
        "lam writes text that is sampled: there are rewards, and no derivatives "
        "(self_edit_weights has them)",
    )  # fmt: skip

    @property
    def offers(self) -> frozenset[str]:
        """A policy."""
        return frozenset({"policy"})

    def build(self, seeds: Seeds, device: torch.device) -> SelfEditPolicyProblem:
        """Load model and passages. Raises DataMissing."""
        return SelfEditPolicyProblem(self, seeds, device)


class SelfEditPolicyProblem(SelfEditProblem):
    """lam and theta: deltas. Actions: ``ids`` int64 and ``mask`` [n, sample_tokens], 1 up to and
    with the token that ends a text. An inner batch: ``ids`` and ``mask`` [documents, edit_tokens],
    by itself the passage alone."""

    def __init__(self, task: SelfEditPolicy, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        self.task = task
        self.trainings_per_reward = task.repeats
        self.all_texts = [p for split in ("train", "valid", "test") for p in self.texts[split]]
        self.number = {p: i for i, p in enumerate(self.all_texts)}

    def init_outer(self) -> Params:
        """A delta of zero effect."""
        task, gen = self.task, generator(self.seeds.init, "lam")
        return self.lm.decoder.deltas(task.policy_rank, task.targets, gen)

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """A delta of zero effect."""
        return dict(self.start)

    def writer(self, lam: Params) -> lora.Adapter:
        """What lam adds to the base."""
        return self.lm.decoder.adapter(lam, self.task.policy_alpha / self.task.policy_rank)

    def adapters(self, lam: Params, theta: Params) -> list[lora.Adapter]:
        """lam, and theta on top of it."""
        names = {k: lam[k] for k in self.start}
        return [self.writer(names), *super().adapters(lam, theta)]

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """-log p a token of the documents."""
        return self.losses(lam, theta, batch["ids"], batch["mask"])

    def losses(self, lam: Params, theta: Params, ids: Tensor, mask: Tensor) -> Tensor:
        """-log p a token of documents [..., documents, edit_tokens], of each adaptation."""
        mask = mask[..., 1:]
        lost = self.surprise(self.adapters(lam, theta), ids)
        return (lost * mask).sum((-2, -1)) / mask.sum((-2, -1))

    def episode(self, split: str, index: int) -> Episode:
        """The passage to train on, and its questions; ``number`` says which passage it is."""
        passage = self.passage(split, index)
        ids, mask = self.training_texts(passage, "")
        outer = self.questions(passage)
        outer["number"] = torch.tensor(self.number[passage], device=self.device)
        return Episode({"ids": ids, "mask": mask}, outer, index)

    def training_texts(self, passage: Passage, edit: str) -> tuple[Tensor, Tensor]:
        """Documents of a training: the passage, then the lines of a self-edit, each titled."""
        lines = [line.strip() for line in edit.split("\n")]
        texts = [passage.context, *(line for line in lines if line)]
        rows = [self.document(passage, text) for text in texts[: self.task.documents]]
        return self.rows(rows, self.task.documents, self.task.edit_tokens)

    def passage_of(self, episode: Episode) -> Passage:
        """The passage that an episode is about."""
        return self.all_texts[int(episode.outer["number"])]

    def sample(self, lam: Params, episode: Episode, n: int, generator: torch.Generator) -> Batch:
        """n self-edits."""
        task = self.task
        ids, mask = self.lm.decoder.sample(
            self.prompt(self.passage_of(episode), task.prompt), n, task.sample_tokens, generator,
            adapters=[self.writer(lam)], temperature=task.temperature, stop=self.lm.end,
        )  # fmt: skip
        return {"ids": ids, "mask": mask}

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """log p of each self-edit after its prompt [n], at temperature 1."""
        before = self.prompt(self.passage_of(episode), self.task.prompt)
        ids = actions["ids"]
        whole = torch.cat([torch.tensor(before, device=ids.device).expand(len(ids), -1), ids], 1)
        lost = self.surprise([self.writer(lam)], whole)[:, len(before) - 1 :]
        return -(lost * actions["mask"].to(lost)).sum(1)

    def edits(self, episode: Episode, actions: Batch) -> tuple[Tensor, Tensor]:
        """Documents of n trainings, ids and mask [n, documents, edit_tokens]."""
        passage = self.passage_of(episode)
        pairs = zip(actions["ids"], actions["mask"], strict=True)
        texts = [self.lm.decode(ids[mask > 0].tolist()) for ids, mask in pairs]
        found = [self.training_texts(passage, text) for text in texts]
        return torch.stack([ids for ids, _ in found]), torch.stack([mask for _, mask in found])

    def trained(self, lam: Params, ids: Tensor, mask: Tensor, starts: Params) -> Params:
        """n deltas from ``starts`` after ``adapt_steps`` steps on documents, one batch a step."""
        task, lam = self.task, {k: v.detach() for k, v in lam.items()}
        return lora.adapt(
            lambda theta: self.losses(lam, theta, ids, mask),
            starts,
            steps=task.adapt_steps,
            lr=task.adapt_lr,
            solver=solvers.get(task.adapt_solver)(),
        )

    def adapted(self, lam: Params, episode: Episode, actions: Batch) -> Params:
        """theta trained on each self-edit [n, ...]."""
        ids, mask = self.edits(episode, actions)
        parts = [
            self.trained(lam, i, m, lora.stacked([self.start] * len(i)))
            for i, m in zip(
                ids.split(self.task.at_once), mask.split(self.task.at_once), strict=True
            )
        ]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    @torch.no_grad()
    def rewards(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """Mean over ``repeats`` of the reward that is set [n]."""
        task, (ids, mask) = self.task, self.edits(episode, actions)
        n = len(ids)
        jobs = [(i, r) for r in range(task.repeats) for i in range(n)]
        starts = [self.fresh(r) for r in range(task.repeats)]
        out = ids.new_zeros(n, dtype=torch.float64)
        for at in range(0, len(jobs), task.at_once):
            some = jobs[at : at + task.at_once]
            which = [i for i, _ in some]
            theta = self.trained(
                lam, ids[which], mask[which], lora.stacked([starts[r] for _, r in some])
            )
            found = self.judged(self.adapters(lam, theta), episode.outer)[task.reward]
            for i, reward in zip(which, found, strict=True):
                out[i] += reward.double() / task.repeats
        return out
