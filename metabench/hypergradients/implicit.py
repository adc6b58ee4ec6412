"""Implicit differentiation: what the inner problem's second derivatives at one point say of lam.

With H the Hessian of G in theta at a minimiser theta of G(lam, .),

    hypergradient = grad_lam F - (d2 G / dlam dtheta) H^-1 grad_theta F .

Where inner steps follow a field in place of the gradient of G, H is the field's Jacobian in theta,
transposed here, and need not be symmetric: the Neumann series and the pseudo-inverse serve.

Lorraine, Vicol, Duvenaud, AISTATS 2020, arXiv 1911.02590 (Neumann series); Pedregosa, ICML 2016,
arXiv 1602.02355 (conjugate gradient). The inner gradient is built once with its graph; a
Hessian product is one backward pass through it, the mixed product one more. Solvers work on one
flat vector, in place: their memory does not grow with the number of terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import Batch, Episode, Params, differentiated_loss
from metabench.core.errors import Distrusted, Diverged, SettingError

CHECK_EVERY = 5
"""Terms between two looks at a tolerance: each makes a GPU wait."""

DENSE_LIMIT = 5000
"""Numbers in theta up to which a whole Hessian is built."""

AtNegativeCurvature = Literal["stop", "truncate"]
"""End the run, or keep what conjugate gradient has found before it."""

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix [n, n] as a function of a vector [n]. The next call may overwrite what comes
back."""


class Solved(NamedTuple):
    """An approximate solution [n], and scalars that tell how far to trust it."""

    x: Tensor
    diagnostics: Params


@dataclass(frozen=True)
class Linearisation:
    """F and G of one episode around (lam, theta); nothing in it has a graph.

    ``value`` F; ``direct`` grad_lam F; ``v`` [n] grad_theta F, flat; ``product`` [n] -> [n] the
    (damped) Hessian product, transposed; ``mixed`` [n] -> lam's names, (d2 G / dlam dtheta) x.
    ``symmetric``: whether the Hessian is; a field's Jacobian may not be.
    """

    value: Tensor
    direct: Params
    v: Tensor
    product: Product
    mixed: Callable[[Tensor], Params]
    symmetric: bool = True


def prepared(ctx: Context, lam: Params, episode: Episode) -> tuple[Params, Episode]:
    """lam to differentiate in, and the episode with what its steps share computed once from it."""
    lam = autodiff.detach(lam) if autodiff.is_functional() else autodiff.leaf(lam)
    with torch.enable_grad():
        return lam, ctx.problem.prepare(lam, episode)


def linearise(
    ctx: Context,
    lam: Params,
    theta: Params,
    episode: Episode,
    ready: Episode,
    *,
    batch: int,
    damping: float = 0.0,
) -> Linearisation:
    """Linearised at (lam, theta), with the Hessian H + damping I of G on inner batch ``batch``.

    ``lam`` and ``ready`` come from :func:`prepared`. Costs one outer and one inner gradient, then
    one Hessian product for each call of ``product`` and one mixed product for each of ``mixed``.
    """
    problem, theta = ctx.problem, autodiff.detach(theta)

    def at(p: Params) -> Episode:
        return problem.prepare(p, episode) if autodiff.is_functional() else ready

    ctx.meter.add(outer_gradients=1)  # once, however often torch.func builds the graph
    value, (to_lam, to_theta) = autodiff.pullbacks(
        lambda p, y: problem.outer_loss(p, y, at(p).outer), lam, theta
    )
    one = torch.ones_like(value)
    direct, v = to_lam(one), autodiff.flatten(to_theta(one))
    penalty = problem.diagonal_penalty(autodiff.detach(lam))
    curvature, mixed = _derivatives(
        ctx, differentiated_loss(problem, penalty), lam, theta, lambda p: at(p).batch(batch)
    )
    diagonal = None if penalty is None else _spread(penalty, theta) + damping
    buffer = None if autodiff.is_functional() else torch.empty_like(v)

    def product(u: Tensor) -> Tensor:
        ctx.meter.add(hvps=1)
        parts = [x.reshape(-1) for x in curvature(autodiff.unflatten(u, theta)).values()]
        hu = torch.cat(parts, out=buffer)
        if diagonal is not None:
            return _add(hu, u, diagonal)
        return _add(hu, u, damping) if damping else hu

    def shrink(p: Params) -> Params:
        return {k: c * theta[k] for k, c in (problem.diagonal_penalty(p) or {}).items()}

    def both(x: Tensor) -> Params:
        ctx.meter.add(mixed_products=1)
        u = autodiff.unflatten(x, theta)
        found = mixed(u)
        if penalty is None:
            return found
        _, back = autodiff.pullback(shrink, lam)
        return autodiff.axpy(1.0, back({k: u[k] for k in penalty})[0], found)

    symmetric = problem.field(autodiff.detach(lam), theta, ready.batch(batch)) is None
    return Linearisation(value, direct, v, product, both, symmetric)


