"""SAGA over blocks of examples, for the pieces that one joint step takes of G and of F.

Defazio, Bach, Lacoste-Julien: SAGA: A Fast Incremental Gradient Method With Support for
Non-Strongly Convex Composite Objectives, NeurIPS 2014, arXiv 1407.0202; of each piece by itself in
SABA (Dagréou et al., NeurIPS 2022, arXiv 2201.13409). G is the mean over B blocks of G_b, and of
the block b of a step

    direction  =  new - stored[b] + mean(stored),   then stored[b] <- new

for new = grad_theta G_b, (d2 G_b / dtheta2) v and (d2 G_b / dlam dtheta) v. Over uniform b its mean
is that of all examples. A diagonal penalty of G (:meth:`Problem.diagonal_penalty`) is no part of
the G_b: it is known, so each step takes it at its own point, without a table. Where outer batches
can be taken by number (:attr:`Problem.outer_blocks`), grad_lam F and grad_theta F have tables too;
elsewhere a step takes F as its episode has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params, Problem
from metabench.contract.seeds import generator
from metabench.hypergradients.single_loop import stochastic
from metabench.hypergradients.single_loop.stochastic import Adjoint, Outer, zeros

Pieces = dict[str, Params]
"""What :class:`Adjoint` or :class:`Outer` holds, by name: plain data, as a checkpoint has it."""

Tables = dict[str, Any]
"""``stored``: pieces [B]; ``mean``: their mean; ``seen``: how many examples have been taken. Of the
outer level the same under ``outer``, where its batches can be taken by number."""


@dataclass(frozen=True)
class Blocks:
    """``examples`` examples in blocks of ``size``, one after another; the last may be smaller."""

    examples: int
    size: int

    @property
    def count(self) -> int:
        """B."""
        return -(-self.examples // self.size)

    def examples_of(self, b: int) -> Tensor:
        """Their numbers, int64 [size] or fewer."""
        return torch.arange(b * self.size, min((b + 1) * self.size, self.examples))


def first_tables(
    ctx: Context, lam: Params, theta: Params, v: Params, size: int, full: bool
) -> Tables:
    """Tables of zeros; or, with ``full``, of a pass over all examples at this point."""
    blocks = Blocks(ctx.problem.example_count, size)
    empty: Pieces = {"slope": zeros(theta), "curved": zeros(theta), "mixed": zeros(lam)}
    tables: Tables = {"stored": [empty] * blocks.count, "mean": empty, "seen": 0}
    if full:
        for b in range(blocks.count):
            new, seen = _of_block(ctx, lam, theta, v, blocks, b, tables)
            tables = {**_with(tables, b, new), "seen": seen}
    if several := ctx.problem.outer_blocks:
        nothing: Pieces = {"lam": zeros(lam), "theta": zeros(theta)}
        of_outer: Tables = {"stored": [nothing] * several, "mean": nothing}
        if full:
            for b in range(several):
                of_outer = _with(of_outer, b, _of_outer_block(ctx, lam, theta, b)[1])
        tables["outer"] = of_outer
    return tables


def outer(
    ctx: Context, lam: Params, theta: Params, episode: Episode, t: int, tables: Tables
) -> tuple[Outer, Tables]:
    """As :func:`metabench.hypergradients.single_loop.stochastic.outer`, of one outer batch by
    number where there are some, and the tables after it: one outer gradient.

    The value is that of the batch, without a correction.
    """
    if "outer" not in tables:
        return stochastic.outer(ctx, lam, theta, episode), tables
    held = tables["outer"]
    gen = generator(ctx.seeds.method, "saga", "outer", ctx.step, t)
    b = int(torch.randint(len(held["stored"]), (), generator=gen))
    value, new = _of_outer_block(ctx, lam, theta, b)
    return Outer(value, **_corrected(held, b, new)), {**tables, "outer": _with(held, b, new)}


def adjoint(
    ctx: Context,
    lam: Params,
    theta: Params,
    v: Params,
    t: int,
    size: int,
    tables: Tables,
) -> tuple[Adjoint, Tables]:
    """As :func:`metabench.hypergradients.single_loop.stochastic.adjoint`, of one block of ``size``
    examples instead of an inner batch, and the tables after it.

    Which block is a function of the method's seed, the outer step and ``t``, uniform. Counted as
    that part of an inner batch that the block has, in whole ones once they are full.
    """
    blocks = Blocks(ctx.problem.example_count, size)
    gen = generator(ctx.seeds.method, "saga", ctx.step, t)
    b = int(torch.randint(blocks.count, (), generator=gen))
    new, seen = _of_block(ctx, lam, theta, v, blocks, b, tables)
    exact = _of_penalty(ctx.problem, lam, theta, v)
    found = _corrected(tables, b, new)
    for name, piece in exact.items():
        found[name] |= {k: found[name][k] + x for k, x in piece.items()}
    return Adjoint(**found), {**_with(tables, b, new), "seen": seen}


def _of_block(
    ctx: Context,
    lam: Params,
    theta: Params,
    v: Params,
    blocks: Blocks,
    b: int,
    tables: Tables,
) -> tuple[Pieces, int]:
    """The pieces of G_b, and how many examples have been taken with them."""
    chosen = blocks.examples_of(b).to(next(iter(theta.values())).device)
    before = tables["seen"]

    def slope(x: Params, y: Params) -> Params:
        g = ctx.examples_grad(x, y, chosen, before=before, hvps=1, mixed_products=1)
        return {k: blocks.count * part for k, part in g.items()}

    g, back = autodiff.pullback(slope, autodiff.detach(lam), autodiff.detach(theta))
    mixed, curved = back(v)
    return {"slope": g, "curved": curved, "mixed": mixed}, before + len(chosen)


def _of_outer_block(ctx: Context, lam: Params, theta: Params, b: int) -> tuple[Tensor, Pieces]:
    """The value and the pieces of F on outer batch ``b``."""
    batch = ctx.problem.outer_block(b)

    def loss(x: Params, y: Params) -> Tensor:
        return ctx.outer_loss(x, y, batch)

    value, back = autodiff.pullback(loss, autodiff.detach(lam), autodiff.detach(theta))
    to_lam, to_theta = back(torch.ones_like(value))
    return value, {"lam": to_lam, "theta": to_theta}


def _corrected(tables: Tables, b: int, new: Pieces) -> Pieces:
    """new - stored[b] + mean(stored)."""
    old, mean = tables["stored"][b], tables["mean"]
    return {
        name: {k: x - old[name][k] + mean[name][k] for k, x in piece.items()}
        for name, piece in new.items()
    }


def _of_penalty(problem: Problem, lam: Params, theta: Params, v: Params) -> Pieces:
    """The pieces of 1/2 sum c(lam) theta^2; nothing where there is no penalty."""
    if not problem.diagonal_penalty(lam):
        return {}

    def slope(x: Params, y: Params) -> Params:
        c = problem.diagonal_penalty(x) or {}
        return {k: c[k] * y[k] for k in c}

    g, back = autodiff.pullback(slope, autodiff.detach(lam), autodiff.detach(theta))
    mixed, curved = back({k: v[k] for k in g})
    return {"slope": g, "curved": curved, "mixed": mixed}


def _with(tables: Tables, b: int, new: Pieces) -> Tables:
    """New tables, with new pieces of a block: what was given stays as it is."""
    stored = list(tables["stored"])
    old, stored[b] = stored[b], new
    mean = {
        name: {k: x + (new[name][k] - old[name][k]) / len(stored) for k, x in piece.items()}
        for name, piece in tables["mean"].items()
    }
    return {**tables, "stored": stored, "mean": mean}
