"""Regression in one dimension by a network of Gaussians (TAGI), or by Adam.

Goulet, Nguyen, Amiri: Tractable approximate Gaussian inference for Bayesian neural networks, JMLR
22(251), 2021. The data are this project's own: y = sin(3 x) and noise of deviation ``noise``, x
uniform in [-1, 1]. Each training is one of its own: data, first weights and batches. lam is what
the learner has to be told: sigma_v and the gain of the prior, or Adam's step size. An inner step is
an update by one batch (``Problem.own_step``), counted as an inner gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import OwnStep
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.own_learning import (
    ADAM,
    NO_GRADIENTS,
    TAGI_PARTS,
    Gain,
    Rate,
    SigmaV,
    draw,
    first,
)
from .models.adam_network import Adam, AdamNetwork
from .models.dense import Array, Dense
from .models.tagi import TAGI, Belief

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@task("tagi_regression")
@dataclass(frozen=True)
class TagiRegression(Task):
    """A curve from a few noisy points, by TAGI or by Adam; judged by likelihood."""

    learner: Literal["tagi", "adam"] = "tagi"
    """"adam": on the squared error; its predictions have the variance sigma_v^2."""
    units: Count = 50
    relu: Literal["linearised", "exact"] = "linearised"
    """TAGI's moments of a ReLU."""
    sigma_v: SigmaV = 0.2
    """lam's first standard deviation of an observation."""
    gain: Gain = 1.0
    """lam's first multiple of He's variances."""
    rate: Rate = 0.01
    """lam's first step size of Adam."""
    noise: Positive = 0.2
    n_train: Count = 30
    n_valid: Count = 30
    n_test: Count = 200
    batch: Count = 10
    """Points of an inner step: a part of a new order of all points in every epoch."""
    meta_batch: Count = 1
    """Data sets, each trained on from its own start, of an outer step."""

    metric: ClassVar[str] = "log_likelihood"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = ("log_likelihood", "loss", "rmse")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[str, str]] = NO_GRADIENTS

    def __post_init__(self) -> None:
        if self.n_train % self.batch:
            raise ValueError(f"batch is {self.batch}: it must divide n_train, {self.n_train}")

    @property
    def offers(self) -> frozenset[str]:
        """Steps of its own, bounds of a few numbers, and episodes."""
        return frozenset({"own_step", "search_space", "small_lam", "episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> TagiRegressionProblem:
        """Nothing to load."""
        return TagiRegressionProblem(self, seeds, device)


class TagiRegressionProblem(Problem):
    """lam, float64: "sigma_v" [] and "gain" [], or "rate" []. theta, float64 [numbers]: "mean" and
    "var", or "weights", "first", "second" and "step" []. Batches: "x", "y" [n]. Everything is
    computed on the CPU."""

    def __init__(self, task: TagiRegression, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.episodes_per_step = task.meta_batch
        self.hypers = TAGI_PARTS if task.learner == "tagi" else ADAM
        self.dense = Dense((1, task.units, 1))
        self.tagi, self.adam = TAGI(self.dense, task.relu), AdamNetwork(self.dense)

    def init_outer(self) -> Params:
        """The settings'."""
        return first(self.hypers, self.task, self.device)

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Drawn by the episode."""
        rng = draw(episode.outer["start"])
        if self.task.learner == "tagi":
            return self.params(self.tagi.prior(rng, float(lam["gain"])))
        return self.params(self.adam.start(rng))

    def params(self, held: Any) -> Params:
        """As theta."""
        return {
            k: torch.as_tensor(v, dtype=torch.float64, device=self.device)
            for k, v in held._asdict().items()
        }

    def held(self, theta: Params) -> Any:
        """From theta."""
        kind: Any = Belief if self.task.learner == "tagi" else Adam
        return kind(*(theta[k].detach().cpu().numpy() for k in kind._fields))

    def own_step(self, lam: Params, theta: Params, batch: Batch) -> OwnStep:
        """One update by a batch."""
        held = self.held(theta)
        x, y = column(batch["x"]), column(batch["y"])
        if isinstance(held, Belief):
            noise = np.full_like(y, float(lam["sigma_v"]) ** 2)
            moments = self.tagi.forward(held, x)
            moved: Any = self.tagi.update(held, moments, y, noise, np.ones_like(y))[0]
        else:
            units = self.adam.forward(held.weights, x)
            g = self.adam.gradient(held.weights, units, 2 * (units[-1] - y) / len(y))
            moved = self.adam.moved(held, g, float(lam["rate"]))
        return OwnStep(self.params(moved), {"inner_gradients": 1})

    def observations(self, lam: Params, theta: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Means and variances [n] of the observations."""
        held, x = self.held(theta), column(batch["x"])
        if isinstance(held, Belief):
            top = self.tagi.forward(held, x)[-1]
            mean, var = top.mean[:, 0], top.var[:, 0] + float(lam["sigma_v"]) ** 2
        else:
            mean = self.adam.forward(held.weights, x)[-1][:, 0]
            var = np.full_like(mean, self.task.sigma_v**2)
        return torch.from_numpy(mean).to(self.device), torch.from_numpy(var).to(self.device)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Minus the mean log likelihood of a point."""
        mean, var = self.observations(lam, theta, batch)
        each = (batch["y"] - mean).square() / var + var.log() + math.log(2 * math.pi)
        return 0.5 * each.mean()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same of other points."""
        return self.inner_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """Data, a start and orders of its own."""
        t, address = self.task, (split, index)
        gen = generator(self.seeds.data, "tagi_regression", *address)
        known, held_out = (self.points(gen, n) for n in (t.n_train, self.judges(split)))
        start = torch.randint(2**62, (), generator=generator(self.seeds.init, *address))

        def batch(step: int) -> Batch:
            epoch, part = divmod(step, t.n_train // t.batch)
            order = torch.randperm(
                t.n_train, generator=generator(self.seeds.batches, *address, epoch)
            )
            rows = order[part * t.batch : (part + 1) * t.batch].to(self.device)
            return {k: v[rows] for k, v in known.items()}

        return Episode(batch, {**held_out, "start": start}, index)

    def judges(self, split: str) -> int:
        """How many points judge a training of a split."""
        return self.task.n_test if split == "test" else self.task.n_valid

    def points(self, gen: torch.Generator, n: int) -> Batch:
        """ "x" and "y" [n]."""
        x = 2 * torch.rand(n, generator=gen, dtype=torch.float64) - 1
        noise = torch.randn(n, generator=gen, dtype=torch.float64)
        y = torch.sin(3 * x) + self.task.noise * noise
        return {"x": x.to(self.device), "y": y.to(self.device)}

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Mean log likelihood of a point, minus that (``loss``), and the root of the mean squared
        error."""
        mean, _ = self.observations(lam, theta, episode.outer)
        error = (episode.outer["y"] - mean).square().mean().sqrt()
        loss = float(self.outer_loss(lam, theta, episode.outer))
        return {
            "log_likelihood": -loss,
            "loss": loss,
            "rmse": float(error),
        }


def column(values: Tensor) -> Array:
    """[n] as [n, 1]."""
    return values.detach().cpu().numpy()[:, None]
