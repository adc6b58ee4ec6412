"""Thompson sampling over every combination of a small lam, with Gaussian posteriors.

A baseline of AutoRAG-HP (Fu et al., Findings of EMNLP 2024, arXiv 2406.19251), which does not say
which posterior it takes. Here it is that of Agrawal and Goyal (Further Optimal Regret Bounds for
Thompson Sampling, AISTATS 2013): with N_a pulls and the sum S_a of their rewards,

    x_a ~ N(S_a / (N_a + 1), scale^2 / (N_a + 1)),     a_t = argmax over a of x_a,

a reward being minus the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metabench.contract.method import Context, Positive
from metabench.contract.seeds import generator
from metabench.core.registry import method
from metabench.hypergradients.search.arms import FlatBandit


@method("thompson")
@dataclass(frozen=True)
class Thompson(FlatBandit):
    r"""Thompson sampling (Agrawal 2013) with an arm for every combination.

    Formula:
        x_a \sim \mathcal{N}\left( \frac{S_a}{N_a + 1},\; \frac{\mathtt{scale}^2}{N_a + 1}
        \right), \qquad a_t = \operatorname*{arg\,max}_{a}\; x_a

    Loop:
        draws = {a: normal(S[a] / (N[a] + 1), scale / sqrt(N[a] + 1)) for a in arms}
        a = max(arms, key=draws.get)
        reward = -F(a, train(a, inner_steps))
        N[a], S[a] = N[a] + 1, S[a] + reward
    """

    scale: Positive = 1.0
    """Standard deviation of a reward that is assumed, in units of the loss."""

    reconstruction: ClassVar[str] = (
        "the paper does not give its posterior: Gaussian ones with a standard normal prior stand "
        "here"
    )

    def choose(self, ctx: Context, pulls: Tensor, reward: Tensor) -> int:
        """The largest draw."""
        gen = generator(ctx.seeds.method, "thompson", ctx.step)
        normal = torch.randn(len(pulls), generator=gen, dtype=torch.float64)
        return int((reward / (pulls + 1) + self.scale * normal / (pulls + 1).sqrt()).argmax())
