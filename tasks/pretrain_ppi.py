"""Pre-training on 5,000 protein functions, a weight each, for 40 others: the paper's own task.

Raghu et al.: Meta-learning to Improve Pre-training, NeurIPS 2021, arXiv 2111.01754, section 4, on
the protein graphs of Hu et al., ICLR 2020. Graphs of seven species are pre-trained and fine-tuned
on, human ones tested; half of the human ones (the "easy" half) are pre-trained on too. Differs:
layer norm for batch norm (see :mod:`metabench.tasks.models.gin`), no dropout in fine-tuning, splits
drawn anew for each seed, and on test graphs the head is trained on the validation graphs too.

Graphs are addressed: an example x is the number of a graph, which ``encode`` looks up. A batch of
them has no fixed size, so episodes cannot be stacked, and the problem is a carried one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.method import Positive
from metabench.contract.problem import Batch, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import ppi
from .families.pretraining.task_weights import LIMIT, task_weights
from .families.pretraining.two_stage import (
    ENCODER,
    Count,
    Rule,
    TwoStage,
    TwoStageProblem,
    three_roles,
)
from .models.encoders import first_values
from .models.gin import GIN

FOLD = 10
"""Fine-tuning tasks that are held out together."""
FEW = 100
"""Weights that can be searched."""


@task("pretrain_ppi")
@dataclass(frozen=True)
class PretrainPPI(TwoStage):
    """Pre-training on 5,000 functions of proteins, one weight each, for 40 others: graphs."""

    n_tasks: Annotated[int, Field(ge=1, le=5000)] = 5000
    """Functions to pre-train on: the first so many."""
    unseen: bool = False
    """Judge on the ten functions of ``fold`` and learn lam for the other thirty."""
    fold: Annotated[int, Field(ge=0, le=3)] = 3
    """Of four; the last are functions 30 to 39."""
    test: Literal["hard", "easy"] = "hard"
    """Which half of the human graphs is tested on; the easy one is pre-trained on."""
    n_pretrain: Count | None = None
    """Graphs to pre-train on; None: all of seven species, and the easy half."""
    n_tune: Count | None = None
    """Graphs of seven species to fine-tune on; None: 85 in a hundred."""
    n_valid: Count | None = None
    """Others of these for the outer loss; None: the rest."""
    n_test: Count | None = None
    """Human graphs to test on; None: all of the half."""
    batch: Count = 32
    """Graphs of an inner step."""
    width: Count = 300
    layers: Count = 5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """In pre-training, after each layer."""
    final_batch: Count | None = 32
    """Graphs of a step of the final fine-tuning; None: all."""
    final_rule: Rule = "sgd"
    """How the final fine-tuning steps."""

    outer_batch: Count | None = 32
    tune_lr: Positive = 0.1
    final_lr: Positive = 0.1
    final_steps: Count = 1000
    carried: Literal[True] = True

    data: ClassVar[tuple[str, ...]] = ("ppi_bio",)

    @property
    def offers(self) -> frozenset[str]:
        """A few weights can be searched too."""
        few = {"small_lam", "search_space"} if self.n_tasks <= FEW else set()
        return super().offers | few

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        if self.n_tasks <= FEW:
            return {}
        why = f"lam has a weight for each of {self.n_tasks} tasks: too many to search in"
        return dict.fromkeys(("small_lam", "search_space"), why)

    def build(self, seeds: Seeds, device: torch.device) -> PretrainPPIProblem:
        """Draw graphs. Raises DataMissing, SettingError, MetabenchError."""
        return PretrainPPIProblem(self, seeds, device, ppi.load())


class PretrainPPIProblem(TwoStageProblem):
    """lam: ``logit`` [tasks]. Examples: ``x`` int64 [n], which graphs; pre-training batches have
    ``y`` [n, tasks] and, with dropout, ``keep`` [layers, nodes, width] besides; fine-tuning
    examples ``y`` [n, 40], NaN for functions that the split does not ask for."""

    multilabel = True
    chunk = 256

    def __init__(
        self, task: PretrainPPI, seeds: Seeds, device: torch.device, graphs: ppi.Graphs
    ) -> None:
        super().__init__(task, seeds, device)
        self.task, self.graphs = task, graphs
        self.final_batch, self.final_rule = task.final_batch, task.final_rule
        self.classes = graphs.downstream.shape[1]
        self.n_tasks = min(task.n_tasks, graphs.pretrain.shape[1])
        self.encoder = GIN(ppi.KINDS, task.width, task.layers)
        self.feature_size = self.encoder.feature_size
        gen = generator(seeds.data, "pretrain_ppi")

        def shuffled(of: Tensor) -> Tensor:
            found = of.nonzero()[:, 0]
            return found[torch.randperm(len(found), generator=gen)]

        human = graphs.species == ppi.TEST_SPECIES
        others, people = shuffled(~human), shuffled(human)
        easy, hard = people.tensor_split([len(people) // 2])
        cut = int(0.85 * len(others)) if task.n_tune is None else task.n_tune
        tune, rest = others[:cut], others[cut:]
        pretrained = torch.cat([others, easy])
        pretrained = pretrained[torch.randperm(len(pretrained), generator=gen)]
        self.pretrained = first("n_pretrain", task.n_pretrain, pretrained)
        tune = first("n_tune", task.n_tune, tune)
        valid = first("n_valid", task.n_valid, rest)
        test = first("n_test", task.n_test, easy if task.test == "easy" else hard)

        held_out = torch.arange(self.classes) // FOLD == task.fold
        seen, asked = (~held_out, held_out) if task.unseen else (None, None)
        self.roles = three_roles(*(self.labelled(part, seen) for part in (tune, valid, test)))
        if task.unseen:
            parts = (self.labelled(part, asked) for part in (tune, valid, test))
            self.roles["test"] = three_roles(*parts)["test"]
        meaning = "logit of a task's weight"
        self.hypers = (Hyper("logit", (self.n_tasks,), -LIMIT, LIMIT, meaning=meaning),)

    def labelled(self, chosen: Tensor, asked: Tensor | None) -> Batch:
        """Numbers and functions of graphs [n]; ``asked`` bool [40], None: all."""
        y = self.graphs.downstream[chosen].to(self.dtype)
        if asked is not None:
            y[:, ~asked] = torch.nan
        return {"x": chosen.to(self.device), "y": y.to(self.device)}

    def init_outer(self) -> Params:
        """Zero: every weight one."""
        return {"logit": torch.zeros(self.n_tasks, dtype=self.dtype, device=self.device)}

    def first_weights(self) -> Params:
        """An encoder, and a head ``pretrain.weight`` [tasks, features], ``bias`` [tasks]."""
        gen = generator(self.seeds.init, "pretrain_ppi")
        shapes = {f"{ENCODER}{k}": shape for k, shape in self.encoder.shapes().items()}
        shapes |= {"pretrain.weight": (self.n_tasks, self.feature_size)}
        shapes |= {"pretrain.bias": (self.n_tasks,)}
        return {k: v.to(self.device) for k, v in first_values(shapes, gen, self.dtype).items()}

    def features(self, theta: Params, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """[n, features] of the graphs x int64 [n]."""
        cut = self.graphs.cut(x.cpu(), self.device, self.dtype)
        return self.encoder.features(theta, cut, ENCODER, keep)

    def encode(self, theta: Params, x: Tensor) -> Tensor:
        """Without dropout."""
        return self.features(theta, x)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Logits [n, tasks]."""
        seen = self.features(theta, batch["x"], batch.get("keep"))
        return F.linear(seen, theta["pretrain.weight"], theta["pretrain.bias"])

    def pretraining_loss(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """mean over tasks and graphs of w_t BCE."""
        each = F.binary_cross_entropy_with_logits(prediction, batch["y"], reduction="none")
        return (each.mean(0) * task_weights(lam)).mean()

    def pretraining(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """Graphs, and what dropout keeps, drawn for every step."""
        task, n = self.task, len(self.pretrained)

        def drawn(t: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, t)
            chosen = self.pretrained[torch.randint(n, (task.batch,), generator=gen)]
            y = self.graphs.pretrain[chosen, : self.n_tasks]
            batch = {"x": chosen.to(self.device), "y": y.to(self.device, self.dtype)}
            if task.dropout:
                shape = (task.layers, self.graphs.nodes(chosen), task.width)
                keep = torch.rand(shape, generator=gen, dtype=torch.float32) >= task.dropout
                batch["keep"] = keep.to(self.device, self.dtype) / (1 - task.dropout)
            return batch

        return drawn

    def judge(self, lam: Params) -> dict[str, float]:
        """Mean and deviation of the weights, and the share of those below a half."""
        weight = task_weights(lam)
        return {
            "weight_mean": float(weight.mean()),
            "weight_deviation": float(weight.std(correction=0)),
            "weight_low": float((weight < 0.5).double().mean()),
        }


def first(name: str, wanted: int | None, found: Tensor) -> Tensor:
    """The first so many, or all. Raises SettingError where there are fewer, or none."""
    if len(found) < (wanted or 1):
        raise SettingError(
            f"task pretrain_ppi: {name} is {wanted}; there are {len(found)} graphs for it"
        )
    return found[:wanted]
