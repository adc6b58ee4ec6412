"""What a problem may declare beyond its losses: bounds, probabilities, rules of inner training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]
"""lam or theta, as :data:`metabench.contract.problem.Params`."""


@dataclass(frozen=True)
class Moduli:
    """Bounds at one lam that hold at every theta: mu I <= H <= smooth I for the inner Hessian H.

    ``certified``: all that is given here is proved. False: at least one is an estimate, and what
    follows from it, such as a distance to the minimiser, is one too.

    The rest bounds the error of a hypergradient (Salehi et al. 2025); None: not known. With J =
    d2 G / dlam dtheta: ``outer_smooth``, of grad_theta F in theta; ``mixed``, theta to a bound of
    |J| there; ``mixed_lipschitz``, of J in theta; ``hessian_lipschitz``, of H in theta;
    ``direct_lipschitz``, of grad_lam F in theta. ``outer_convex``: F is convex in theta.
    """

    mu: float
    smooth: float
    certified: bool = True
    outer_smooth: float | None = None
    mixed: Callable[[Tensors], float] | None = None
    mixed_lipschitz: float | None = None
    hessian_lipschitz: float | None = None
    direct_lipschitz: float | None = None
    outer_convex: bool = False


@dataclass(frozen=True)
class InnerRule:
    """The constants of the inner optimiser that a lam sets; what is None or not named stays as the
    cell has it.

    ``rate``: the step size. ``solver``: name of a registered solver without noise, with
    ``constants`` for its settings.
    """

    rate: float | Tensor | Tensors | None = None
    solver: str | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """The probabilities behind G at one lam: a likelihood of the targets and a Gaussian prior.

    ``precision``: delta, one over the prior variance of theta (its mean is 0), for every name of
    theta in a shape that broadcasts to it. ``noise``: the variance [] of Gaussian targets
    ``batch["y"]`` [n] or [n, C]; None: ``y`` int64 [n] are classes, and predictions are logits.
    Both are differentiable in lam.
    """

    precision: Tensors
    noise: Tensor | None = None


class OwnStep(NamedTuple):
    """theta after an inner step of a problem's own, and what the step cost: name of a count (a
    field of :class:`metabench.core.costs.Counts`) to number."""

    theta: Tensors
    costs: Mapping[str, int]
