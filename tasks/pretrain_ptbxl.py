"""Contrastive pre-training on PTB-XL with a learned warp, judged on five diagnoses from few labels.

Raghu et al.: Meta-learning to Improve Pre-training, NeurIPS 2021, arXiv 2111.01754, section 5, with
its data; the network's widths and the crop are those of its code (aniruddhraghu/meta-pretraining,
simclr). Differs: group norm for batch norm; the warp's curve and white noise of one size (see
:mod:`metabench.tasks.families.pretraining.warped_views`); on test examples the head is trained on
the validation examples too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import ptbxl
from .families.pretraining.two_stage import Count, Rule, three_roles
from .families.pretraining.warped_views import WarpedViews, WarpedViewsProblem
from .models.encoders import ResNet


@task("pretrain_ptbxl")
@dataclass(frozen=True)
class PretrainPTBXL(WarpedViews):
    """Contrastive pre-training on PTB-XL with a learned warp: five diagnoses, few labels."""

    split: Literal["folds", "pooled"] = "folds"
    """Where labels come from: fold 9 for the outer loss, folds 1 to 8 to pre-train and fine-tune
    on, as the authors of the data recommend; or folds 1 to 9 for all, as in the paper's code. The
    test is fold 10."""
    window: Annotated[int, Field(ge=16)] = 1024
    """Samples, 100 a second: the first of 1,000, or all and zeros."""
    crop: bool = True
    """Set a random stretch of each lead to zero in each view, up to half of the window."""
    n_tune: Annotated[int, Field(ge=2)] = 400
    """Records to fine-tune on."""
    n_valid: Annotated[int, Field(ge=2)] = 100
    """Other records for the outer loss."""
    n_test: Annotated[int, Field(ge=2)] | None = None
    """Records to test on, every so manieth; None: all."""
    kernel: Annotated[int, Field(ge=3)] = 15
    """Width of the convolutions, odd."""
    final_batch: Count | None = None
    """Records of a step of the final fine-tuning; None: all."""
    final_rule: Rule = "sgd"
    """How the final fine-tuning steps."""

    data: ClassVar[tuple[str, ...]] = ("ptbxl",)

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: it must be odd")

    def build(self, seeds: Seeds, device: torch.device) -> PretrainPTBXLProblem:
        """Draw records. Raises DataMissing, SettingError, MetabenchError."""
        return PretrainPTBXLProblem(self, seeds, device, ptbxl.load())


class PretrainPTBXLProblem(WarpedViewsProblem):
    """Records of twelve leads; with ``crop`` a view has ``keep_*`` [n, 12, window] too, 0 where it
    is cropped and 1 elsewhere. y is [n, 5], 1 for each superclass that a record has."""

    classes = len(ptbxl.CLASSES)
    multilabel = True
    chunk = 256

    def __init__(
        self, task: PretrainPTBXL, seeds: Seeds, device: torch.device, hearts: ptbxl.Hearts
    ) -> None:
        encoder = ResNet(1, ptbxl.LEADS, task.width, task.stages, task.blocks, task.kernel)
        super().__init__(task, seeds, device, encoder, task.window, ptbxl.RATE)
        self.hearts, self.crop = hearts, task.crop
        self.final_batch, self.final_rule = task.final_batch, task.final_rule
        gen = generator(seeds.data, "pretrain_ptbxl")
        pooled = task.split == "pooled"
        last = ptbxl.FOLDS - 1
        free = (hearts.fold <= last if pooled else hearts.fold < last).nonzero()[:, 0]
        self.unlabelled = free
        order = free[torch.randperm(len(free), generator=gen)]
        tune, rest = order[: task.n_tune], order[task.n_tune :]
        if not pooled:
            rest = (hearts.fold == last).nonzero()[:, 0]
            rest = rest[torch.randperm(len(rest), generator=gen)]
        valid, test = rest[: task.n_valid], (hearts.fold == ptbxl.FOLDS).nonzero()[:, 0]
        for name, wanted, part in (("n_tune", task.n_tune, tune), ("n_valid", task.n_valid, valid)):
            if len(part) < wanted:
                raise SettingError(
                    f"task pretrain_ptbxl: {name} is {wanted}; with split {task.split!r} there are "
                    f"{len(part)} records for it"
                )
        if task.n_test is not None:
            test = test[:: max(1, len(test) // task.n_test)]
        self.roles = three_roles(*map(self.labelled, (tune, valid, test)))

    def windows(self, chosen: Tensor) -> Tensor:
        """[n, 12, window] of records [n]."""
        return self.hearts.windows(chosen, self.size).to(self.device, self.dtype)

    def labelled(self, chosen: Tensor) -> Batch:
        """Windows and superclasses of records [n]."""
        label = self.hearts.label[chosen].to(self.device, self.dtype)
        return {"x": self.windows(chosen), "y": label}

    def noise(self, n: int, gen: torch.Generator) -> Batch:
        """``keep`` too: the crop of each lead."""
        out = super().noise(n, gen)
        if self.crop:
            size, at = self.size, torch.arange(self.size)
            length = torch.randint(size, (n, self.leads, 1), generator=gen) // 2
            # From one length before the window on, so that its ends are cropped as often.
            drawn = torch.rand(n, self.leads, 1, generator=gen, dtype=torch.float64)
            first = (drawn * (size + length)).long() - length
            first = first.clamp(min=0)
            out["keep"] = ((at < first) | (at >= first + length)).to(self.device, self.dtype)
        return out

    def view(self, lam: Params, batch: Batch, which: str) -> Tensor:
        """Cropped too."""
        x = super().view(lam, batch, which)
        return x * batch[f"keep_{which}"] if self.crop else x
