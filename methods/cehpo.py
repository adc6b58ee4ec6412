"""Cross-entropy search: rounds of full trainings, and a sampler of lam fitted to the best of each.

K. Li, F. Li: Cross-Entropy Optimization for Hyperparameter Optimization in Stochastic
Gradient-based Approaches to Train Deep Neural Networks, arXiv 2409.09240, 2024, of which we have
the abstract and the notation alone. What stands here is the standard cross-entropy method
(Rubinstein, Kroese: The Cross-Entropy Method, 2004); its constants are this project's, and there is
no table to compare with.

    1. beta_1 .. beta_N ~ p(. | v)          normal between the bounds (log scales as such), shares
    2. J_i = outer loss after a training    the same episodes, data order and noise for a round
    3. gamma = rho-quantile of J, elites J_i <= gamma; or weights exp(-J_i / tau)
    4. v_hat = argmax sum over elites of log p(beta_i | v)
    5. v <- a v_hat + (1 - a) v             sigma is smoothed, not its square

A training that ran away has J = +inf and stays in the quantile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metabench.contract.method import Context, State
from metabench.core.registry import method
from metabench.hypergradients.search.cross_entropy import SAMPLER, CrossEntropy
from metabench.hypergradients.search.gradient_free import Judged


@method("cehpo")
@dataclass(frozen=True)
class CEHPO(CrossEntropy):
    r"""Cross-entropy search (Li 2024): rounds of trainings, the sampler fitted to the best.

    Formula:
        \lambda_1, \dots, \lambda_N \sim p(\cdot \mid v), \qquad J_i = F(\lambda_i,
        \theta_T(\lambda_i))

        \gamma = \rho\text{-quantile of } J_1, \dots, J_N, \qquad \hat{v} =
        \operatorname*{arg\,max}_{v} \sum_{i:\, J_i \le \gamma} \log p(\lambda_i \mid v), \qquad v
        \leftarrow a\, \hat{v} + (1 - a)\, v

    Loop:
        points = [draw(mean, sigma) for i in range(samples)]
        losses = [F(p, train(p, inner_steps)) for p in points]
        elites = [p for p, loss in zip(points, losses) if loss <= quantile(losses, rho)]
        mean = smoothing * average(elites) + (1 - smoothing) * mean
        sigma = max(smoothing * deviation(elites) + (1 - smoothing) * sigma, least_sigma)
        lam = mean
    """

    answer: Literal["mean", "best"] = "mean"
    """The sampler's mean (likeliest category), or the point with the least loss."""

    @property
    def needs(self) -> frozenset[str]:
        """Bounds; and no carried theta where the answer is a lam that was never trained."""
        return super().needs | ({"episodes"} if self.answer == "mean" else set())

    def ask_round(
        self, ctx: Context, state: State, kinds: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """Draw from the sampler."""
        return self.draws(ctx, state, kinds)

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """Fit it to the round."""
        points, losses = [one.point for one in found], [one.loss for one in found]
        return {**state.memory, SAMPLER: self.fitted(ctx, state, points, losses)}

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """Answer with the mean, or with the best point."""
        if self.answer == "best":
            return super().recommend(ctx, state, found)
        return State(self.middle(ctx, state.memory[SAMPLER]), None, state.memory)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A round."""
        new, log = super().step(ctx, state)
        return new, {**log, **self.spread(ctx, new.memory[SAMPLER])}
