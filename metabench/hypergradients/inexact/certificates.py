"""What an inexact hypergradient and an inexact outer loss are sure of, from moduli of the problem.

With |theta - theta*| <= eps and |H q - grad_theta F| <= delta, J = d2 G / dlam dtheta, the error of
the hypergradient is at most (Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 7(3),
2025, arXiv 2308.10098)

    omega = c eps + (|J| / mu) delta + (L_J L_g / mu) eps^2 ,
    c = L_g |J| / mu + L_H |J| |grad_theta F| / mu^2 + L_J |grad_theta F| / mu + L_direct

and F at theta* is within |grad_theta F| eps + (L_g / 2) eps^2 of F at theta. L_direct, for a
grad_lam F that depends on theta, is this project's. Of several episodes bounds are means. All of it
is proved where the moduli are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metabench.contract.declared import Moduli
from metabench.contract.problem import Params
from metabench.hypergradients.inexact.hypergradient import FLOOR, Answer


@dataclass(frozen=True)
class Certificate:
    """Of the answers at one lam: the bound ``omega`` of their mean hypergradient; ``low``, D, what
    the mean outer loss is at least; ``slack``, by how much a line search may count it higher, since
    F is convex. ``exhausted``: no smaller eps can be had, by rounding or a limit."""

    omega: float
    low: float
    slack: float
    exhausted: bool


def certificate(
    answers: Sequence[Answer], known: Sequence[Moduli], *, eps: float, delta: float
) -> Certificate:
    """Each episode counts at the accuracies its solves have reached, where those are less than what
    was asked."""
    omegas, lows, slacks = [], [], []
    for a, m in zip(answers, known, strict=True):
        e, d = max(eps, a.found.gradient_norm / m.mu), max(delta, a.residual)
        omegas.append(error_bound(m, a.found.theta, eps=e, delta=d, slope=a.slope))
        lows.append(enclosure(a.value, a.slope, e, m)[0])
        slacks.append((m.outer_smooth or 0.0) / 2 * e**2 if m.outer_convex else 0.0)
    exhausted = eps <= FLOOR or not all(a.found.reached for a in answers)
    return Certificate(mean(omegas), mean(lows), mean(slacks), exhausted)


def error_bound(moduli: Moduli, theta: Params, *, eps: float, delta: float, slope: float) -> float:
    """omega for |grad_theta F| = ``slope`` at theta, from moduli that are all there
    (:func:`metabench.hypergradients.inexact.moduli.complete`)."""
    assert moduli.mixed is not None and moduli.outer_smooth is not None
    assert moduli.mixed_lipschitz is not None and moduli.hessian_lipschitz is not None
    assert moduli.direct_lipschitz is not None
    mu, outer, twist = moduli.mu, moduli.outer_smooth, moduli.mixed_lipschitz
    size = moduli.mixed(theta)
    c = outer * size / mu + moduli.hessian_lipschitz * size * slope / mu**2
    c += twist * slope / mu + moduli.direct_lipschitz
    return c * eps + size / mu * delta + twist * outer / mu * eps**2


def enclosure(value: float, slope: float, eps: float, moduli: Moduli) -> tuple[float, float]:
    """D and U, between which F at theta* is, from F and |grad_theta F| within eps of it."""
    assert moduli.outer_smooth is not None
    far = slope * eps + moduli.outer_smooth / 2 * eps**2
    return value - far, value + far


def mean(values: Sequence[float]) -> float:
    """Over the episodes of a step."""
    return math.fsum(values) / len(values)
