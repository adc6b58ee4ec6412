"""UCB over every combination of a small lam: the flat baseline of AutoRAG-HP.

Fu, Qin, Yang, Wang, Zhang, Lin, Chen, Zhang, Rajmohan, Zhang: AutoRAG-HP, Findings of EMNLP 2024,
arXiv 2406.19251. Arms that were never pulled come first, then

    a_t = argmax over a of  Q_a + alpha sqrt(ln t / N_a)

with Q_a the mean reward (minus the loss) and t the number of pulls so far. alpha = 1 is the
paper's, for rewards between -1 and 1. The order of the first pulls, which the paper does not give,
is the seed's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from metabench.contract.method import Context
from metabench.core.registry import method
from metabench.hypergradients.search.arms import FlatBandit, pick


@method("ucb")
@dataclass(frozen=True)
class UCB(FlatBandit):
    r"""UCB (Auer 2002) with an arm for every combination.

    Formula:
        a_t = \operatorname*{arg\,max}_{a}\; Q_a + \alpha \sqrt{\frac{\ln t}{N_a}}

    Loop:
        new = [a for a in arms if N[a] == 0]
        a = new[0] if new else max(arms, key=lambda a: Q[a] + alpha * sqrt(log(t) / N[a]))
        reward = -F(a, train(a, inner_steps))
        N[a] = N[a] + 1
        Q[a] = Q[a] + (reward - Q[a]) / N[a]
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the confidence term, in units of the loss."""

    def choose(self, ctx: Context, pulls: Tensor, reward: Tensor) -> int:
        """The largest index."""
        return pick(pulls, reward, self.alpha)
