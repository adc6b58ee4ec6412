"""What tasks share whose lam is a policy: actions say how deltas are trained, answers reward them.

An action becomes documents, ids and mask [documents, edit_tokens]; several trainings are a batch of
deltas on one frozen base. A reward is what the trained model's closed-book answers are worth: their
log-likelihood, the share that is right word for word, or the share that another language model
grades as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import Positive, SolverName
from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import solvers

from ..models.language import lora
from ..models.language.causal import Adapter
from ..models.language.grader import PROMPT, Grader, Template, Verdict
from ..models.language.pretrained import (
    Dtype,
    Form,
    LanguageModel,
    Passage,
    load,
    missing,
    needed_data,
    needed_packages,
)
from .self_edit import Count, SelfEdit, SelfEditProblem, trimmed


@dataclass(frozen=True)
class RewardedEdit(SelfEdit):
    """Settings of every task in which closed-book answers reward a policy."""

    adapter: Form = "functional"
    """Who computes the model: tensors alone, or transformers and peft (large models, other
    architectures, several GPUs)."""
    every_gpu: bool = False
    """With adapter = "peft": the layers are spread over all GPUs that there are."""
    adapt_solver: SolverName = "adam"
    adapt_decay: Literal["none", "linear"] = settings.later("none")
    """"linear": of T steps of a training, step t (from 0) has the step size times 1 - t / T."""
    adapt_clip: Positive | None = settings.later(None)
    """A training's gradient whose norm over all deltas is larger is scaled down to it; None: none
    is."""
    documents: Count = 8
    """Texts of a training at most."""
    documents_a_step: Count | None = None
    """Texts that a step is taken on: an epoch takes all, in an order of its own; None: an epoch is
    one step on all of them."""
    at_once: Count = 16
    """Deltas adapted in one batch."""
    documents_at_once: Count = 8
    """Documents of each training in one pass; a step adds up the gradients of its passes."""
    reward: Literal["log_likelihood", "exact_match", "grader"] = "log_likelihood"
    grader: str | None = None
    """The model that grades answers, named as ``model`` is; None: none does."""
    grader_dtype: Dtype = "float32"
    grader_prompt: str = PROMPT
    """With {question}, {gold} and {answer} in it."""
    grader_template: Template = "plain"
    """The prompt as it is, or as a user's message in the grader's own chat template."""
    grader_verdict: Verdict = "likelihood"
    """The likelier of yes and no, or what the grader writes."""
    grader_tokens: Count = 8
    """Of a verdict that is written, at most."""
    answer_tokens: Count = 64
    """Of an answer to be graded, at most; it ends with its line."""

    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("outer_gradient", "second_order", "lam_in_inner_loss", "lam_is_initialisation",
         "small_lam", "search_space", "best_response", "prediction"),
        "lam is a policy whose actions are sampled: there are rewards, and no derivatives "
        "(self_edit_weights has them)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward == "grader" and self.grader is None:
            raise ValueError("reward: 'grader' needs a model; set grader to its name or folder")
        if lacking := [x for x in ("question", "gold", "answer")
                       if f"{{{x}}}" not in self.grader_prompt]:  # fmt: skip
            raise ValueError(f"grader_prompt: it does not say where the {lacking[0]} goes "
                             f"({{{lacking[0]}}})")  # fmt: skip
        if self.every_gpu and self.adapter != "peft":
            raise ValueError("every_gpu: only adapter = 'peft' spreads a model over GPUs")

    @property
    def offers(self) -> frozenset[str]:
        """A policy."""
        return frozenset({"policy"})

    @property
    def metrics(self) -> tuple[str, ...]:
        """``graded`` too, the share of answers that the grader finds right, where there is one."""
        return super().metrics + (() if self.grader is None else ("graded",))

    @property
    def models(self) -> tuple[str, ...]:
        """All that are loaded."""
        return (self.model,) if self.grader is None else (self.model, self.grader)

    @property
    def packages(self) -> tuple[str, ...]:
        """What loads the models."""
        return needed_packages(*self.models, form=self.adapter)

    @property
    def data(self) -> tuple[str, ...]:
        """The passages, and the tiny model."""
        return needed_data(*self.models)

    @property
    def missing(self) -> tuple[str, str] | None:
        """A model that is not here, and what repairs it."""
        return missing(*self.models)

    def language_model(self, device: torch.device) -> LanguageModel:
        """In the form that is set."""
        return load(self.model, self.dtype, device, self.adapter, every_gpu=self.every_gpu)


class RewardedProblem(SelfEditProblem):
    """theta: a delta. An inner batch: ``ids`` and ``mask`` [documents, edit_tokens], by itself the
    passage alone. ``number`` of the outer batch says which passage it is."""

    def __init__(self, task: RewardedEdit, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        self.rewarded = task
        self.grader: Grader | None = None
        if task.grader is not None:
            judge = load(task.grader, task.grader_dtype, device, "peft")
            if task.grader_template == "chat" and not judge.has_chat:
                raise SettingError(
                    f"grader_template cannot be 'chat': the tokenizer of {task.grader!r} has no "
                    "chat template; set it to 'plain'"
                )
            self.grader = Grader(
                judge, task.grader_prompt, task.grader_template, task.grader_verdict,
                task.grader_tokens,
            )  # fmt: skip
        self.all_texts = [p for split in ("train", "valid", "test") for p in self.texts[split]]
        self.number = {p: i for i, p in enumerate(self.all_texts)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """A delta of zero effect."""
        return dict(self.start)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """-log p a token of the documents."""
        terms = [term(theta) for term in self.terms(lam, batch["ids"], batch["mask"])]
        return torch.stack(terms).sum(0)

    def terms(self, lam: Params, ids: Tensor, mask: Tensor) -> list[Callable[[Params], Tensor]]:
        """-log p a token of documents [..., documents, edit_tokens], of each adaptation, as a sum.

        The first document, the passage, is longer than the others: these come in passes of
        their own, without the padding.
        """
        if autodiff.is_functional():  # under vmap shapes cannot depend on data
            parts = [(ids, mask)]
        else:
            rest = self.rewarded.documents_at_once
            cuts = [1] + [rest] * -(-(ids.shape[-2] - 1) // rest)
            cuts[-1] -= sum(cuts) - ids.shape[-2]
            pairs = zip(ids.split(cuts, -2), mask.split(cuts, -2), strict=True)
            parts = [trimmed(i, m) for i, m in pairs if bool(m.any())]
        tokens = mask[..., 1:].sum((-2, -1))

        def term(theta: Params, ids: Tensor, mask: Tensor) -> Tensor:
            lost = self.surprise(self.adapters(lam, theta), ids, mask[..., 1:])
            return (lost * mask[..., 1:]).sum((-2, -1)) / tokens

        return [partial(term, ids=i, mask=m) for i, m in parts]

    def trained(
        self, lam: Params, ids: Tensor, mask: Tensor, starts: Params, epochs: Sequence[int],
        lr: float | Tensor, numbers: Sequence[int] | None = None,
    ) -> Params:  # fmt: skip
        """n deltas from ``starts``, each after its epochs on its documents [n, documents,
        edit_tokens]; ``numbers`` tell repetitions apart, whose orders differ (None: all 0)."""
        lam = {k: v.detach() for k, v in lam.items()}
        solver = solvers.get(self.rewarded.adapt_solver)()
        there = (mask > 0).any(-1).tolist()
        plans = [
            self.order([i for i, is_there in enumerate(row) if is_there], n, number)
            for row, n, number in zip(there, epochs, numbers or [0] * len(there), strict=True)
        ]
        steps = self.steps(lam, ids, mask, plans)
        return lora.adapt_by(steps, starts, lr=lr, solver=solver, clip=self.rewarded.adapt_clip)

    def order(self, documents: Sequence[int], epochs: int, number: int) -> list[list[int]]:
        """The documents of each step of a training."""
        size = self.rewarded.documents_a_step
        if size is None:
            return [list(documents)] * epochs
        out = []
        for epoch in range(epochs):
            gen = generator(self.seeds.batches, "documents", number, epoch)
            shuffled = torch.randperm(len(documents), generator=gen).tolist()
            turns = [documents[i] for i in shuffled]
            out += [turns[i : i + size] for i in range(0, len(turns), size)]
        return out

    def steps(
        self, lam: Params, ids: Tensor, mask: Tensor, plans: Sequence[list[list[int]]]
    ) -> Iterator[lora.Step]:
        """Those of all trainings together; one that is over takes no more part."""
        step, before = None, None
        lengths = mask.new_tensor([len(plan) for plan in plans])
        for t in range(max(map(len, plans))):
            taken = {i: plan[t] for i, plan in enumerate(plans) if t < len(plan)}
            if step is None or taken != before:
                rows, before = [*taken], taken
                most = max(map(len, taken.values()))
                # The rest is filled with a document that counts nothing.
                at = [turn + turn[:1] * (most - len(turn)) for turn in taken.values()]
                real = [[1.0] * len(x) + [0.0] * (most - len(x)) for x in taken.values()]
                of, which = ids.new_tensor(rows)[:, None], ids.new_tensor(at)
                counts = mask[of, which] * mask.new_tensor(real)[..., None]
                terms = self.terms(lam, ids[of, which], counts)
                step = lora.Step(terms, None if len(rows) == len(plans) else rows)
            if self.rewarded.adapt_decay == "linear":
                step = replace(step, share=(1 - t / lengths).clamp(min=0))
            yield step

    def episode(self, split: str, index: int) -> Episode:
        """The passage to train on, and its questions."""
        passage = self.passage(split, index)
        ids, mask = self.training_texts(passage, "")
        outer = self.questions(passage)
        outer["number"] = torch.tensor(self.number[passage], device=self.device)
        return Episode({"ids": ids, "mask": mask}, outer, index)

    def training_texts(self, passage: Passage, edit: str) -> tuple[Tensor, Tensor]:
        """Documents of a training: the passage, then the lines of a self-edit, each titled."""
        lines = [line.strip() for line in edit.split("\n")]
        texts = [passage.context, *(line for line in lines if line)]
        task = self.rewarded
        rows = [self.document(passage, text) for text in texts[: task.documents]]
        return self.rows(rows, task.documents, task.edit_tokens)

    def passage_of(self, episode: Episode) -> Passage:
        """The passage that an episode is about."""
        return self.all_texts[int(episode.outer["number"])]

    def rewarded_by(self, adapters: Sequence[Adapter], episode: Episode) -> Tensor:
        """The reward that is set, of one adaptation or of m [m]."""
        if self.rewarded.reward == "grader":
            return self.graded(adapters, episode)
        return self.judged(adapters, episode.outer)[self.rewarded.reward]

    def evaluations_per_reward(self, episode: Episode) -> int:
        """The grader's verdicts: one a question."""
        if self.rewarded.reward != "grader":
            return 0
        questions = min(len(self.passage_of(episode).questions), self.rewarded.questions)
        return self.trainings_per_reward * questions

    def graded(self, adapters: Sequence[Adapter], episode: Episode) -> Tensor:
        """The share of questions whose greedy answer the grader finds right; a scalar, or [m]."""
        assert self.grader is not None
        task, lm, passage = self.rewarded, self.lm, self.passage_of(episode)
        prompts = [before for before, _ in self.asked(passage)]
        ids, counts = lm.decoder.continued(
            prompts, task.answer_tokens, adapters=adapters, stops=lm.line_ends
        )
        shape = ids.shape[:-1]
        flat = zip(ids.flatten(0, -2), counts.flatten(0, -2), strict=True)
        answers = [lm.decode(i[c > 0].tolist()).partition("\n")[0].strip() for i, c in flat]
        n = len(prompts)
        judged = self.grader.right([
            (passage.questions[i % n], passage.answers[i % n], answer)
            for i, answer in enumerate(answers)
        ])  # fmt: skip
        return torch.tensor(judged, dtype=torch.float64, device=self.device).view(shape).mean(-1)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of the answers, and ``graded`` where there is a grader."""
        out = super().metrics(lam, theta, episode)
        if self.grader is not None:
            out["graded"] = float(self.graded(self.adapters(lam, theta), episode))
        return out
