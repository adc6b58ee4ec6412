"""Learning a loss for regression: training targets with outliers, clean rows as the outer loss.

Inner loss: mean of a loss with parameters lam on the training rows, some of whose targets were
moved far away; outer loss: half the mean squared error on clean validation rows. Forms of lam: a
power of the error, the width of a (pseudo-)Huber loss, a Taylor polynomial, a small network
(Bechtle et al., ML3), a weight net (Shu et al., Meta-Weight-Net), a weight for each row;
:mod:`metabench.tasks.models.losses` cites them. Five sets of the UCI repository; the kind, share
and size of outliers are this project's own.

With method ``fixed`` the first lam is a baseline: form "power" with ``power`` 2 is squared error, 1
absolute error; form "huber"; ``train_on`` gives the bound. Inputs are standardised by the training
rows, targets by the validation rows, which have no outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data.left_over import kept, lacks_kept
from .data.uci_tables import SIZES, load, standard
from .families.noisy_targets import Learning, LearningProblem
from .models import losses

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
KINDS = ("weight", "bias")


@task("loss_regression")
@dataclass(frozen=True)
class LossRegression(Learning):
    """Learning a loss for regression: targets with outliers to train on, clean rows to judge."""

    dataset: Literal["yacht", "energy", "concrete", "kin8nm", "power"] = "energy"
    form: losses.NumberForm = "power"
    """What lam is; "examples" has a logit for every training row."""
    power: Annotated[float, Field(ge=1, le=2)] = 2.0
    """First power of form "power"."""
    delta: Annotated[float, Field(ge=0.02, le=50)] = 1.0
    """First width of form "huber", in deviations of the clean targets."""
    smoothing: Annotated[float, Field(ge=0)] = 0.05
    """Form "power" has (error^2 + smoothing^2) for error^2: below 2 a power has no second
    derivative at 0."""
    bound: Positive | None = 3.0
    """Form "taylor" sees predictions and targets through bound tanh(x / bound); None: as they are,
    where a cubic has no minimum."""
    outliers: Share = 0.2
    """Share of the training targets that is moved."""
    size: Annotated[float, Field(ge=0)] = 5.0
    """How far, in deviations of the targets; times 1 plus the size of a normal number."""
    side: Literal["up", "both"] = "up"
    train_on: Literal["noisy", "right", "valid"] = "noisy"
    """All training rows, those without moved targets, or the validation rows in their place."""
    network: Literal["linear", "mlp"] = "mlp"
    """Linear, or one hidden tanh layer."""
    width: Count = 32
    n_train: Count | None = None
    """None: all rows but validation and test rows."""
    n_valid: Count = 50
    n_test: Count = 100
    batch: Count | None = None
    """Training rows of an inner step; None: all."""
    l2: Annotated[float, Field(ge=0)] = 1e-3
    """The inner loss has l2 / 2 times the squared norm of theta added."""
    carried: bool = True
    """One training along the run; False: every outer step trains from the same fresh weights."""
    dtype: Literal["float32", "float64"] = "float64"

    metric: ClassVar[str] = "rmse"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    data: ClassVar[tuple[str, ...]] = ("uci_regression",)
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    metrics: ClassVar[tuple[str, ...]] = (
        "rmse",
        "loss",
        "mae",
        "effective_step",
        "weight_right",
        "weight_wrong",
    )

    @property
    def lacks_selection(self) -> str | None:
        """Rows are left over where ``n_train`` is set."""
        rows, _ = SIZES[self.dataset]
        rest = rows - self.n_valid - self.n_test
        return lacks_kept(self.n_valid, 0 if self.n_train is None else rest - self.n_train)

    def build(self, seeds: Seeds, device: torch.device) -> LossRegressionProblem:
        """Cut the parts, move targets. Raises DataMissing, SettingError."""
        parts, wrong = self.parts(seeds, *load(self.dataset))
        return LossRegressionProblem(self, seeds, device, parts, wrong)

    def parts(self, seeds: Seeds, x: Tensor, y: Tensor) -> tuple[dict[str, Batch], Tensor]:
        """Standardised parts "x" [n, d] and "y" [n] of a table, and which training targets were
        moved, bool [n_train]. Raises SettingError where there are too few rows."""
        rest = len(x) - self.n_valid - self.n_test
        n = rest if self.n_train is None else self.n_train
        if not 1 <= n <= rest:
            wanted = "" if self.n_train is None else f", n_train is {n}"
            raise SettingError(
                f"task loss_regression: {self.dataset} has {len(x)} rows; n_valid = {self.n_valid} "
                f"and n_test = {self.n_test} leave {max(rest, 0)} to train on{wanted}"
            )
        gen = generator(seeds.data, "loss_regression")
        order = torch.randperm(len(x), generator=gen).split([self.n_valid, self.n_test, rest])
        places = dict(zip(("valid", "test", "train"), (*order[:2], order[2][:n]), strict=True))
        if left := kept(self.n_valid, rest - n):
            places["selection"] = order[2][n:][:left]
        x = standard(x, x[places["train"]])
        y = standard(y, y[places["valid"]])
        parts = {split: {"x": x[at], "y": y[at]} for split, at in places.items()}
        wrong = torch.arange(n) < round(self.outliers * n)  # the order is drawn already
        far = self.size * (1 + torch.randn(n, generator=gen, dtype=torch.float64).abs())
        if self.side == "both":
            far = far * (2 * torch.randint(2, (n,), generator=gen) - 1)
        parts["train"]["y"] = parts["train"]["y"] + wrong * far
        if self.train_on == "right":
            parts["train"] = {k: v[~wrong] for k, v in parts["train"].items()}
            wrong = wrong[~wrong]
        elif self.train_on == "valid":
            parts["train"], wrong = dict(parts["valid"]), wrong.new_zeros(self.n_valid)
        if not len(wrong):
            raise SettingError("task loss_regression: train_on = 'right', and no target is")
        return parts, wrong


class LossRegressionProblem(LearningProblem):
    """``parts``: split to "x" [n, d], "y" [n] and places "index" [n]; ``wrong`` bool [n_train].
    theta: weights and biases of ``head`` and, for the MLP, ``hidden``."""

    name = "loss_regression"

    def __init__(
        self,
        task: LossRegression,
        seeds: Seeds,
        device: torch.device,
        parts: dict[str, Batch],
        wrong: Tensor,
    ) -> None:
        """``parts``: "train", "valid" and "test", each "x" [n, d] and "y" [n]."""
        self.task, self.seeds, self.carried, self.device = task, seeds, task.carried, device
        self.dtype, self.l2 = getattr(torch, task.dtype), task.l2
        self.wrong = wrong.to(device)
        self.parts = {
            split: {
                **{k: v.to(device, self.dtype) for k, v in part.items()},
                "index": torch.arange(len(part["y"]), device=device),
            }
            for split, part in parts.items()
        }
        n = len(wrong)
        self.size = n if task.batch is None else min(task.batch, n)
        self.learned = losses.of_numbers(
            task.form, n=n, power=task.power, delta=task.delta, smoothing=task.smoothing,
            bound=task.bound,
        )  # fmt: skip
        self.hypers = self.learned.hypers
        d, m = self.parts["train"]["x"].shape[1], task.width
        mlp = task.network == "mlp"
        self.shapes = {"hidden": (m, d), "head": (1, m)} if mlp else {"head": (1, d)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Uniform within 1 / sqrt(inputs), the same every time."""
        gen, theta = generator(self.seeds.init, "loss_regression"), Params()
        for name, (n, inputs) in self.shapes.items():
            for kind, of in zip(KINDS, ((n, inputs), (n,)), strict=True):
                draw = 2 * torch.rand(of, generator=gen, dtype=torch.float64) - 1
                theta[f"{name}.{kind}"] = (draw * inputs**-0.5).to(self.device, self.dtype)
        return theta

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """[n]."""
        x = batch["x"]
        if "hidden" in self.shapes:
            x = F.linear(x, theta["hidden.weight"], theta["hidden.bias"]).tanh()
        return F.linear(x, theta["head.weight"], theta["head.bias"]).squeeze(1)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Half the mean squared error."""
        return 0.5 * losses.squared(self.predict(lam, theta, batch), batch["y"]).mean()

    def episode(self, split: str, index: int) -> Episode:
        """Inner batches from the training part; the outer one is the validation part in training,
        else the whole part."""
        outer = self.parts["valid" if split == "train" else split]
        return Episode(self.batches(split, index), outer, index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """rmse, mae and loss on the split, in deviations of the clean targets; on the training part
        ``effective_step``, ``weight_right`` and ``weight_wrong`` against squared error's slopes."""
        gap = self.predict(lam, theta, episode.outer) - episode.outer["y"]
        train = self.parts["train"]
        return {
            "rmse": float(gap.square().mean().sqrt()),
            "loss": float(0.5 * gap.square().mean()),
            "mae": float(gap.abs().mean()),
            **losses.pulls(
                self.learned, losses.squared, lam, self.predict(lam, theta, train), train["y"],
                train["index"], self.wrong,
            ),
        }  # fmt: skip
