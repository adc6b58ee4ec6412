"""The gradient of the inner loss in theta, with the part that is known in closed form by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Batch, Params, Problem, differentiated_loss


def inner_value_and_gradient(
    problem: Problem,
    lam: Params,
    theta: Params,
    batch: Batch,
    *,
    create_graph: bool,
    only: Sequence[str] | None = None,
) -> tuple[Tensor, Params]:
    """G beside its diagonal penalty [], and the gradient of all of G in the names of ``only``
    (None: in theta), with a graph or without.

    The part of a penalty is taken by hand (:meth:`Problem.diagonal_penalty`), and without a graph
    all of it where the problem has that (:meth:`Problem.inner_gradient`). Where the problem has a
    field (:meth:`Problem.field`), that field stands for the gradient, and the value is nan.
    """
    if not create_graph:
        lam, theta, batch = autodiff.detach(lam), autodiff.detach(theta), autodiff.detach(batch)
    moving = theta if only is None else {k: theta[k] for k in only}
    field = problem.field(lam, theta, batch)
    if field is not None:
        return next(iter(field.values())).new_tensor(math.nan), {k: field[k] for k in moving}
    penalty = problem.diagonal_penalty(lam)
    found = None
    if only is None and not create_graph:
        found = problem.inner_gradient(lam, theta, batch)
    if found is None:
        loss = differentiated_loss(problem, penalty)
        found = autodiff.grad(
            lambda t: loss(lam, {**theta, **t}, batch), moving, create_graph=create_graph
        )
    value, g = found
    if penalty is None:
        return value, g
    whole = {k: v.addcmul(penalty[k], moving[k]) if k in penalty else v for k, v in g.items()}
    return value, whole
