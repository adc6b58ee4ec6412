"""How good a hypergradient is: against what dense linear algebra gives at the exact inner minimum.

With theta* the minimiser of G(lam, .) and H the whole Hessian of G there,

    dF/dlam = grad_lam F - (d2 G / dlam dtheta) H^-1 grad_theta F,

in float64, with theta* by Newton's method. Nothing here is shared with the methods that are judged:
derivatives come from torch.func on flat vectors, the solve from a Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Episode, Params, Problem
from metabench.core.errors import Diverged

TOLERANCE = 1e-12
"""Norm of the inner gradient at which Newton's method has arrived."""

MOST_STEPS = 200


class Known(NamedTuple):
    """The hypergradient of one episode at lam, and the inner minimiser."""

    grad: Params
    theta: Params


def exact(
    problem: Problem,
    lam: Params,
    theta: Params,
    episode: Episode,
    *,
    hessian: Callable[[Tensor], Tensor] | None = None,
) -> Known:
    """The hypergradient at the inner minimum that Newton's method finds from ``theta``.

    For inner problems of up to about a thousand float64 numbers, with one inner batch. ``hessian``:
    flat theta [m] to that of G [m, m] where it is known in closed form; None: by differentiation.
    Raises ValueError for another type, Diverged where there is no strict minimum.
    """
    wrong = [k for k, v in {**lam, **theta}.items() if v.dtype != torch.float64]
    if wrong:
        raise ValueError(f"an exact hypergradient takes float64; {wrong[0]} is not")
    lam, theta = autodiff.detach(lam), autodiff.detach(theta)
    fixed = problem.prepare(lam, episode).batch(0)

    def at(flat: Tensor) -> Tensor:
        return problem.inner_loss(lam, autodiff.unflatten(flat, theta), fixed)

    curvature = _hessian(at) if hessian is None else hessian
    best = minimiser(at, autodiff.flatten(theta), curvature)
    end = autodiff.unflatten(best, theta)
    factor, info = torch.linalg.cholesky_ex(curvature(best))
    if int(info):
        raise Diverged("the inner problem has no strict minimum where Newton's method ended")

    def judged(p: Params, t: Params) -> Tensor:
        return problem.outer_loss(p, t, problem.prepare(p, episode).outer)

    direct, v = torch.func.grad(judged, argnums=(0, 1))(lam, end)
    x = torch.cholesky_solve(autodiff.flatten(v)[:, None], factor)[:, 0]

    def along(p: Params) -> Tensor:
        batch = problem.prepare(p, episode).batch(0)
        g = torch.func.grad(lambda t: problem.inner_loss(p, t, batch))(end)
        return torch.dot(autodiff.flatten(g), x)

    return Known(autodiff.axpy(-1.0, torch.func.grad(along)(lam), direct), end)


def minimiser(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    hessian: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A local minimiser [n] of ``f`` near ``x`` [n], its gradient below ``TOLERANCE``.

    Newton's method with the absolute eigenvalues of an indefinite Hessian and halved steps. Raises
    Diverged where it does not arrive.
    """
    slope = torch.func.grad(f)
    hessian = _hessian(f) if hessian is None else hessian
    g = slope(x)
    for _ in range(MOST_STEPS):
        if float(g.norm()) <= TOLERANCE:
            return x
        step = _downhill(hessian(x), g)
        value, fall, t = f(x), torch.dot(g, step), 1.0
        while t > 1e-10:
            new = x - t * step
            ahead = slope(new)
            # Near the end the values agree to the last digit, and the gradient decides.
            if f(new) < value - 1e-4 * t * fall or (t == 1.0 and ahead.norm() < 0.5 * g.norm()):
                break
            t /= 2
        x, g = new, ahead
    raise Diverged(
        f"Newton's method has not arrived after {MOST_STEPS} steps: the inner gradient is "
        f"{float(g.norm()):.3g}"
    )


def _hessian(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    rows: Callable[[Tensor], Tensor] = torch.func.jacrev(torch.func.grad(f))
    return rows


def _downhill(h: Tensor, g: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(h)
    if not int(info):
        return torch.cholesky_solve(g[:, None], factor)[:, 0]
    values, vectors = torch.linalg.eigh(h)
    size = values.abs()
    step: Tensor = vectors @ ((vectors.T @ g) / size.clamp(min=1e-6 * float(size.max())))
    return step


def compare(found: Params, true: Params) -> dict[str, float]:
    """``cosine``, ``one_minus_cosine`` (without cancellation) and ``relative_error`` of a
    hypergradient in the names of ``true``; a zero one has no direction, and cosine 0."""
    a, b = autodiff.flatten({k: found[k] for k in true}), autodiff.flatten(true)
    size, unit = a.norm(), b / b.norm()
    # Two unit vectors u, v: |u - v|^2 = 2 - 2 cos.
    gap = float(0.5 * (a / size - unit).square().sum()) if float(size) > 0 else 1.0
    return {
        "cosine": 1.0 - gap,
        "one_minus_cosine": gap,
        "relative_error": float((a - b).norm() / b.norm()),
    }
