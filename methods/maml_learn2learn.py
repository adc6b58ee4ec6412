"""MAML as learn2learn computes it: a reference row beside this project's own.

Arnold, Mahajan, Datta, Bunner, Zarkias: learn2learn, 2020, arXiv 2008.12284; version 0.2.0. Its
``MAML.clone`` and ``MAML.adapt`` copy and move the weights, plain gradient descent whatever the
inner solver; losses are the problem's own at the learner's weights, and the outer loop is that of
every hypergradient method. So nothing but the library differs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, Hypergradient, Positive, State, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.core.environment.optional_packages import quietly
from metabench.core.registry import method


@method("maml_learn2learn")
@dataclass(frozen=True)
class MAMLLearn2learn(GradientMethod):
    r"""MAML by the learn2learn library: clone, adapt, differentiate; a reference row.

    Formula:
        \lambda \leftarrow \lambda - \beta\, \nabla_\lambda \frac{1}{n} \sum_{i=1}^{n}
        F_i(\phi_i), \qquad \phi_i = \lambda - \alpha \nabla G_i(\lambda)

    Loop:
        g = 0
        for F, G in episodes:
            phi = lam  # learn2learn's clone() and adapt()
            for t in range(inner_steps):
                phi = phi - inner_lr * grad(G(phi), phi)
            g = g + grad(F(phi), lam) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_steps: Steps = 1
    inner_lr: Positive = 0.4
    order: Literal["second", "first"] = "second"

    packages: ClassVar[tuple[str, ...]] = ("learn2learn",)
    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """A module whose weights are lam; second derivatives unless first order."""
        own = frozenset({"outer_gradient", "lam_is_initialisation", "module"})
        return own | GRADIENTS if self.order == "second" else own

    def learner(self, ctx: Context, weights: Params) -> Any:
        """learn2learn's MAML around a copy of the problem's module with these weights."""
        with quietly():
            from learn2learn.algorithms import MAML

        module = copy.deepcopy(ctx.problem.module)
        assert module is not None
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(weights[name]).requires_grad_()
        return MAML(module, lr=self.inner_lr, first_order=self.order == "first")

    def adapted(self, ctx: Context, lam: Params, learner: Any, episode: Episode, steps: int) -> Any:
        """A clone of the learner after this many inner steps."""
        clone, hvps = learner.clone(), int(self.order == "second")
        for t in range(steps):
            clone.adapt(ctx.inner_loss(lam, weights_of(clone), episode.batch(t), hvps=hvps))
        return clone

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Through the clone's steps, by autograd, to the weights that were cloned."""
        lam = autodiff.detach(lam)
        start, back = autodiff.pullback(lambda p: ctx.problem.init_inner(p, episode), lam)
        learner = self.learner(ctx, start)
        clone = self.adapted(ctx, lam, learner, episode, self.inner_steps)
        end = weights_of(clone)
        value = ctx.outer_loss(lam, end, episode.outer)
        first = weights_of(learner)
        g = dict(zip(first, torch.autograd.grad(value, list(first.values())), strict=True))
        return Hypergradient(
            value.detach(), back({k: g[k] for k in start})[0], autodiff.detach(end)
        )

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """A first-order clone after ``test_steps`` steps."""
        start = autodiff.detach(ctx.problem.init_inner(state.lam, episode))
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        first = replace(self, order="first")
        learner = first.learner(ctx, start)
        end = weights_of(first.adapted(ctx, state.lam, learner, episode, steps))
        return {k: end[k].detach() for k in start}


def weights_of(learner: Any) -> Params:
    """The learner's weights by the names that they have in the problem's module."""
    return dict(learner.module.named_parameters())
