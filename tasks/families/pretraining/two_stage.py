"""Two stages in one problem: theta is pre-trained under lam, a head psi is fine-tuned from theta.

Raghu, Lorraine, Kornblith, McDermott, Duvenaud: Meta-learning to Improve Pre-training, NeurIPS
2021, arXiv 2111.01754.

    inner   theta*(lam) = argmin L_PT(lam, theta)
    outer   F(theta) = L_FT(psi_K(theta), theta; validation),
            psi_{k+1} = psi_k - eta grad_psi L_FT(psi_k, theta; training)

F holds the K steps, so it is a pure function of theta: its gradient goes back through them and
through the features of the validation examples (the direct path). The rest, dtheta*/dlam, is what
every method has an answer to already. Differs from the paper's code: the head starts from zero each
time unless ``head`` says otherwise, and an unrolled head is never kept (a warm one is trained by
the inner problem).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.method import Positive
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import solvers

from ..auroc import macro_auroc, multilabel_auroc

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rule = Literal["sgd", "momentum", "adam"]
Transfer = Literal["linear", "full"]

WEIGHT, BIAS = "head.weight", "head.bias"
"""Names of the fine-tuned head in psi, and in theta where it is trained along."""

ENCODER = "encoder."
"""What the names of an encoder's parameters begin with, in theta and in psi."""

CHUNK = 1024
"""Examples that evaluation encodes at once."""


def fine_tune(
    loss: Callable[[Params], Tensor],
    psi: Params,
    *,
    steps: int,
    lr: float,
    rule: Rule = "sgd",
    create_graph: bool = True,
) -> Params:
    """psi after ``steps`` steps of an inner solver down ``loss``, from psi.

    With ``create_graph`` it stays differentiable in psi and in whatever ``loss`` closes over.
    """
    solver = solvers.get(rule)()
    memory = solver.init(psi)
    for _ in range(steps):
        g = autodiff.grad(loss, psi, create_graph=create_graph)[1]
        psi, memory = solver.update(psi, g, memory, lr)
    return psi


@dataclass(frozen=True)
class TwoStage(Task):
    """Settings of every task with a pre-training and a fine-tuning stage."""

    tune_steps: Count = 5
    """K: steps of the head that the outer loss unrolls."""
    tune_lr: Positive = 0.5
    tune_rule: Rule = "sgd"
    transfer: Transfer = "linear"
    """What the outer loss fine-tunes: the head on features as they are, or a copy of the encoder
    too."""
    head: Literal["fresh", "warm", "cotrained"] = "fresh"
    """Where psi_0 comes from. "fresh": zero. Else from theta, where the inner problem trains it on
    the fine-tuning examples along with pre-training: "warm" leaves the encoder out of that (the
    paper's way; the inner gradient is then no gradient of one function), "cotrained" does not."""
    outer_batch: Count | None = None
    """Fine-tuning and validation examples that an outer step draws; None: all."""
    final: Transfer = "linear"
    """What is fine-tuned before theta is judged."""
    final_steps: Count = 100
    final_lr: Positive = 0.5
    carried: bool = True
    """One pre-training along the run; False: every outer step pre-trains from the same start."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "auroc"
    goal: ClassVar[Literal["max", "min"]] = "max"
    outer_on_validation: ClassVar[bool] = True

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives and predictions; one inner problem, or episodes where theta starts anew."""
        own = {"lam_in_inner_loss", "prediction"}
        return GRADIENTS | own | {"best_response" if self.carried else "episodes"}


