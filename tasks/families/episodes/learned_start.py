"""Tasks that learn where a network starts, in the inner loss or apart from it.

lam is all weights of a network. Either theta starts there and nothing else is known of it (Finn,
Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv 1703.03400), or lam is the centre of
a Gaussian prior on theta as well (Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit
Gradients, NeurIPS 2019, arXiv 1909.04630), which is part of the inner loss: there every
method applies that needs lam in it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.task import Task
from metabench.core import settings

LACKS = dict.fromkeys(
    ("small_lam", "search_space"),
    "lam is the weights of a network: neither few scalars nor bounds to search in",
)
LACKS_OF_A_START = {
    "lam_in_inner_loss": "lam is where theta starts: the inner loss does not have it"
}
_CENTRE = "lam is the centre of a prior here (formulation = 'prior')"
LACKS_OF_A_PRIOR = {
    "lam_is_initialisation": f"{_CENTRE}: theta's minimiser moves with it, not its start",
    "head": f"{_CENTRE}, on all weights alike",
}
"""Why some needs are not met where lam is a network's weights, their start, or a prior's centre."""


def prior_loss(precision: float, lam: Params, theta: Params) -> Tensor:
    """mu/2 |theta - lam|^2 over all tensors of theta."""
    gaps = torch.stack([(v - lam[k]).square().sum() for k, v in theta.items()])
    return 0.5 * precision * gaps.sum()


@dataclass(frozen=True)
class LearnedStart(Task):
    """Settings of such tasks."""

    formulation: Literal["init", "prior"] = settings.later("init")
    """lam = all initial weights; or lam = the centre of a Gaussian prior on all weights, which is
    part of the inner loss, and which they start at."""
    prior_precision: Annotated[float, Field(gt=0)] = settings.later(2.0)
    """mu: the formulation "prior" adds mu/2 |theta - lam|^2 to the error of the inner batch."""

    evaluations: ClassVar[tuple[str, ...]] = ("test",)

    @property
    def offers(self) -> frozenset[str]:
        """A network, and episodes; a start to learn, with a head, or a lam in the inner loss."""
        own = {"module", "episodes", "prediction"}
        if self.formulation == "prior":
            return GRADIENTS | own | {"lam_in_inner_loss"}
        return GRADIENTS | own | {"lam_is_initialisation", "head"}

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        return LACKS | (LACKS_OF_A_START if self.formulation == "init" else LACKS_OF_A_PRIOR)


class LearnedStartProblem(Problem):
    """lam and theta: the weights of ``module``, whose last layer is ``head``.

    Subclasses give :meth:`predict`, :meth:`error` and :meth:`episode`, and call :meth:`starts`.
    """

    head = ("head.weight", "head.bias")
    task: LearnedStart
    start: Params

    def starts(self, task: LearnedStart, start: Params) -> None:
        """Take the settings and the first lam."""
        self.task, self.start = task, start
        self.starts_at_lam = task.formulation == "prior"

    @abstractmethod
    def error(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Of what the network predicts for a batch: a scalar."""

    def init_outer(self) -> Params:
        """Every weight."""
        return {k: v.clone() for k, v in self.start.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """lam itself."""
        return {k: lam[k] for k in self.start}

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """The error; with a prior also mu/2 |theta - lam|^2."""
        error = self.error(prediction, batch)
        if self.task.formulation != "prior":
            return error
        return error + prior_loss(self.task.prior_precision, lam, theta)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """:meth:`loss_of_prediction` of the batch's."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The error alone."""
        return self.error(self.predict(lam, theta, batch), batch)
