"""SEAL, knowledge incorporation: a language model learns to write what it should be trained on.

Zweiger, Pari, Guo, Akyurek, Kim, Agrawal: Self-Adapting Language Models, 2025, arXiv 2506.10943,
and the authors' repository. An episode is a SQuAD passage. lam: LoRA deltas of the model as it
writes; an action is a self-edit, text sampled after the passage; theta: LoRA deltas on top of lam,
from zero, trained on the text's lines and the passage, each with the title before it. The reward
is how well the adapted model answers closed-book questions. Several edits are adapted at once, as
a batch of deltas on one frozen base.

The authors' code steps on one document at a time (``documents_a_step = 1``), with deltas of q and v
alone (``targets``; those of the policy are of all seven maps, ``policy_targets``), a step size that
falls linearly to 0 (``adapt_decay``), and gradients clipped at norm 1 (``adapt_clip``): the paper
budget of the suites. The default is one step on all documents, which is cheaper on a GPU, at a
constant step size, and nothing is clipped. Differs from the paper: questions are judged by
likelihood, word for word, or by any model that is named as grader (the paper: GPT-4.1); lam goes on
from round to round (the paper merges it); padding is never trained on (in the authors' server it
is); the prompts' wording is a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core import settings
from metabench.core.registry import task

from .families.policy import RewardedEdit, RewardedProblem
from .families.self_edit import Count, Prompt, Target, named_once
from .models.language import lora
from .models.language.causal import Adapter


@task("self_edit_policy")
@dataclass(frozen=True)
class SelfEditPolicy(RewardedEdit):
    """SEAL: a language model writes its own training texts, rewarded by closed-book answers."""

    prompt: Prompt = "implications"
    """The form of self-edit that is asked for."""
    sample_tokens: Count = 96
    """Of a self-edit at most."""
    temperature: Annotated[float, Field(ge=0.001)] = 1.0
    """Below its bound logits overflow, and samples would be no samples."""
    adapt_epochs: Count = 10
    """Passes over the documents of a training."""
    adapt_lr: Annotated[float, Field(gt=0)] = 1e-3
    repeats: Count = 1
    """Trainings of a self-edit, from deltas drawn anew, that its reward is the mean of (s)."""
    policy_rank: Count = 4
    policy_alpha: Annotated[float, Field(gt=0)] = 8.0
    policy_targets: tuple[Target, ...] | None = settings.later(None)
    """The linear maps of a layer that have a delta in lam; None: those of ``targets``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_targets is not None:
            named_once("policy_targets", self.policy_targets)

    @property
    def policy_maps(self) -> tuple[Target, ...]:
        """Of lam."""
        return self.targets if self.policy_targets is None else self.policy_targets

    def build(self, seeds: Seeds, device: torch.device) -> SelfEditPolicyProblem:
        """Load model and passages. Raises DataMissing."""
        return SelfEditPolicyProblem(self, seeds, device)


class SelfEditPolicyProblem(RewardedProblem):
    """lam and theta: deltas. Actions: ``ids`` int64 and ``mask`` [n, sample_tokens], 1 up to and
    with the token that ends a text."""

    def __init__(self, task: SelfEditPolicy, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        self.task = task
        self.trainings_per_reward = task.repeats
        tokens = task.edit_tokens + task.sample_tokens
        self.prompt_fits("edit_tokens + sample_tokens", task.prompt, tokens)

    def init_outer(self) -> Params:
        """A delta of zero effect."""
        task, gen = self.task, generator(self.seeds.init, "lam")
        return self.lm.decoder.deltas(task.policy_rank, task.policy_maps, gen)

    def writer(self, lam: Params) -> Adapter:
        """What lam adds to the base."""
        return self.lm.decoder.adapter(lam, self.task.policy_alpha / self.task.policy_rank)

    def adapters(self, lam: Params, theta: Params) -> list[Adapter]:
        """lam, and theta on top of it."""
        return [self.writer(lam), *super().adapters(lam, theta)]

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
        wanted = torch.cat(
            [actions["mask"].new_zeros(len(ids), len(before) - 1), actions["mask"]], 1
        )
        lost = self.surprise([self.writer(lam)], whole, wanted)
        return -(lost * wanted.to(lost)).sum(1)

    def edits(self, episode: Episode, actions: Batch) -> tuple[Tensor, Tensor]:
        """Documents of n trainings, ids and mask [n, documents, edit_tokens]."""
        passage = self.passage_of(episode)
        pairs = zip(actions["ids"], actions["mask"], strict=True)
        texts = [self.lm.decode(ids[mask > 0].tolist()) for ids, mask in pairs]
        found = [self.training_texts(passage, text) for text in texts]
        return torch.stack([ids for ids, _ in found]), torch.stack([mask for _, mask in found])

    def adapted(self, lam: Params, episode: Episode, actions: Batch) -> Params:
        """theta trained on each self-edit [n, ...]."""
        task, (ids, mask) = self.task, self.edits(episode, actions)
        pairs = zip(ids.split(task.at_once), mask.split(task.at_once), strict=True)
        parts = [
            self.trained(lam, i, m, lora.stacked([self.start] * len(i)),
                         [task.adapt_epochs] * len(i), task.adapt_lr)
            for i, m in pairs
        ]  # fmt: skip
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
                lam, ids[which], mask[which], lora.stacked([starts[r] for _, r in some]),
                [task.adapt_epochs] * len(some), task.adapt_lr, [r for _, r in some],
            )  # fmt: skip
            found = self.rewarded_by(self.adapters(lam, theta), episode)
            for i, reward in zip(which, found, strict=True):
                out[i] += reward.double() / task.repeats
        return out
