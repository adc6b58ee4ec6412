"""Hypergradients through the iterations of inner training: reverse, truncated, forward.

Both directions give the same value. Memory of reverse mode grows with the number of inner steps,
time of forward mode with the number of scalars in lam.

>>> import torch
>>> from metabench import testing, unrolled
>>> ctx = testing.context("ridge")
>>> lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
>>> how = {"steps": 20, "rate": lambda lam: 0.3}
>>> back = unrolled.reverse(ctx, lam, None, episode, **how)
>>> there = unrolled.forward(ctx, lam, None, episode, **how)
>>> torch.allclose(back.grad["log_penalty"], there.grad["log_penalty"])
True
>>> ctx.meter.counts.inner_gradients > 20
True

A method with these settings derives from :class:`Unrolling`.
"""

from metabench.hypergradients.unrolled import (
    Checkpointing,
    Iterate,
    Path,
    Unrolling,
    forward,
    reverse,
)

__all__ = ["Checkpointing", "Iterate", "Path", "Unrolling", "forward", "reverse"]
