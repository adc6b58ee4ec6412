"""Contrastive pre-training on ECGs with a learned warp, judged on few labels and unseen patients.

After Raghu et al.: Meta-learning to Improve Pre-training, NeurIPS 2021, arXiv 2111.01754, section 5
(see :mod:`metabench.tasks.families.pretraining.warped_views`). Differs: beats of MIT-BIH (two
leads, AAMI classes N, S, V, F, patients of DS1 and DS2) for ten seconds of PTB-XL (twelve leads,
five diagnoses), which are the task ``pretrain_ptbxl``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Batch
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import ecg
from .data.left_over import kept, lacks_kept
from .families.pretraining.two_stage import three_roles
from .families.pretraining.warped_views import WarpedViews, WarpedViewsProblem
from .models.encoders import ResNet

LEADS = 2

FEWEST = 410
"""Beats of the scarcest class of DS1 that have a whole window, up to windows of 600 samples."""


@task("pretrain_ecg")
@dataclass(frozen=True)
class PretrainECG(WarpedViews):
    """Contrastive pre-training on ECG beats with a learned warp: few labels, unseen patients."""

    window: Annotated[int, Field(ge=16)] = 128
    """Samples around a beat, 100 a second."""
    n_tune: Annotated[int, Field(ge=8)] = 100
    """Beats of DS1 to fine-tune on, as many of each class."""
    n_valid: Annotated[int, Field(ge=8)] = 200
    """Other beats of DS1 for the outer loss, as many of each class."""
    n_test: Annotated[int, Field(ge=8)] | None = None
    """Beats of DS2 to test on, every so manieth of each class; None: all."""

    data: ClassVar[tuple[str, ...]] = ("mitbih",)

    @property
    def lacks_selection(self) -> str | None:
        """Beats of DS1 that have lent no label, as many of each class; pre-training sees them
        without their labels, as it does those that validate."""
        return lacks_kept(self.n_valid, len(ecg.CLASSES) * self.left)

    @property
    def left(self) -> int:
        """Beats of the scarcest class that fine-tuning and validation leave over."""
        classes = len(ecg.CLASSES)
        return max(0, FEWEST - self.n_tune // classes - self.n_valid // classes)

    def build(self, seeds: Seeds, device: torch.device) -> PretrainECGProblem:
        """Draw beats. Raises DataMissing, SettingError."""
        return PretrainECGProblem(self, seeds, device, ecg.load())


class PretrainECGProblem(WarpedViewsProblem):
    """Windows of two leads with a beat in the middle."""

    classes = len(ecg.CLASSES)

    def __init__(
        self, task: PretrainECG, seeds: Seeds, device: torch.device, beats: ecg.Beats
    ) -> None:
        encoder = ResNet(1, LEADS, task.width, task.stages, task.blocks)
        super().__init__(task, seeds, device, encoder, task.window, ecg.RATE)
        self.beats = beats
        whole = beats.whole(task.window)
        self.unlabelled = ((beats.part == 1) & whole).nonzero()[:, 0]
        gen = generator(seeds.data, "pretrain_ecg")
        tune, valid, test, chosen_by = [], [], [], []
        for k, name in enumerate(ecg.CLASSES):
            of = (beats.label == k) & whole
            there = (of & (beats.part == 1)).nonzero()[:, 0]
            share = [n // self.classes for n in (task.n_tune, task.n_valid)]
            if sum(share) > len(there):
                raise SettingError(
                    f"task pretrain_ecg: n_tune + n_valid take {sum(share)} beats of class {name}; "
                    f"DS1 has {len(there)}"
                )
            there = there[torch.randperm(len(there), generator=gen)]
            tune.append(there[: share[0]])
            valid.append(there[share[0] : sum(share)])
            chosen_by.append(there[sum(share) :][: kept(share[1], task.left)])
            test.append((of & (beats.part == 2)).nonzero()[:, 0])
        if task.n_test is not None:
            every = max(1, sum(map(len, test)) // task.n_test)
            test = [found[:: min(every, len(found))] for found in test]
        roles = (tune, valid, test, chosen_by)
        self.roles = three_roles(*(self.labelled(torch.cat(x)) for x in roles))

    def windows(self, chosen: Tensor) -> Tensor:
        """[n, 2, window] of beats [n]."""
        return self.beats.windows(chosen, self.size).to(self.device, self.dtype)

    def labelled(self, chosen: Tensor) -> Batch:
        """Windows and classes of beats [n]."""
        return {"x": self.windows(chosen), "y": self.beats.label[chosen].to(self.device)}