def _derivatives(
    ctx: Context,
    whole: Callable[[Params, Params, Batch], Tensor],
    lam: Params,
    theta: Params,
    at: Callable[[Params], Batch],
) -> tuple[Callable[[Params], Params], Callable[[Params], Params]]:
    """Hessian and mixed products of the loss beside the penalty; the task's own Hessian where it
    has one."""

    def loss(p: Params, y: Params) -> Tensor:
        return whole(p, y, at(p))

    def gradient(p: Params, y: Params) -> Params:
        field = ctx.problem.field(p, y, at(p))
        if field is not None:
            return field
        return autodiff.grad(lambda t: loss(p, t), y, create_graph=True)[1]

    here = autodiff.detach(at(lam))
    closed = ctx.problem.inner_hessian(autodiff.detach(lam), theta, here)
    if closed is None:
        ctx.meter.add(inner_gradients=1)
        _, (to_lam, to_theta) = autodiff.pullbacks(gradient, lam, theta)
        return to_theta, to_lam

    def mixed(u: Params) -> Params:
        live = []

        def probe(p: Params) -> Tensor:
            value = loss(p, theta)
            live.append(value.requires_grad)
            return value

        ctx.meter.add(function_evaluations=1)
        autodiff.pullbacks(probe, lam)
        if not live[0]:  # lam acts through the penalty alone
            return {k: torch.zeros_like(x) for k, x in lam.items()}
        ctx.meter.add(inner_gradients=1)
        _, (to_lam, _) = autodiff.pullbacks(gradient, lam, theta)
        found: Params = to_lam(u)
        return found

    return closed, mixed


def _spread(penalty: Params, theta: Params) -> Tensor:
    """The penalty's coefficients [n], zero where theta has none."""
    zero = next(iter(theta.values())).new_zeros(())
    return autodiff.flatten({k: penalty.get(k, zero).expand_as(v) for k, v in theta.items()})


def neumann(
    product: Product, v: Tensor, *, alpha: float, terms: int, tolerance: float | None = None
) -> Solved:
    """alpha sum_{j=0}^{terms} (I - alpha H)^j v, in the limit H^-1 v where |1 - alpha mu| < 1 for
    every eigenvalue mu of H.

    ``terms`` Hessian products, fewer where |(I - alpha H)^j v| falls to ``tolerance`` |v|. Watched:
    ``growth``, the last of these over the first; it is the relative residual of the term before,
    and above 1 only where some |1 - alpha mu| is.
    """
    first = _norm(v)
    v = v.clone()
    total = v.clone()
    for j in range(terms):
        if tolerance is not None and _is_small(j, _norm(v), tolerance, first):
            break
        v = _add(v, product(v), -alpha)
        total = _add(total, v, 1.0)
    return Solved(alpha * total, {"growth": _ratio(_norm(v), first)})


def conjugate_gradient(
    product: Product,
    v: Tensor,
    *,
    terms: int,
    tolerance: float | None = None,
    start: Tensor | None = None,
    check_every: int = CHECK_EVERY,
) -> Solved:
    """H^-1 v by conjugate gradient from ``start`` (None: zero), for a positive definite H.

    ``terms`` Hessian products, fewer where the residual falls to ``tolerance`` |v|, which is looked
    at every ``check_every`` terms; a start costs one product more. From a direction of no positive
    curvature on nothing is changed (Steihaug's rule). Watched: ``residual`` over |v|, and
    ``negative_curvature``, the largest -p'Hp / |p|^2 over the largest |Hp| / |p| so far, where it
    is beyond rounding, else 0.
    """
    first = torch.dot(v, v)
    x = torch.zeros_like(v) if start is None else start.clone()
    r = v.clone() if start is None else v - product(x)
    p, rs = r.clone(), torch.dot(r, r)
    alive, bend, scale = first > 0, torch.zeros_like(first), torch.zeros_like(first)
    noise = 100 * torch.finfo(v.dtype).eps
    for j in range(terms):
        if tolerance is not None and _is_small(j, rs.sqrt(), tolerance, first.sqrt(), check_every):
            break
        hp = product(p)
        curvature = torch.dot(p, hp)
        length = _norm(p)
        scale = torch.maximum(scale, _ratio(_norm(hp), length))
        relative = _ratio(curvature, scale * length * length)
        bend = torch.maximum(bend, torch.where(alive & (relative < -noise), -relative, 0.0))
        alive = alive & (curvature > 0)
        step = torch.where(alive, rs / torch.where(alive, curvature, 1.0), 0.0)
        x = _add(x, p, step)
        r = _add(r, hp, -step)
        before, rs = rs, torch.dot(r, r)
        p = _add(_scale(p, _ratio(rs, before)), r, 1.0)
    return Solved(x, {"residual": _ratio(rs, first).sqrt(), "negative_curvature": bend})


