"""Losses and metrics of predictions: the defaults, and a user's own, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.core.errors import SettingError, UnknownName

Goal = Literal["max", "min"]
METRICS: dict[str, Goal] = {"loss": "min", "accuracy": "max"}


def squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """(prediction - y)^2 of each example [n], the mean over what else they have."""
    return (prediction - y).square().reshape(len(y), -1).mean(1)


def cross_entropy(prediction: Tensor, y: Tensor) -> Tensor:
    """Of each example [n]: logits [n, classes, ...], classes int64 [n, ...]."""
    return F.cross_entropy(prediction, y, reduction="none").reshape(len(y), -1).mean(1)


@dataclass(frozen=True)
class Judge:
    """How predictions are judged: the loss of each example, and the metrics.

    ``own``: a metric of the user's, predictions and targets of all examples to a number.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str
    goal: Goal
    classes: bool
    """Whether targets are classes and predictions logits, so that there is an accuracy."""
    own: Callable[[Tensor, Tensor], Any] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all that is reported."""
        names = ["loss", *(["accuracy"] if self.classes else [])]
        return (*names, self.metric) if self.own is not None else tuple(names)

    @property
    def noise(self) -> Literal["normal", "classes"] | None:
        """The likelihood that the loss is minus the log of, up to a constant; None: of no known
        one."""
        if self.loss is squared_error:
            return "normal"
        return "classes" if self.loss is cross_entropy else None

    def report(self, prediction: Tensor, y: Tensor) -> dict[str, float]:
        """Every metric of some examples."""
        out = {"loss": float(self.loss(prediction, y).mean())}
        if self.classes:
            out["accuracy"] = float((prediction.argmax(1) == y).double().mean())
        if self.own is not None:
            out[self.metric] = float(self.own(prediction, y))
        return out


def judge(
    prediction: Tensor, y: Tensor, loss: Any, metric: Any, goal: str | None
) -> tuple[Judge, Tensor]:
    """The judge for predictions and targets of a few examples, and those targets as it takes them
    (:func:`as_predicted`). Raises SettingError where they do not fit, UnknownName for a metric."""
    integer = not y.is_floating_point()
    if loss is None:
        loss = cross_entropy if integer else squared_error
        y = as_predicted(prediction, y)
        if loss is cross_entropy:
            _check_classes(prediction, y)
    _check_loss(loss, prediction, y)
    classes = integer and prediction.dim() >= 2 and prediction.shape[2:] == y.shape[1:]
    own = metric if callable(metric) else None
    if own is not None:
        name = getattr(own, "__name__", "metric")
        name = "metric" if name in ("<lambda>", *METRICS) else name
        if goal not in ("max", "min"):
            raise SettingError(f"goal cannot be {goal!r} for metric {name}: say 'max' or 'min'")
        found = Judge(loss, name, "max" if goal == "max" else "min", classes, own)
        _check_metric(own, name, prediction, y)
        return found, y
    known = [k for k in METRICS if classes or k != "accuracy"]
    name = (
        ("accuracy" if classes and loss is cross_entropy else "loss") if metric is None else metric
    )
    if name not in known:
        raise UnknownName("metric", str(name), known, "or give a function of predictions and y")
    if goal is not None and goal != METRICS[name]:
        raise SettingError(f"goal of {name} is {METRICS[name]!r}, not {goal!r}: leave it out")
    return Judge(loss, name, METRICS[name], classes), y


def as_predicted(prediction: Tensor, y: Tensor) -> Tensor:
    """Targets of floats in the shape of predictions, where they differ by dimensions of 1 alone:
    [n] beside [n, 1] would silently broadcast to [n, n]. Raises SettingError where more differs."""
    if not y.is_floating_point() or prediction.shape[1:] == y.shape[1:]:
        return y
    a, b = ([m for m in t.shape[1:] if m != 1] for t in (prediction, y))
    if a != b:
        raise SettingError(
            f"the model predicts {list(prediction.shape[1:])} for an example, and its target y is "
            f"{list(y.shape[1:])}: give both one shape, whole numbers for classes, or a loss"
        )
    return y.reshape(len(y), *prediction.shape[1:])


def _check_classes(prediction: Tensor, y: Tensor) -> None:
    if prediction.dim() < 2 or prediction.shape[2:] != y.shape[1:]:
        raise SettingError(
            "y has whole numbers, so the loss is cross-entropy: predictions "
            f"{list(prediction.shape)} and y {list(y.shape)} are to be [n, classes, ...] and "
            "[n, ...]; for numbers give y as floats, or give a loss"
        )


def check_labels(y: Tensor, classes: int, what: str) -> None:
    """Raise SettingError for a class that the model has no logit for."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise SettingError(
            f"{what}: classes are {low} to {high}; the model has {classes} logits, for classes 0 "
            f"to {classes - 1}"
        )


def _check_loss(loss: Any, prediction: Tensor, y: Tensor) -> None:
    if not callable(loss):
        raise SettingError(
            f"loss cannot be {loss!r}: give a function of predictions and y to the loss of each "
            "example [n], such as partial(F.cross_entropy, reduction='none')"
        )
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise SettingError("loss: it has parameters; learn=function and first={...} learn them")
    try:
        found = loss(prediction, y)
    except Exception as error:
        raise SettingError(
            f"loss: of predictions {list(prediction.shape)} and y {list(y.shape)} {y.dtype} it "
            f"raises {type(error).__name__}: {error}"
        ) from error
    shown = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.shape != (len(y),):
        raise SettingError(
            f"loss: of {len(y)} examples it gives {shown}, not the loss of each, [{len(y)}]: write "
            "reduction='none', and a mean over the dimensions after the first"
        )
    if not bool(found.isfinite().all()):
        raise SettingError("loss: of the first predictions it gives what is not finite")


def _check_metric(own: Callable[[Tensor, Tensor], Any], name: str, f: Tensor, y: Tensor) -> None:
    try:
        with torch.no_grad():
            float(own(f, y))
    except Exception as error:
        raise SettingError(
            f"metric {name}: of predictions {list(f.shape)} and y {list(y.shape)} it gives no "
            f"number ({type(error).__name__}: {error})"
        ) from error
