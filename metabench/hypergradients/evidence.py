"""The log evidence of a model with a Gaussian prior, by Laplace's method, from batches of examples.

Immer, van der Ouderaa, van der Wilk, Raetsch, Schoelkopf: Stochastic Marginal Likelihood Gradients
using Neural Tangent Kernels, ICML 2023, arXiv 2306.03968. At a theta that is held fixed,

    L(lam) = log p(D | theta) - 1/2 [ log det(P0^-1 P) + theta' P0 theta ],
    P = P0 + sum_n J_n' Lam_n J_n,

P0 = diag(precision), J_n [C, P] the Jacobian of example n's prediction f_n, Lam_n [C, C] the
Hessian of -log p(y_n | f_n) in it. With Lam_n = R_n R_n', every pair of an example and an output
has a row a = P0^-1/2 J_n' r, r a column of R_n. A, all rows, gives

    log det(P0^-1 P) = log det(I + A A') = log det(I + A' A)                              (1)

and by Fischer's inequality any partition of the rows can only add to it: L falls (2). A batch of M
of N examples estimates that sum over a random partition: N / M times log det of its own rows (3).
Lam of a softmax is singular: R = diag(sqrt p) - p sqrt(p)' needs no root of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Evidence
from metabench.contract.problem import Batch, Params, Problem

Form = Literal["ntk", "ggn", "block", "kfac", "diagonal"]
Outputs = Literal["all", "independent", "one", "one each"]


def jacobian(
    problem: Problem, lam: Params, theta: Params, batch: Batch, *, chunk: int | None = None
) -> tuple[Tensor, Params]:
    """Predictions [n, C], and their derivatives [n, C, *shape] by name of theta; differentiable in
    lam. ``chunk``: examples at a time."""
    f = predictions(problem, lam, theta, batch)
    each = torch.eye(f.shape[1], dtype=f.dtype, device=f.device).expand(len(f), -1, -1)
    return f, pulled_back(problem, lam, theta, batch, each, chunk=chunk)


def predictions(problem: Problem, lam: Params, theta: Params, batch: Batch) -> Tensor:
    """[n, C], also of a model whose predictions are [n]."""
    f = problem.predict(lam, theta, batch)
    return f.reshape(len(f), -1)


def pulled_back(
    problem: Problem,
    lam: Params,
    theta: Params,
    batch: Batch,
    cotangents: Tensor,
    *,
    chunk: int | None = None,
) -> Params:
    """J_n' r for the rows r of ``cotangents`` [n, k, C]: [n, k, *shape] by name of theta."""

    def one(example: Batch, rows: Tensor) -> Params:
        alone = {k: v[None] for k, v in example.items()}
        back = torch.func.vjp(lambda t: predictions(problem, lam, t, alone)[0], theta)[1]
        (found,) = torch.func.vmap(back)(rows)
        return dict(found)

    each: Callable[[Batch, Tensor], Params] = torch.func.vmap(one, chunk_size=chunk)
    return each(batch, cotangents)


def root(f: Tensor, noise: Tensor | None) -> Tensor:
    """R' [n, C, C]: its rows are the columns of R_n, of predictions [n, C]."""
    n, c = f.shape
    eye = torch.eye(c, dtype=f.dtype, device=f.device)
    if noise is not None:
        return (eye * noise.rsqrt()).expand(n, c, c)
    half = (0.5 * f.log_softmax(1)).exp()
    p = half.square()
    return half[:, :, None] * (eye - p[:, None, :])


