"""Prototypical networks: a learned embedding, and for each class the mean of its support examples.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv 1703.05175.
With z the features that lam makes and c_k the mean of z over the support examples of class k,

    p(k | x) = softmax_k(-|z(x) - c_k|^2),

which is a linear head W_k = 2 c_k, b_k = -|c_k|^2, for |z|^2 is the same for all classes: that head
is theta. There is no inner loss; the hypergradient is the plain gradient of the query loss. The
authors train with more classes an episode than they test with: the few-shot tasks' ``train_ways``.

Differs from the authors' code where the network has batch norm: support and query set are embedded
one after the other, each with its own statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, State, Steps
from metabench.contract.problem import Episode, Params
from metabench.core.registry import method


@method("protonet")
@dataclass(frozen=True)
class ProtoNet(GradientMethod):
    r"""Prototypical networks (Snell 2017): class means of learned features as a linear head.

    Formula:
        c_k = \frac{1}{|S_k|} \sum_{x \in S_k} z_\lambda(x), \qquad p(k \mid x) =
        \frac{\exp(-\|z_\lambda(x) - c_k\|^2)}{\sum_j \exp(-\|z_\lambda(x) - c_j\|^2)}

    Loop:
        g = 0
        for (x, y), (x_query, y_query) in episodes:
            c = stack([z(lam, x[y == k]).mean(0) for k in range(ways)])
            logits = 2 * z(lam, x_query) @ c.T - (c**2).sum(1)
            g = g + grad(cross_entropy(logits, y_query), lam) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_steps: Steps = 0
    """None are taken: the head is in closed form, and ``inner_lr`` means nothing."""

    def __post_init__(self) -> None:
        if self.inner_steps or self.test_steps:
            raise ValueError("protonet has a head in closed form: it takes no inner steps")

    @property
    def needs(self) -> frozenset[str]:
        """Episodes of classes, and features that lam makes."""
        return frozenset({"episodes", "embedding", "outer_gradient"})

    @property
    def inner_batches(self) -> int:
        """The support set, once."""
        return 1

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """grad_lam F(lam, theta(lam)), theta the head of prototypes."""

        def f(lam: Params) -> tuple[Tensor, Params]:
            head = self.head(ctx, lam, episode)
            return ctx.outer_loss(lam, head, episode.outer), head

        return Hypergradient(*autodiff.grad_and_rest(f, lam))

    def head(self, ctx: Context, lam: Params, episode: Episode) -> Params:
        """W_k = 2 c_k and b_k = -|c_k|^2, in theta's names."""
        support = episode.batch(0)
        z = ctx.embed(lam, support)
        weight, bias = (like := ctx.problem.init_inner(lam, episode))
        classes = torch.arange(len(like[bias]), device=z.device)
        members = (support["y"] == classes[:, None]).to(z.dtype)
        c = (members @ z) / members.sum(1, keepdim=True)
        return {weight: 2 * c, bias: -c.square().sum(1)}

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The head of prototypes."""
        return autodiff.detach(self.head(ctx, autodiff.detach(state.lam), episode))
