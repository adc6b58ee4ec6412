"""Self-edits with weights: how much a language model should learn from each text it is shown.

After Zweiger et al.: Self-Adapting Language Models, 2025, arXiv 2506.10943. The paper's outer
variable is the policy that writes self-edits (task ``self_edit_policy``); this is its continuous
form, for methods that want derivatives. An episode is a SQuAD passage. theta: LoRA deltas from
zero. Candidate edits are the passage, texts that the base model samples after SEAL's prompts, and
another article's passage, from which nothing can be learned:

    G(lam, theta) = sum_kt s_k u_kt nll_kt(theta) / tokens,   s = K softmax(edit),
                    u_kt = 2 sigmoid(features_kt . token)

with features of a token: surprise under the base model, place, has a digit, has a capital. F is
-log p of the answers to closed-book questions. At lam = 0 every token counts 1: plain training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .families.self_edit import INSTRUCTIONS, SelfEdit, SelfEditProblem
from .models.language.pretrained import Passage

FEATURES = ("surprise", "place", "digit", "capital")
Kind = Literal["passage", "other", "implications", "long", "very_long", "rewrite", "self_qa"]


@task("self_edit_weights")
@dataclass(frozen=True)
class SelfEditWeights(SelfEdit):
    """Learn how much each self-edit and each kind of token counts when a language model adapts."""

    formulation: Literal["weights", "init"] = "weights"
    """"init": lam is the LoRA deltas that adaptation starts from (MAML), and all tokens count 1."""
    edits: tuple[Kind, ...] = ("passage", "implications", "rewrite", "other")
    """Candidate edits: the passage, another article's passage, or a prompt to sample after."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """G has l2 / 2 times the squared norm of theta added."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.edits)) != len(self.edits) or not self.edits:
            raise ValueError("edits: name each kind once, and at least one")

    @property
    def offers(self) -> frozenset[str]:
        """A small lam in the inner loss, or the start of theta."""
        if self.formulation == "init":
            return GRADIENTS | {"lam_is_initialisation", "episodes"}
        return GRADIENTS | {"lam_in_inner_loss", "small_lam", "search_space", "episodes"}

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        here = f"(formulation = {self.formulation!r})"
        if self.formulation == "init":
            deltas = (
                f"lam is a whole delta here {here}: neither few scalars nor bounds to search in"
            )
            return {
                **dict.fromkeys(("small_lam", "search_space"), deltas),
                "lam_in_inner_loss": f"lam is where theta starts here {here}: the inner loss does "
                "not have it",
            }
        why = f"lam weighs texts and tokens here {here}, it is not the initial value of theta"
        return {"lam_is_initialisation": why}

    def build(self, seeds: Seeds, device: torch.device) -> SelfEditWeightsProblem:
        """Load model and passages. Raises DataMissing."""
        return SelfEditWeightsProblem(self, seeds, device)


class SelfEditWeightsProblem(SelfEditProblem):
    """lam: ``edit`` [kinds] and ``token`` [features], or a delta. theta: a delta."""

    def __init__(self, task: SelfEditWeights, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        self.task = task
        self._edits: dict[Passage, Batch] = {}
        for kind in task.edits:
            if kind in INSTRUCTIONS:
                self.prompt_fits("twice edit_tokens", kind, 2 * task.edit_tokens)
        if task.formulation == "weights":
            k, f = len(task.edits), len(FEATURES)
            self.hypers = (
                Hyper("edit", (k,), -4.0, 4.0, meaning="logit of each kind of edit's share"),
                Hyper("token", (f,), -4.0, 4.0, meaning="weights of a token's features"),
            )

    def init_outer(self) -> Params:
        """Zeros: every token counts 1; or a fresh delta."""
        if self.task.formulation == "init":
            return {k: v.clone() for k, v in self.start.items()}
        like = next(iter(self.start.values()))
        return {h.name: like.new_zeros(h.shape) for h in self.hypers}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """A delta of zero effect, or lam."""
        if self.task.formulation == "init":
            return {k: lam[k] for k in self.start}
        return dict(self.start)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Weighted -log p a token of the candidate edits."""
        mask = weight = batch["mask"][:, 1:]
        if self.task.formulation == "weights":
            share = len(self.task.edits) * lam["edit"].softmax(0)
            token = 2 * torch.sigmoid(batch["features"][:, 1:] @ lam["token"])
            weight = share[:, None] * token * mask
        lost = self.surprise(self.adapters(lam, theta), batch["ids"])
        value = (weight * lost).sum() / mask.sum()
        if self.task.l2:
            norm = torch.stack([v.square().sum() for v in theta.values()]).sum()
            value = value + 0.5 * self.task.l2 * norm
        return value

    def episode(self, split: str, index: int) -> Episode:
        """The edits of a passage, the same at every inner step, and its questions."""
        passage = self.passage(split, index)
        if passage not in self._edits:  # the same whoever asks first
            self._edits[passage] = self.edits(passage)
        return Episode(dict(self._edits[passage]), self.questions(passage), index)

    def edits(self, passage: Passage) -> Batch:
        """Batches [kinds, edit_tokens]: ``ids``, ``mask``, and ``features`` [..., features]."""
        task = self.task
        texts = [self.candidate(passage, kind) for kind in task.edits]
        ids, mask = self.rows(texts, len(texts), task.edit_tokens)
        if not bool(mask.any()):
            raise SettingError(
                f"edits = {list(task.edits)} leave nothing to learn for {passage.title!r}: 'other' "
                "takes the training passages of other articles, and there are none"
            )
        return {"ids": ids, "mask": mask, "features": self.features(ids) * mask[..., None]}

    def candidate(self, passage: Passage, kind: str) -> list[int]:
        """Tokens of one edit."""
        task, lm, seed = self.task, self.lm, self.seeds.data
        if kind == "passage":
            return self.document(passage, passage.context)
        if kind == "other":
            others = [p for p in self.texts["train"] if p.title != passage.title]
            gen = generator(seed, "other", passage.context)
            if not others:
                return lm.begin
            chosen = others[int(torch.randint(len(others), (), generator=gen))]
            return self.document(chosen, chosen.context)
        title = lm.begin + lm.encode(f"{passage.title}\n")
        gen = generator(seed, kind, passage.context)
        ids, counts = lm.decoder.sample(
            self.prompt(passage, kind), 1, max(1, task.edit_tokens - len(title)), gen, stop=lm.end
        )
        return title + ids[0, counts[0] > 0].tolist()

    def features(self, ids: Tensor) -> Tensor:
        """[n, T, features] of each token, all within about -1 to 1 (the surprise a little over)."""
        with torch.no_grad():
            lost = self.surprise([], ids)
        words = [[self.lm.decode([i]) for i in row] for row in ids.tolist()]
        digit = [[any(c.isdigit() for c in w) for w in row] for row in words]
        capital = [[any(c.isupper() for c in w) for w in row] for row in words]
        even = math.log(self.lm.decoder.vocabulary)
        place = torch.linspace(-1, 1, ids.shape[1], device=self.device, dtype=torch.float32).expand(
            ids.shape
        )
        surprise = torch.cat([lost.new_zeros(len(ids), 1), 2 * lost / even - 1], 1)
        parts = [surprise, place, *(torch.tensor(x, device=self.device) for x in (digit, capital))]
        return torch.stack([x.to(self.start_dtype) for x in parts], -1)
