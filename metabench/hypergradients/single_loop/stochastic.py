"""Pieces of the hypergradient from one minibatch each, for methods that never solve to the end.

With G_t the inner loss on inner batch t and v an estimate of -(d2 G / dtheta2)^-1 grad_theta F, the
hypergradient is grad_lam F + (d2 G / dlam dtheta) v. Each function takes what a single batch says.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params


class Outer(NamedTuple):
    """F, grad_lam F and grad_theta F; no graph."""

    value: Tensor
    lam: Params
    theta: Params


class Adjoint(NamedTuple):
    """grad_theta G_t, and the products of its derivatives in theta and in lam with v; no graph."""

    slope: Params
    curved: Params
    mixed: Params


def outer(ctx: Context, lam: Params, theta: Params, episode: Episode) -> Outer:
    """The outer loss and both of its gradients: one outer gradient."""

    def loss(x: Params, y: Params) -> Tensor:
        return ctx.outer_loss(x, y, ctx.problem.prepare(x, episode).outer)

    value, back = autodiff.pullback(loss, autodiff.detach(lam), autodiff.detach(theta))
    return Outer(value, *back(torch.ones_like(value)))


def adjoint(
    ctx: Context, lam: Params, theta: Params, v: Params, episode: Episode, t: int
) -> Adjoint:
    """All that inner batch ``t`` says, in one backward pass: an inner gradient, a Hessian product
    and a mixed product."""

    def slope(x: Params, y: Params) -> Params:
        batch = ctx.problem.prepare(x, episode).batch(t)
        return ctx.inner_grad(x, y, batch, hvps=1, mixed_products=1)

    g, back = autodiff.pullback(slope, autodiff.detach(lam), autodiff.detach(theta))
    mixed, curved = back(v)
    return Adjoint(g, curved, mixed)


def curved(ctx: Context, lam: Params, theta: Params, v: Params, ready: Episode, t: int) -> Params:
    """(d2 G_t / dtheta2) v alone, on a prepared episode: an inner gradient and one product."""
    lam = autodiff.detach(lam)

    def slope(y: Params) -> Params:
        return ctx.inner_grad(lam, y, ready.batch(t), hvps=1)

    _, back = autodiff.pullback(slope, autodiff.detach(theta))
    found: Params = back(v)[0]
    return found


def mixed(ctx: Context, lam: Params, theta: Params, v: Params, episode: Episode, t: int) -> Params:
    """(d2 G_t / dlam dtheta) v alone: an inner gradient and a mixed product."""
    theta = autodiff.detach(theta)

    def slope(x: Params) -> Params:
        batch = ctx.problem.prepare(x, episode).batch(t)
        return ctx.inner_grad(x, theta, batch, mixed_products=1)

    _, back = autodiff.pullback(slope, autodiff.detach(lam))
    found: Params = back(v)[0]
    return found


def zeros(theta: Params) -> Params:
    """The first v."""
    return {k: torch.zeros_like(x) for k, x in theta.items()}