def log_likelihood(f: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
    """log p(y | f), summed over examples: classes [n] by logits, or normal targets."""
    if noise is None:
        return -F.cross_entropy(f, y, reduction="sum")
    squares = (f - y.reshape(f.shape)).square() / noise + (2 * math.pi * noise).log()
    return -0.5 * squares.sum()


def log_det(rows: Params, form: Form) -> Tensor:
    """log det(I + A' A) of rows [m, *shape] by name, already divided by sqrt(precision).

    "ntk" and "ggn" are the same number, from [m, m] and from [P, P]. What follows keeps less of A'A
    (6): "block" its blocks by layer, "diagonal" its diagonal, both upper bounds; "kfac" takes each
    layer's block for a Kronecker product, which is no bound. A layer is the part of a name before
    its last dot.
    """
    if form == "diagonal":
        return torch.stack([v.square().sum(0).log1p().sum() for v in rows.values()]).sum()
    if form in ("ntk", "ggn"):
        return _gram_log_det(_flat(rows), form == "ntk")
    layers: dict[str, Params] = {}
    for name, value in rows.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = value
    block = _kronecker_log_det if form == "kfac" else _block_log_det
    return torch.stack([block(part) for part in layers.values()]).sum()


def _flat(rows: Params) -> Tensor:
    return torch.cat([v.flatten(1) for v in rows.values()], 1)


def _gram_log_det(a: Tensor, outer: bool) -> Tensor:
    gram = (a @ a.t() if outer else a.t() @ a).double()
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    found: Tensor = torch.linalg.slogdet(eye + gram)[1]  # its gradient costs less than Cholesky's
    return found


def _block_log_det(rows: Params) -> Tensor:
    a = _flat(rows)
    return _gram_log_det(a, outer=a.shape[0] < a.shape[1])


def _kronecker_log_det(rows: Params) -> Tensor:
    """Of one layer: rows are g x' in "weight" and g in "bias", G = sum g g' and X = mean x x'.

    x is the weight's row times g over |g|^2: the input, where a layer is applied once an example,
    else its mean with weights. Without a bias, g cannot be told from x: the block stays whole.
    """
    if set(rows) != {"weight", "bias"}:
        return _block_log_det(rows)
    w, g = rows["weight"].flatten(2), rows["bias"]
    x = torch.einsum("ri,rij->rj", g, w) / g.square().sum(1, keepdim=True).clamp_min(1e-30)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    inputs = torch.linalg.eigvalsh((x.t() @ x / len(x)).double()).clamp_min(0)
    units = torch.linalg.eigvalsh((g.t() @ g).double()).clamp_min(0)
    return torch.outer(units, inputs).log1p().sum()


def log_evidence(
    problem: Problem,
    at: Evidence,
    lam: Params,
    theta: Params,
    batch: Batch,
    *,
    form: Form = "ntk",
    outputs: Outputs = "all",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The estimate of L(lam) from one batch, differentiable in lam; theta is constant.

    ``at`` is the problem's evidence at ``lam``. ``outputs``: "all" rows together (3);
    "independent": a block an output (4); "one": C times the block of an output that
    ``generator`` draws, "one each": drawn anew for every example (5). Data term and log det are
    scaled by N / M (7); A'A itself is not, which would be no bound.
    """
    theta = {k: v.detach() for k, v in theta.items()}
    f = predictions(problem, lam, theta, batch)
    n, c = f.shape
    cotangents, times = root(f, at.noise), 1
    if outputs in ("one", "one each"):
        size = (n,) if outputs == "one each" else (1,)
        drawn = torch.randint(c, size, generator=generator).to(f.device).expand(n)
        cotangents, times = cotangents[torch.arange(n, device=f.device), drawn][:, None], c
    rows = pulled_back(problem, lam, theta, batch, cotangents, chunk=chunk)
    rows = {k: v * at.precision[k].rsqrt() for k, v in rows.items()}
    if outputs == "independent":
        parts = [{k: v[:, i] for k, v in rows.items()} for i in range(c)]
    else:
        parts = [{k: v.flatten(0, 1) for k, v in rows.items()}]
    volume = times * torch.stack([log_det(part, form) for part in parts]).sum()
    fit = log_likelihood(f, batch["y"], at.noise)
    prior = torch.stack([(at.precision[k] * v.square()).sum() for k, v in theta.items()]).sum()
    return problem.example_count / n * (fit - 0.5 * volume) - 0.5 * prior
