"""What can be learned of a user's problem: decays, weights of examples, augmentations, a function.

Each is a part of lam with names of its own, and says how it enters the inner loss

    G(lam, theta) = mean_i w_i l_i(theta) + 1/2 sum_j c_j theta_j^2.

Decays c = e^lam: Lorraine, Vicol, Duvenaud, AISTATS 2020. Weights w = sigmoid(lam): Franceschi et
al., ICML 2017, and Shen, Chen, ICML 2023. Augmentations: MacKay et al., ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from metabench.contract.problem import Batch, Hyper, Params
from metabench.core.errors import SettingError, UnknownName
from metabench.problems.learned_augmentation import TUNED, Ranges

Decaying = Literal["one", "tensor", "weight"]
DECAYS: tuple[Decaying, ...] = get_args(Decaying)
"""One decay for all parameters, one for each of their tensors, or one for each of their numbers."""
DECAY, LOGIT = "log_decay", "logit"
LOWEST, HIGHEST = -12.0, 2.0
"""Bounds of a log decay; above, plain inner steps of 0.2 are not stable."""
FIRST_DECAY = -4.0


class Model:
    """The model at one theta, as a function of one's own sees it: ``model(x)`` predicts [n, ...],
    ``model.theta`` has the parameters by name."""

    def __init__(self, predict: Callable[[Params, Tensor], Tensor], theta: Params) -> None:
        self._predict, self.theta = predict, theta

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions of inputs [n, ...]."""
        return self._predict(self.theta, x)


Function = Callable[[Params, Model, Tensor, Tensor], Tensor]
"""(lam, model, x, y) to the inner loss of each example [n]."""


class Learnable:
    """A part of lam. ``lacks``: why capabilities are not offered with it."""

    word: ClassVar[str]
    first: Params
    hypers: tuple[Hyper, ...] = ()
    lacks: Mapping[str, str] = {}

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """Random numbers that inputs ``x`` [n, ...] take in training, float64 [n, ...]."""
        return {}

    def inputs(self, lam: Params, batch: Batch, x: Tensor) -> Tensor:
        """What the model sees in training in the place of ``x`` [n, ...]."""
        return x

    def weighted(self, lam: Params, batch: Batch, losses: Tensor) -> Tensor:
        """What stands in the inner loss in the place of the losses of examples [n]."""
        return losses

    def penalty(self, lam: Params) -> Params:
        """c by names of theta; empty where there is none."""
        return {}


class Decays(Learnable):
    """lam: logs of weight decays, ``log_decay`` [] or ``log_decay.NAME`` [] or [*shape]."""

    word = "weight_decays"

    def __init__(self, start: Params, how: str) -> None:
        if how not in DECAYS:
            raise UnknownName("way of weight decays", how, DECAYS)
        self.names, self.how = list(start), how
        like = next(iter(start.values()))
        first = like.new_tensor(FIRST_DECAY)
        if how == "one":
            self.first = {DECAY: first}
        elif how == "tensor":
            self.first = {f"{DECAY}.{k}": first for k in start}
        else:
            self.first = {f"{DECAY}.{k}": torch.full_like(v, FIRST_DECAY) for k, v in start.items()}
        self.hypers = tuple(
            Hyper(k, tuple(v.shape), LOWEST, HIGHEST, meaning="log of a weight decay")
            for k, v in self.first.items()
        )

    def penalty(self, lam: Params) -> Params:
        """e^lam for every parameter."""
        if self.how == "one":
            return dict.fromkeys(self.names, lam[DECAY].exp())
        return {k: lam[f"{DECAY}.{k}"].exp() for k in self.names}


class Weights(Learnable):
    """lam: ``logit`` [n] of the weight of every training example, at first 1/2."""

    word = "example_weights"
    lacks: Mapping[str, str] = {
        "per_example_lam": "an example has a weight of its own already: it cannot see another lam",
    }

    def __init__(self, n: int, like: Tensor) -> None:
        self.first = {LOGIT: like.new_zeros(n)}
        self.hypers = (Hyper(LOGIT, (n,), meaning="logit of each training example's weight"),)

    def weighted(self, lam: Params, batch: Batch, losses: Tensor) -> Tensor:
        """w_i l_i."""
        return lam[LOGIT][batch["index"]].sigmoid() * losses