def check_symmetric(at: Linearisation, what: str) -> None:
    """Raise SettingError where ``what`` would solve the wrong system: that of a field."""
    if not at.symmetric:
        raise SettingError(
            f"{what} solves symmetric systems, and the inner problem follows a field, whose "
            'Jacobian need not be: method ift has inverse = "neumann" and "exact"'
        )


def dense_inverse(product: Product, v: Tensor, *, symmetric: bool = True) -> Solved:
    """H^+ v with the pseudo-inverse of the whole matrix: n products for v of n entries.

    Raises SettingError where n is above ``DENSE_LIMIT``.
    """
    if len(v) > DENSE_LIMIT:
        raise SettingError(
            f'inverse = "exact" builds the whole Hessian: theta has {len(v)} numbers, at most '
            f"{DENSE_LIMIT} are allowed"
        )
    eye = torch.eye(len(v), dtype=v.dtype, device=v.device)
    h = torch.stack([product(column).clone() for column in eye], 1)
    if not symmetric:
        return Solved(torch.linalg.pinv(h) @ v, {})
    return Solved(torch.linalg.pinv((h + h.t()) / 2, hermitian=True) @ v, {})


def check_solution(
    ctx: Context,
    diagnostics: Mapping[str, float],
    *,
    growth_limit: float = math.inf,
    indefinite: AtNegativeCurvature = "stop",
) -> None:
    """Note a series that grows and negative curvature; raise Diverged where they go too far.

    ``diagnostics`` as the solvers give it, the worst of an outer step.
    """
    growth, bend = diagnostics.get("growth", 0.0), diagnostics.get("negative_curvature", 0.0)
    bad = [name for name, value in diagnostics.items() if not math.isfinite(value)]
    if bad:
        raise Diverged(
            f"the solve with the inner Hessian gives no number at outer step {ctx.step} "
            f"({', '.join(bad)})"
        )
    if growth > growth_limit:
        raise Distrusted(
            f"the Neumann series grows: its last term at outer step {ctx.step} is {growth:.3g} "
            "times the first. The Hessian is indefinite, or alpha is above 2 / its largest "
            "eigenvalue; a smaller alpha, damping, fewer terms or more inner steps may help"
        )
    if bend > 0 and indefinite == "stop":
        raise Distrusted(
            f"the Hessian is indefinite at outer step {ctx.step}: conjugate gradient met a "
            f"direction of negative curvature, {bend:.3g} of the largest there. Damping or more "
            'inner steps may help; indefinite = "truncate" goes on with what was found before it'
        )
    if growth > 1:
        ctx.notes.setdefault("series_first_grew_at_outer_step", ctx.step)
    if bend > 0:
        ctx.notes.setdefault("first_negative_curvature_at_outer_step", ctx.step)


def _add(y: Tensor, x: Tensor, a: float | Tensor) -> Tensor:
    """y + a x, in the place of y but under vmap, where y may lack the dimension that x has."""
    if autodiff.is_functional():
        return y + a * x
    return y.addcmul_(x, a) if isinstance(a, Tensor) else y.add_(x, alpha=a)


def _scale(y: Tensor, a: Tensor) -> Tensor:
    return y * a if autodiff.is_functional() else y.mul_(a)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def _is_small(
    j: int, size: Tensor, tolerance: float, first: Tensor, every: int = CHECK_EVERY
) -> bool:
    return j % every == 0 and bool(size <= tolerance * first)