class TwoStageProblem(Problem):
    """What two-stage problems share; theta: ``encoder.*``, ``pretrain.*`` and, where it is trained
    along, the head [classes, features] and [classes].

    Subclasses fill ``roles``: split to (fine-tuning examples, examples that judge), each ``x``
    [n, ...] and ``y`` int64 [n] or, with ``multilabel``, [n, classes]. The outer batch has them as
    ``support_x``, ``support_y``, ``x`` and ``y``; inner batches have ``support_*`` too where the
    head is trained along.
    """

    multilabel = False
    """Whether every class is a question of its own: y is 1, 0 or, where not asked, NaN."""
    chunk = CHUNK
    """Examples that evaluation encodes at once."""
    final_batch: int | None = None
    """Examples of a step of the final fine-tuning; None: all."""
    final_rule: Rule | None = None
    """How the final fine-tuning steps; None: as the unrolled one does."""
    classes: int
    feature_size: int
    roles: dict[str, tuple[Batch, Batch]]

    def __init__(self, task: TwoStage, seeds: Seeds, device: torch.device) -> None:
        self.settings, self.seeds, self.device = task, seeds, device
        self.carried = task.carried
        self.dtype: torch.dtype = getattr(torch, task.dtype)

    @abstractmethod
    def first_weights(self) -> Params:
        """The first encoder and pre-training head."""

    @abstractmethod
    def encode(self, theta: Params, x: Tensor) -> Tensor:
        """Features [n, feature_size] of examples [n, ...]."""

    @abstractmethod
    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """What pre-training's loss is taken of."""

    @abstractmethod
    def pretraining_loss(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """L_PT of what :meth:`predict` gives."""

    @abstractmethod
    def pretraining(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """The pre-training batches of an episode, as in :class:`Episode`."""

    def judge(self, lam: Params) -> dict[str, float]:
        """Metrics of lam itself."""
        return {}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights every time; a head that is trained along starts from zero."""
        theta = self.first_weights()
        return theta if self.settings.head == "fresh" else theta | self.zero_head()

    def zero_head(self) -> Params:
        """No class before another."""
        zero = torch.zeros(self.classes, self.feature_size, dtype=self.dtype, device=self.device)
        return {WEIGHT: zero, BIAS: zero.new_zeros(self.classes)}

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """L_PT, and the head's own loss where it is trained along."""
        value = self.pretraining_loss(lam, prediction, batch)
        if self.settings.head == "fresh":
            return value
        features = self.encode(theta, batch["support_x"])
        if self.settings.head == "warm":
            features = features.detach()
        return value + self.head_loss(classify(theta, features), batch["support_y"])

    def head_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of logits [n, classes]; with ``multilabel`` binary, mean over the labels
        that are there."""
        if not self.multilabel:
            return F.cross_entropy(logits, y)
        asked = ~y.isnan()
        each = F.binary_cross_entropy_with_logits(logits, y.nan_to_num(), reduction="none")
        return (each * asked).sum() / asked.sum()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Of the prediction."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """L_FT of the head after K steps on validation examples; lam enters through theta alone."""
        task = self.settings
        # Without a derivative to take, what comes back must have no graph of its own making.
        asked = autodiff.is_functional() or any(v.requires_grad for v in theta.values())
        tuned = self.tuned(
            theta, batch, task.transfer, task.tune_steps, task.tune_lr, create_graph=asked
        )
        return self.head_loss(classify(tuned, self.encode(tuned, batch["x"])), batch["y"])

    def tuned(
        self,
        theta: Params,
        batch: Batch,
        transfer: Transfer,
        steps: int,
        lr: float,
        *,
        create_graph: bool,
    ) -> Params:
        """theta with psi after ``steps`` fine-tuning steps in it."""
        x, y = batch["support_x"], batch["support_y"]
        psi = self.first_head(theta, transfer)
        features = None if transfer == "full" else self.encode(theta, x)

        def loss(psi: Params) -> Tensor:
            seen = self.encode(psi, x) if features is None else features
            return self.head_loss(classify(psi, seen), y)

        rule = self.settings.tune_rule
        end = fine_tune(loss, psi, steps=steps, lr=lr, rule=rule, create_graph=create_graph)
        return {**theta, **end}

    def first_head(self, theta: Params, transfer: Transfer) -> Params:
        """psi_0: the head, and with full transfer the encoder."""
        psi = {k: theta[k] for k in (WEIGHT, BIAS)} if WEIGHT in theta else self.zero_head()
        if transfer == "full":
            psi |= {k: v for k, v in theta.items() if k.startswith(ENCODER)}
        return psi

    def finally_tuned(self, theta: Params, batch: Batch) -> Params:
        """theta with psi after the final fine-tuning in it: on all examples at once, or in every
        step on ``final_batch`` others, drawn anew after each pass over all."""
        task, size, rule = self.settings, self.final_batch, self.final_rule
        if size is None and rule is None:
            return self.tuned(
                theta, batch, task.final, task.final_steps, task.final_lr, create_graph=False
            )
        x, y = batch["support_x"], batch["support_y"]
        features = None if task.final == "full" else self.encode_all(theta, x)
        drawn = rows(len(y), size or len(y), generator(self.seeds.batches, "final"))

        def loss(psi: Params) -> Tensor:
            chosen = next(drawn).to(y.device)
            seen = self.encode(psi, x[chosen]) if features is None else features[chosen]
            return self.head_loss(classify(psi, seen), y[chosen])

        end = fine_tune(
            loss,
            self.first_head(theta, task.final),
            steps=task.final_steps,
            lr=task.final_lr,
            rule=rule or task.tune_rule,
            create_graph=False,
        )
        return {**theta, **end}

    def encode_all(self, theta: Params, x: Tensor) -> Tensor:
        """Features of many examples, without a graph."""
        with torch.no_grad():
            return torch.cat([self.encode(theta, part) for part in x.split(self.chunk)])

    def episode(self, split: str, index: int) -> Episode:
        """Pre-training batches, and the roles of the split; in training ``outer_batch`` of each."""
        inner = self.pretraining(split, index)
        task = self.settings
        if task.head != "fresh":
            inner = self.with_support(inner, split, index)
        size = task.outer_batch if split == "train" else None
        gen = generator(self.seeds.batches, "outer", index)
        support, judged = (some(part, size, gen) for part in self.roles[split])
        return Episode(inner, {**as_support(support), **judged}, index)

    def with_support(
        self, inner: Batch | Callable[[int], Batch], split: str, index: int
    ) -> Batch | Callable[[int], Batch]:
        """Pre-training batches with fine-tuning examples beside them."""
        part, size = self.roles["train"][0], self.settings.outer_batch
        if size is None and not callable(inner):
            return {**inner, **as_support(part)}

        def both(t: int) -> Batch:
            gen = generator(self.seeds.batches, "support", split, index, t)
            drawn = inner(t) if callable(inner) else inner
            return {**drawn, **as_support(some(part, size, gen))}

        return both

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Of theta after the final fine-tuning on the split's examples: macro AUROC, accuracy and
        cross-entropy; and what is to be said of lam."""
        tuned, y = self.finally_tuned(theta, episode.outer), episode.outer["y"]
        with torch.no_grad():
            logits = classify(tuned, self.encode_all(tuned, episode.outer["x"]))
        if self.multilabel:
            score, right = multilabel_auroc(logits, y), ((logits > 0) == (y > 0))[~y.isnan()]
        else:
            score, right = macro_auroc(logits, y), logits.argmax(1) == y
        return {
            "auroc": score,
            "accuracy": float(right.double().mean()),
            "loss": float(self.head_loss(logits, y)),
            **self.judge(lam),
        }


def classify(psi: Params, features: Tensor) -> Tensor:
    """Logits [n, classes] of features [n, feature_size]."""
    return F.linear(features, psi[WEIGHT], psi[BIAS])


def as_support(part: Batch) -> Batch:
    """Examples under the names that fine-tuning reads."""
    return {"support_x": part["x"], "support_y": part["y"]}


def rows(n: int, size: int, gen: torch.Generator) -> Iterator[Tensor]:
    """Numbers of ``size`` of n examples without end, in an order drawn anew for every pass; the
    last of a pass are fewer."""
    while True:
        yield from torch.randperm(n, generator=gen).split(size)


def some(part: Batch, size: int | None, gen: torch.Generator) -> Batch:
    """``size`` different examples of a part, or all of it where it has no more."""
    n = len(part["y"])
    if size is None or size >= n:
        return part
    chosen = torch.randperm(n, generator=gen)[:size].to(part["y"].device)
    return {k: v[chosen] for k, v in part.items()}


def three_roles(
    tune: Batch, valid: Batch, test: Batch, selection: Batch | None = None
) -> dict[str, tuple[Batch, Batch]]:
    """What fine-tunes and what judges in each split. On test examples all that is labelled
    fine-tunes: methods that do without validation examples get no fewer labels."""
    every = {k: torch.cat([tune[k], valid[k]]) for k in ("x", "y")}
    out = {"train": (tune, valid), "valid": (tune, valid), "test": (every, test)}
    return out if selection is None else out | {"selection": (tune, selection)}
