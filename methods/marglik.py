"""Marginal-likelihood gradients: lam ascends an estimate of the log evidence of the training data.

Immer, van der Ouderaa, van der Wilk, Raetsch, Schoelkopf: Stochastic Marginal Likelihood Gradients
using Neural Tangent Kernels, ICML 2023, arXiv 2306.03968; AlexImmer/ntk-marglik. No validation
data: an outer step trains theta for ``inner_steps`` inner steps, and then, once ``burn_in`` is
over, moves lam ``lam_steps`` times, each by the gradient of the log evidence at the fixed theta on
a fresh batch (:mod:`metabench.hypergradients.evidence`; its numbers of equations stand below).
There is no implicit term.

Differs from the authors' code: one outer solver and rate for all of lam, constant or falling
linearly; blocks by output are those of the columns of R_n, for which the bound (2) holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, Positive, State, Steps, inner_loop
from metabench.contract.problem import Batch, Params
from metabench.contract.seeds import generator
from metabench.core.errors import SettingError
from metabench.core.registry import method
from metabench.hypergradients.evidence import Form, Outputs, log_evidence

Count = Annotated[int, Field(ge=1)]


@method("marglik")
@dataclass(frozen=True)
class MargLik(GradientMethod):
    r"""Marginal likelihood (Immer 2023): lam ascends the log evidence of the training data.

    Formula:
        \lambda \leftarrow \lambda + \gamma\, \nabla_\lambda \log \hat{p}(D \mid \lambda)
        \Big|_{\theta \text{ fixed}}, \qquad \theta \leftarrow \theta - \eta\, \nabla_\theta
        G(\lambda, \theta)

        \log \hat{p} = \log p(D \mid \theta) - \tfrac12 \left[ \log \det\left( P_0^{-1} P \right)
        + \theta^{\top} P_0\, \theta \right], \qquad P = P_0 + \textstyle\sum_n J_n^{\top}
        \Lambda_n J_n, \quad P_0 = \mathrm{diag}(\text{precisions})

    Loop:
        for t in range(inner_steps):
            theta = theta - inner_lr * dG_dtheta(lam, theta)
        if k >= burn_in:
            for i in range(lam_steps):
                value = log_evidence(lam, theta, draw(batch))  # theta is held
                lam = lam + outer_lr * grad(value, lam)
    """

    inner_steps: Steps = 20
    outer_lr: Positive = 0.1
    batch: Count = 100
    """M, the examples of a lam step (3); all where there are fewer."""
    outputs: Outputs = "all"
    """"all" together (3), each for itself ("independent", 4), or "one" drawn for the batch or
    "one each" for every example (5)."""
    form: Form = "ntk"
    """Which log det: of the kernel ("ntk"), the same of the weights ("ggn"), or of less of it:
    "block" (a layer), "kfac", "diagonal" (6)."""
    grouped: bool = False
    """Batches of one class each, drawn as often as it is large (8)."""
    lam_steps: Count = 10
    """Steps of lam in an outer step."""
    burn_in: Steps = 0
    """The first outer steps, which train theta alone."""
    chunk: Count | None = None
    """Examples whose Jacobian is taken at a time; None: all of a batch."""

    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """A likelihood, a prior and examples; no outer loss."""
        return frozenset({"evidence", "example_losses", "prediction", "lam_in_inner_loss"})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Train theta, then move lam."""
        episode = ctx.training_episodes()[0]
        start = state.theta
        if start is None:
            start = ctx.problem.init_inner(state.lam, episode)
        theta, inner = inner_loop(
            ctx, state.lam, autodiff.detach(start), episode,
            steps=self.inner_steps, lr=self.inner_lr, solver_state=state.memory.get("inner"),
        )  # fmt: skip
        theta, lam, log = autodiff.detach(theta), state.lam, {}
        memory = dict(state.memory)
        if ctx.problem.carried:
            memory["inner"] = autodiff.detach_tree(inner)
        if ctx.step >= self.burn_in:
            lr = self.outer_rate(ctx)
            for i in range(self.lam_steps):
                value, g = self.ascent(ctx, lam, theta, i)
                log = {"outer_loss": value}
                log["hypergradient_norm"] = check_hypergradient(g, ctx.step, lambda: True)
                lam, memory["outer"] = self.outer_rule().update(lam, g, memory["outer"], lr)
                lam = ctx.problem.project(lam)
        return State(lam, theta if ctx.problem.carried else None, memory), log

    def ascent(self, ctx: Context, lam: Params, theta: Params, i: int) -> tuple[float, Params]:
        """Minus the log evidence an example, and its gradient in lam, at lam step ``i``."""
        problem = ctx.problem
        gen = generator(ctx.seeds.method, "evidence", ctx.step, i)
        batch = self.fresh_batch(ctx, gen)
        classes = problem.predict(lam, theta, {k: v[:1] for k, v in batch.items()}).numel()
        products = 1 if self.outputs in ("one", "one each") else classes

        def loss(p: Params) -> Tensor:
            at = ctx.evidence(p, products=products)
            found = log_evidence(
                problem, at, p, theta, batch,
                form=self.form, outputs=self.outputs, generator=gen, chunk=self.chunk,
            )  # fmt: skip
            return -found / problem.example_count

        value, g = autodiff.grad(loss, lam)
        if self.clip is not None:
            g = {k: v.clamp(-self.clip, self.clip) for k, v in g.items()}
        return float(value), g

    def fresh_batch(self, ctx: Context, gen: torch.Generator) -> Batch:
        """M examples drawn without replacement, of all or of one class. Raises SettingError."""
        n = ctx.problem.example_count
        among = torch.arange(n)
        if self.grouped:
            y = ctx.problem.take(among)["y"].cpu()
            if y.is_floating_point():
                raise SettingError("method marglik: grouped = true needs classes; y is a number")
            among = among[y == y[torch.randint(n, (1,), generator=gen)]]
        picked = torch.randperm(len(among), generator=gen)[: self.batch]
        return ctx.problem.take(among[picked], gen)