class Strengths(Learnable):
    """lam: the largest strength [] of each augmentation of square images, as a part of the most
    (:data:`metabench.problems.learned_augmentation.MOST`); what an image gets is even up to it."""

    word = "augmentation"

    def __init__(self, x: Tensor, which: str, like: Tensor) -> None:
        if which not in TUNED:
            raise UnknownName("strengths of augmentations called", which, TUNED)
        if x.dim() != 4 or x.shape[-1] != x.shape[-2] or not x.is_floating_point():
            raise SettingError(
                "learn='augmentation' takes square images [n, channels, side, side] of floats; x "
                f"is {list(x.shape)} {x.dtype}"
            )
        self.ranges = Ranges(which, "small")
        first = self.ranges.first(torch.Generator())
        self.first = {k: v.to(like) for k, v in first.items()}
        self.hypers = self.ranges.hypers

    def numbers(self, x: Tensor, gen: torch.Generator) -> Batch:
        """``way`` [n, 6] and ``corner`` [n, 2]."""
        return self.ranges.numbers(x, gen)

    def inputs(self, lam: Params, batch: Batch, x: Tensor) -> Tensor:
        """Augmented images; what comes in from outside is 0."""
        return self.ranges.augmented(lam, {**batch, "x": x})


class Own(Learnable):
    """lam: what ``first`` names; a function of the user's makes the losses of examples of it."""

    word = "a function"
    lacks: Mapping[str, str] = {
        "prediction": "a function of your own makes the inner loss: there is no one prediction",
        "evidence": "a function of your own makes the inner loss: it is no likelihood",
        "per_example_lam": "a function of your own makes the inner loss, for one lam at a time",
    }

    def __init__(self, function: Function, first: Mapping[str, Any], like: Tensor) -> None:
        if not first:
            raise SettingError(
                "learn: a function (lam, model, x, y) -> losses [n] needs its first lam: "
                "first={'name': value}"
            )
        self.function = function
        self.first = {k: _value(k, v, like) for k, v in first.items()}
        self.hypers = tuple(Hyper(k, tuple(v.shape)) for k, v in self.first.items())

    def losses(self, lam: Params, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Of each example [n]."""
        return self.function({k: lam[k] for k in self.first}, model, x, y)

    def tried(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Of each of a few examples [n], at the first lam. Raises SettingError where the function
        cannot."""
        try:
            made = self.losses(dict(self.first), model, x, y)
        except Exception as error:
            raise SettingError(
                f"learn: the function raises {type(error).__name__} at the first lam: {error}"
            ) from error
        if not isinstance(made, Tensor) or made.shape != (len(y),):
            shown = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise SettingError(
                f"learn: of {len(y)} examples the function gives {shown}, not the loss of each, "
                f"[{len(y)}]"
            )
        if not bool(made.isfinite().all()):
            raise SettingError("learn: at the first lam the function gives what is not finite")
        return made


def adjusted(part: Learnable, first: Mapping[str, Any], bounds: Mapping[str, Any]) -> None:
    """Put the user's first values and bounds into a part; a name stands for all that begin with it
    and a point; an end that is infinite is no bound. Raises SettingError where a first value is not
    finite or outside of its bounds."""
    for name, like in part.first.items():
        given = _of(first, name)
        if given is not None and not isinstance(part, Own):
            value = _value(name, given, like)
            if value.shape not in ((), like.shape):
                raise SettingError(f"first: {name} is {list(like.shape)}, not {list(value.shape)}")
            part.first[name] = value.expand(like.shape).clone()
    part.hypers = tuple(
        h if (given := _of(bounds, h.name)) is None else _bounded(h, given) for h in part.hypers
    )
    for h in part.hypers:
        value = part.first[h.name]
        if not bool(value.isfinite().all()):
            raise SettingError(f"first: {h.name} cannot be {_of(first, h.name)!r}: not finite")
        low, high = (
            (-torch.inf if h.low is None else h.low),
            (torch.inf if h.high is None else h.high),
        )
        if not bool(((value >= low) & (value <= high)).all()):
            raise SettingError(
                f"first: {h.name} starts at {float(value.min()):g} to {float(value.max()):g}, "
                f"outside of its bounds, {low:g} to {high:g}"
            )


def _value(name: str, given: Any, like: Tensor) -> Tensor:
    """A first value as a tensor of its own. Raises SettingError for what is no number."""
    try:
        return torch.as_tensor(given).detach().clone().to(like)
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"first: {name} cannot be {given!r}: give numbers") from None


def _of(given: Mapping[str, Any], name: str) -> Any:
    return given.get(name, given.get(name.partition(".")[0]))


def _bounded(h: Hyper, given: Any) -> Hyper:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        raise SettingError(f"bounds of {h.name} cannot be {given!r}: give (low, high)") from None
    if math.isnan(low) or math.isnan(high):
        raise SettingError(f"bounds of {h.name} cannot be {given!r}: NaN is no bound")
    if not low < high:
        raise SettingError(f"bounds of {h.name} cannot be {given!r}: low is below high")
    low_, high_ = (x if math.isfinite(x) else None for x in (low, high))
    return replace(h, low=low_, high=high_)


def names_of(parts: list[Learnable]) -> set[str]:
    """Every name that ``first`` and ``bounds`` may have."""
    whole = {name for part in parts for name in part.first}
    return whole | {name.partition(".")[0] for name in whole}
