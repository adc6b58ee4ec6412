"""Train on all classes at once, then a linear head for each episode: the baseline to meta-learning.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification, ICLR 2019, arXiv 1904.04232
("Baseline"); often called pre-training and linear probing. An outer step is one of

    min over lam, W, b of   mean over (x, y) of   CE(W z(x) + b, y)

with z the features that lam makes, and y one of all training classes (base classes). No episode is
trained on. At evaluation lam stays, and ``inner_steps`` inner steps train a new head on the support
set.

Differs from the authors' code: W and b start at zero, examples are drawn with replacement, and a
test head is trained on all of the support set in each step, by the inner solver. Theirs is trained
for 100 epochs in batches of 4 with step size 0.01, momentum and dampening 0.9, weight decay 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, GradientMethod, State, Steps, outer_rate, split
from metabench.contract.problem import Params
from metabench.core.registry import method

WEIGHT, BIAS = "base.weight", "base.bias"


@method("linear_probe")
@dataclass(frozen=True)
class LinearProbe(GradientMethod):
    """Baseline (Chen 2019): features trained on all classes at once, a new head an episode."""

    inner_steps: Steps = 100
    """Of the head, on the support set of an evaluation; training has none."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Examples of an outer step."""

    @property
    def needs(self) -> frozenset[str]:
        """Examples of all classes, features that lam makes, and an inner loss for the head."""
        return frozenset({"base_classes", "episodes", "embedding", "inner_loss"})

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """A head for all training classes: weight [base classes, f], bias [base classes]."""
        weight, _ = ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)).values()
        n = ctx.problem.base_classes
        return {WEIGHT: weight.new_zeros(n, weight.shape[1]), BIAS: weight.new_zeros(n)}

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One step on a batch of all classes."""
        batch = ctx.problem.base_batch(ctx.step, self.batch)

        def loss(outer: Params) -> Tensor:
            lam, head = split(outer)
            z = ctx.embed(lam, batch)
            return F.cross_entropy(F.linear(z, head[WEIGHT], head[BIAS]), batch["y"])

        value, g = autodiff.grad(loss, state.outer)
        size = check_hypergradient(g, ctx.step)
        if self.clip is not None:
            g = {k: v.clamp(-self.clip, self.clip) for k, v in g.items()}
        lr = outer_rate(self.outer_lr, self.outer_decay, ctx, self.outer_decay_rate)
        moved, outer = self.outer_rule().update(state.outer, g, state.memory["outer"], lr)
        lam, head = split(moved)
        new = State(ctx.problem.project(lam), None, {**state.memory, "outer": outer}, head)
        return new, {"outer_loss": float(value), "hypergradient_norm": size}
