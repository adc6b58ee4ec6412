"""Derivatives of pure functions on named tensors, and arithmetic with them.

The functions work in a loop over episodes and under ``vmap`` alike: inside :func:`functional` they
use torch.func, elsewhere autograd.

>>> import torch
>>> from metabench import autodiff
>>> x = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
>>> value, g = autodiff.grad(lambda p: p["a"].square().sum() + 5 * p["b"], x)
>>> value.item(), g["a"].tolist(), g["b"].item()
(20.0, [2.0, 4.0], 5.0)

:func:`pullback` takes products with a transposed Jacobian, here of y = (a b, b):

>>> y, back = autodiff.pullback(lambda p: {"ab": p["a"] * p["b"], "b": p["b"]}, x)
>>> (bar,) = back({"ab": torch.ones(2), "b": torch.tensor(0.0)})
>>> bar["a"].tolist(), bar["b"].item()
([3.0, 3.0], 3.0)
>>> autodiff.axpy(-0.1, g, x)["b"].item()
2.5
"""

from metabench.contract.autodiff import (
    axpy,
    detach,
    detach_tree,
    dot,
    flatten,
    functional,
    grad,
    grad_and_rest,
    is_functional,
    leaf,
    mean,
    norm,
    pullback,
    pullbacks,
    unflatten,
)

__all__ = [
    "axpy",
    "detach",
    "detach_tree",
    "dot",
    "flatten",
    "functional",
    "grad",
    "grad_and_rest",
    "is_functional",
    "leaf",
    "mean",
    "norm",
    "pullback",
    "pullbacks",
    "unflatten",
]
