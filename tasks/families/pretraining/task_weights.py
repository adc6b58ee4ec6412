"""lam as one weight a pre-training task, of which some teach nothing.

Raghu et al., NeurIPS 2021, section 4: w_t = 2 sigmoid(lam_t), one at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metabench.contract.problem import Hyper, Params
from metabench.contract.seeds import Seeds

from ..auroc import auroc
from .two_stage import TwoStage, TwoStageProblem

LIMIT = 6.0
"""Logits stay within it: weights from 0.005 to 1.995."""


@dataclass(frozen=True)
class WeighedTasks(TwoStage):
    """Settings of two-stage tasks that weigh pre-training tasks."""

    weights: Literal["even", "oracle"] = "even"
    """The first lam: every weight one, or hardly any for the tasks that teach nothing. With method
    ``fixed`` the latter is the best that weights can be told."""

    @property
    def offers(self) -> frozenset[str]:
        """A few weights can be searched too."""
        return super().offers | {"small_lam", "search_space"}


class WeighedTasksProblem(TwoStageProblem):
    """lam: ``logit`` [tasks]. ``useless`` bool [tasks]: labels have nothing to do with inputs."""

    def __init__(
        self, task: WeighedTasks, seeds: Seeds, device: torch.device, useless: Tensor
    ) -> None:
        super().__init__(task, seeds, device)
        self.oracle, self.useless = task.weights == "oracle", useless.to(device)
        self.hypers = (
            Hyper("logit", (len(useless),), -LIMIT, LIMIT, meaning="logit of a task's weight"),
        )

    def init_outer(self) -> Params:
        """logit [tasks]: 0, or the bound's."""
        zero = torch.zeros(len(self.useless), dtype=self.dtype, device=self.device)
        return {"logit": torch.where(self.useless, -LIMIT, 0.0).to(zero) if self.oracle else zero}

    def judge(self, lam: Params) -> dict[str, float]:
        """Mean weight of useless and of other tasks, and how well weights tell them apart."""
        weight = task_weights(lam)
        return {
            "weight_useless": float(weight[self.useless].mean()),
            "weight_useful": float(weight[~self.useless].mean()),
            "auroc_weights": auroc(-weight, self.useless),
        }


def task_weights(lam: Params) -> Tensor:
    """2 sigmoid(logit), [tasks]."""
    return 2 * lam["logit"].sigmoid()


def split_tasks(tasks: int, share: float) -> Tensor:
    """Which of ``tasks`` are useless, bool [tasks]: the last ``share`` of them, at least one and
    not all."""
    n = min(max(round(share * tasks), 1), tasks - 1)
    return torch.arange(tasks) >= tasks - n
