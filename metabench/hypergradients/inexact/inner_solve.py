"""Inner problems solved to an accuracy, and what a solve says of its distance to the minimiser.

The stop rule is the gradient's norm. For a G that is mu-strongly convex in theta,
|theta - theta*| <= |grad G(theta)| / mu, which is how an accuracy becomes a norm to stop at
(Pedregosa, ICML 2016, arXiv 1602.02355; Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data
Sci. 7(3), 2025, arXiv 2308.10098).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.declared import Moduli
from metabench.contract.problem import Episode, Params
from metabench.core.errors import Diverged, SettingError

Rule = Literal["lbfgs", "fista", "gd"]
"""L-BFGS; accelerated descent in its strongly convex form; plain descent with step 1 / smooth."""

HISTORY = 10
"""Pairs that L-BFGS keeps."""

TRIALS = 30
"""Steps that a line search tries at most."""

PATIENCE = 100
"""Gradients without a smaller norm after which rounding is taken to allow none; descent, whose norm
swings, gets 10 sqrt(smooth / mu) more."""


@dataclass(frozen=True)
class InnerSolution:
    """Where a solve has ended; nothing in it has a graph.

    ``gradient_norm`` is |grad G| at ``theta``; ``steps`` counts the inner gradients taken;
    ``reached`` says whether the norm is within what was asked for. ``distance`` bounds
    |theta - theta*| (None: the problem has no moduli), proved where ``certified``.
    """

    theta: Params
    gradient_norm: float
    steps: int
    reached: bool
    distance: float | None = None
    certified: bool = False


class _Ended(Exception):
    """The norm is reached, or cannot be, or the gradients are used up."""


class _Gradients:
    """G and its gradient by flat theta [n], counted; the best point so far is kept."""

    def __init__(
        self, ctx: Context, lam: Params, like: Params, episode: Episode, norm: float, limit: int
    ) -> None:
        self.ctx, self.lam, self.like, self.episode = ctx, lam, like, episode
        self.norm, self.limit, self.taken = norm, limit, 0
        self.patience, self.last = PATIENCE, 0
        self.best: tuple[float, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient [n] at x [n]. Raises _Ended where no more is needed; Diverged."""
        theta = autodiff.unflatten(x, self.like)
        value, g = self.ctx.inner_value_and_grad(self.lam, theta, self.episode.batch(self.taken))
        flat = autodiff.flatten(g)
        size = float(torch.linalg.vector_norm(flat))
        self.taken += 1
        if self.best is None and not math.isfinite(size):
            raise Diverged(f"the inner gradient at outer step {self.ctx.step} is not finite")
        if self.best is None or size < self.best[0]:
            self.best, self.last = (size, x.detach().clone()), self.taken
        over = self.taken >= self.limit or self.taken - self.last >= self.patience
        if size <= self.norm or over:
            raise _Ended
        return value, flat


def to_accuracy(
    ctx: Context,
    lam: Params,
    theta: Params,
    episode: Episode,
    *,
    norm: float,
    rule: Rule = "lbfgs",
    limit: int = 10_000,
    moduli: Moduli | None = None,
) -> InnerSolution:
    """theta from ``theta`` on until |grad G(lam, .)| <= ``norm``, or ``limit`` inner gradients.

    It ends earlier where rounding allows no smaller norm. The best point seen is what comes back,
    in as many counted inner gradients as were taken. Accuracy asks for one batch: the capability
    ``full_batch``. ``moduli``: those at lam; None: the problem's own. Raises Diverged where the
    first gradient is no number, SettingError where ``rule`` needs moduli that are not there.
    """
    moduli = moduli or ctx.problem.moduli(lam)
    at = _Gradients(ctx, autodiff.detach(lam), theta, episode, norm, max(1, limit))
    x = autodiff.flatten(theta).detach().clone()
    try:
        if rule == "lbfgs":
            _lbfgs(at, x)
        elif moduli is None:
            raise SettingError(f'rule "{rule}" takes its step from Problem.moduli: there are none')
        else:
            at.patience += int(10 * math.sqrt(moduli.smooth / moduli.mu))
            _descent(at, x, moduli, accelerated=rule == "fista")
    except _Ended:
        pass
    assert at.best is not None
    size, found = at.best
    return InnerSolution(
        autodiff.unflatten(found, theta),
        size,
        at.taken,
        size <= norm,
        None if moduli is None else size / moduli.mu,
        moduli is not None and moduli.certified,
    )


def _lbfgs(at: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> None:
    """Liu, Nocedal, Mathematical Programming 45, 1989, until ``at`` ends it or no step is found."""
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=HISTORY)
    value, g = at(x)
    while True:
        d = -_two_loops(pairs, g)
        step = 1.0 if pairs else 1.0 / max(1.0, float(torch.linalg.vector_norm(g)))
        found = _line_search(at, x, value, g, d, step)
        if found is None and not pairs:
            return
        if found is None:
            pairs.clear()
            continue
        t, value, new = found
        s, y = t * d, new - g
        if (bend := torch.dot(s, y)) > 0:
            pairs.append((s, y, bend))
        x, g = x + s, new


def _two_loops(pairs: Iterable[tuple[Tensor, Tensor, Tensor]], g: Tensor) -> Tensor:
    """The inverse Hessian that the pairs (s, y, s'y) tell of, times g."""
    g, weights, scale = g.clone(), [], None
    for s, y, bend in reversed(list(pairs)):
        weights.append(torch.dot(s, g) / bend)
        g -= weights[-1] * y
        scale = bend / torch.dot(y, y) if scale is None else scale
    if scale is not None:
        g *= scale
    for s, y, bend in pairs:
        g += (weights.pop() - torch.dot(y, g) / bend) * s
    return g


def _line_search(
    at: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    value: Tensor,
    g: Tensor,
    d: Tensor,
    t: float,
) -> tuple[float, Tensor, Tensor] | None:
    """A step by the approximate Wolfe conditions (Hager, Zhang, SIAM J. Optimization 16, 2005):
    slopes decide where rounding hides what the value gains. Step, value and gradient there."""
    first = float(torch.dot(g, d))
    low, at_low, high, at_high = 0.0, first, math.inf, math.inf
    for _ in range(TRIALS if first < 0 else 0):
        there, new = at(x + t * d)
        slope, gain = float(torch.dot(new, d)), float(there - value)
        noise = 10 * torch.finfo(value.dtype).eps * abs(float(value))
        falls = gain <= 1e-4 * t * first or (slope <= -0.8 * first and gain <= noise)
        if falls and slope >= 0.9 * first:
            return t, there, new
        if falls and slope < 0:
            low, at_low = t, slope
        else:
            high, at_high = t, slope
        if math.isinf(high):
            t *= 4
            continue
        inside = math.isfinite(at_high) and at_high > 0
        part = -at_low / (at_high - at_low) if inside else 0.5
        t = low + min(0.9, max(0.1, part)) * (high - low)
    return None


def _descent(
    at: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, moduli: Moduli, *, accelerated: bool
) -> None:
    """FISTA for strongly convex functions (Chambolle, Pock, Acta Numerica 25, 2016, algorithm 5),
    or plain descent, until ``at`` ends it."""
    q = moduli.mu / moduli.smooth
    y, t = x, 1.0
    while True:
        new = y - at(y)[1] / moduli.smooth
        if accelerated and q < 1:
            rest = 1 - q * t * t
            after = (rest + math.sqrt(rest * rest + 4 * t * t)) / 2
            momentum = (t - 1) * (1 - after * q) / (after * (1 - q))
            y, x, t = new + momentum * (new - x), new, after
        else:
            y = x = new
