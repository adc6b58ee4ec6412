"""Train on all classes at once, then a linear head for each episode: the baseline to meta-learning.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification, ICLR 2019, arXiv 1904.04232
("Baseline"); often called pre-training and linear probing. An outer step is one of

    min over lam, W, b of   mean over (x, y) of   CE(W z(x) + b, y)

with z the features that lam makes, and y one of all training classes (base classes). No episode is
trained on. At evaluation lam stays, and ``inner_steps`` inner steps train a new head on the support
set.

With ``head`` = "cosine" (their "Baseline++") both heads have logits s l_k cos(w_k, z), with
a direction w_k [f] and a length l_k learned for each class (weight normalisation), no bias, and
s = 2 for up to 200 classes, else 10. Features have length 1, so that this is a linear head of
weights s l_k w_k / |w_k|, which :meth:`LinearProbe.adapt` returns. Lengths are learned, as in the
authors' code: s does not bound the logits.

Differs from the authors' code: W and b start at zero (theirs as torch's nn.Linear does), examples
are drawn with replacement, and a test head is trained on all of the support set in each step, by
the inner solver. Theirs is trained for 100 epochs in batches of 4 with step size 0.01, momentum and
dampening 0.9, weight decay 1e-3. Directions start as theirs, as nn.Linear, and lengths as the
directions' own; but one start, drawn from the seed, serves every episode, where theirs has a new
one each. Theirs divides features by |z| + 1e-5; here the task scales them (``unit_features``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, State, Steps, split
from metabench.contract.problem import Episode, Params
from metabench.contract.seeds import generator
from metabench.contract.solver import Solver, why_no_noise
from metabench.core import settings
from metabench.core.registry import method

WEIGHT, BIAS = "base.weight", "base.bias"
DIRECTION, LENGTH = "cosine.direction", "cosine.length"
START = "episode_head"
"""In ``State.memory``: where the head of cosines of every episode starts."""
FEW, FEW_SCALE, MANY_SCALE = 200, 2.0, 10.0
"""s of up to so many classes, and of more."""


@method("linear_probe")
@dataclass(frozen=True)
class LinearProbe(GradientMethod):
    r"""Baseline, Baseline++ (Chen 2019): features trained on all classes, a new head an episode.

    Formula:
        \min_{\lambda,\, W,\, b}\; \mathbb{E}_{(x, y) \in \text{base classes}}\; \mathrm{CE}(W
        z_\lambda(x) + b,\; y)

        \phi = \operatorname*{arg\,min}_{W', b'}\; \mathrm{CE}(W' z_\lambda(x) + b',\; y) \quad
        \text{on the support set, } \lambda \text{ fixed}

    Loop:
        x, y = draw(batch)  # of all training classes at once
        loss = cross_entropy(linear(z(lam, x), head), y)
        lam, head = lam - outer_lr * grad(loss, lam), head - outer_lr * grad(loss, head)
        for t in range(inner_steps):  # at evaluation: a new head for each episode
            phi = phi - inner_lr * grad(G(lam, phi), phi)
    """

    inner_steps: Steps = 100
    """Of the head, on the support set of an evaluation; training has none."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Examples of an outer step."""
    head: Literal["linear", "cosine"] = settings.later("linear")
    """"cosine": Baseline++."""

    @property
    def needs(self) -> frozenset[str]:
        """Examples of all classes, features that lam makes, and an inner loss for the head; for
        cosines, features of length 1."""
        own = {"base_classes", "episodes", "embedding", "inner_loss"}
        return frozenset(own | {"unit_embedding"} if self.head == "cosine" else own)

    def refuses(self, solver: Solver) -> str | None:
        """Directions and lengths are no part of a task's theta, for which noise is drawn."""
        return why_no_noise(solver, "a cosine head") if self.head == "cosine" else None

    def init(self, ctx: Context) -> State:
        """With the start of an episode's head of cosines: under vmap nothing can be drawn."""
        state = super().init(ctx)
        if self.head == "linear":
            return state
        tested = ctx.problem.init_inner(state.lam, ctx.problem.episode("valid", 0))
        weight = next(iter(tested.values()))
        start = first_cosines(ctx, weight, len(weight), "episode")
        return replace(state, memory={**state.memory, START: start})

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """A head for all n training classes: weight [n, f] and bias [n], or direction [n, f] and
        length [n, 1]."""
        weight, _ = ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)).values()
        n = ctx.problem.base_classes
        if self.head == "cosine":
            return first_cosines(ctx, weight, n, "base")
        return {WEIGHT: weight.new_zeros(n, weight.shape[1]), BIAS: weight.new_zeros(n)}

    def logits(self, head: Params, z: Tensor) -> Tensor:
        """Of all training classes [examples, n], for features [examples, f]."""
        if self.head == "cosine":
            return F.linear(z, as_weight(head))
        return F.linear(z, head[WEIGHT], head[BIAS])

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One step on a batch of all classes."""
        batch = ctx.problem.base_batch(ctx.step, self.batch)

        def loss(outer: Params) -> Tensor:
            lam, head = split(outer)
            z = ctx.embed(lam, batch)
            return F.cross_entropy(self.logits(head, z), batch["y"])

        value, g = autodiff.grad(loss, state.outer)
        size = check_hypergradient(g, ctx.step)
        if self.clip is not None:
            g = {k: v.clamp(-self.clip, self.clip) for k, v in g.items()}
        lr = self.outer_rate(ctx)
        moved, outer = self.outer_rule().update(state.outer, g, state.memory["outer"], lr)
        lam, head = split(moved)
        new = State(ctx.problem.project(lam), None, {**state.memory, "outer": outer}, head)
        return new, {"outer_loss": float(value), "hypergradient_norm": size}

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """A head of the episode's classes; of cosines, as the linear head that it is."""
        if self.head == "linear":
            return super().adapt(ctx, state, episode)
        lam = autodiff.detach(state.lam)
        (weight_name, _), (bias_name, bias) = ctx.problem.init_inner(lam, episode).items()
        ready, head = ctx.problem.prepare_inner(lam, episode), state.memory[START]
        solver, lr = ctx.inner_rule(lam, self.inner_lr)
        memory = solver.init(head)
        for t in range(self.inner_steps if self.test_steps is None else self.test_steps):
            at, to_head = autodiff.pullback(lambda h: {weight_name: as_weight(h)}, head)
            theta = {**at, bias_name: bias}
            g = ctx.inner_grad(lam, theta, ready.batch(t), create_graph=False, only=(weight_name,))
            head, memory = solver.update(head, to_head(g)[0], memory, lr)
        return autodiff.detach({weight_name: as_weight(head), bias_name: bias})


def first_cosines(ctx: Context, like: Tensor, n: int, role: str) -> Params:
    """The first head of n classes: directions [n, f] uniform within 1 / sqrt(f), as nn.Linear's,
    and their lengths [n, 1]."""
    f = like.shape[1]
    gen = generator(ctx.seeds.method, "cosine head", role)
    drawn = 2 * torch.rand(n, f, generator=gen, dtype=torch.float64) - 1
    direction = (drawn / f**0.5).to(like)
    return {DIRECTION: direction, LENGTH: direction.norm(dim=1, keepdim=True)}


def as_weight(head: Params) -> Tensor:
    """The rows s l_k w_k / |w_k| [n, f] of a head of n classes."""
    direction, length = head[DIRECTION], head[LENGTH]
    scale = FEW_SCALE if len(direction) <= FEW else MANY_SCALE
    rows: Tensor = scale * length * direction / direction.norm(dim=1, keepdim=True)
    return rows
