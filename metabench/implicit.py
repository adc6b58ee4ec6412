"""Implicit differentiation: hypergradients from second derivatives at the end of inner training.

With H the Hessian of the inner loss G in theta,

    hypergradient = grad_lam F - (d2 G / dlam dtheta) H^-1 grad_theta F .

:func:`linearise` gives the parts at one point; :func:`neumann`, :func:`conjugate_gradient` and
:func:`dense_inverse` multiply by the inverse, given products with H alone.

>>> import torch
>>> from metabench import autodiff, implicit, inner_loop, testing
>>> ctx = testing.context("ridge")
>>> lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
>>> lam, ready = implicit.prepared(ctx, lam, episode)
>>> start = autodiff.detach(ctx.problem.init_inner(lam, episode))
>>> end, _ = inner_loop(ctx, lam, start, ready, steps=200, lr=0.3)
>>> at = implicit.linearise(ctx, lam, end, episode, ready, batch=200)
>>> x = implicit.conjugate_gradient(at.product, at.v, terms=10).x
>>> torch.allclose(at.product(x), at.v)
True
>>> hypergradient = autodiff.axpy(-1.0, at.mixed(x), at.direct)
>>> hypergradient["log_penalty"].shape
torch.Size([10])
"""

from metabench.hypergradients.implicit import (
    AtNegativeCurvature,
    Linearisation,
    Product,
    Solved,
    check_solution,
    conjugate_gradient,
    dense_inverse,
    linearise,
    neumann,
    prepared,
)

__all__ = [
    "AtNegativeCurvature",
    "Linearisation",
    "Product",
    "Solved",
    "check_solution",
    "conjugate_gradient",
    "dense_inverse",
    "linearise",
    "neumann",
    "prepared",
]
