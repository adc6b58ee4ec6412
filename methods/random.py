"""Random and quasi-random search on lam: one full inner training a try, the best one kept.

Bergstra, Bengio: Random Search for Hyper-Parameter Optimization, JMLR 2012; scrambled Sobol points
(scipy) for the quasi-random form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from metabench.contract.method import Context, State
from metabench.contract.seeds import generator
from metabench.core.registry import method
from metabench.hypergradients.search.tries import Tries


@method("random")
@dataclass(frozen=True)
class Random(Tries):
    r"""Random or quasi-random search on a small lam; one full inner training a try.

    Formula:
        \lambda^{\star} = \operatorname*{arg\,min}_{\lambda_1, \dots, \lambda_n}\;
        \ell(\lambda_i), \qquad \ell(\lambda) = \frac{1}{|E|} \sum_{e \in E} F_e(\lambda,
        \theta_T(\lambda))

        \lambda_i \sim \mathrm{Uniform}(\text{bounds}), \text{ or the } i\text{-th point of a
        scrambled Sobol sequence}

    Loop:
        point = next(sobol)  # one try a step, in the unit cube of the bounds
        loss = mean(F(point, train(point, inner_steps)) for F in episodes)
        if loss < best:
            best, lam = loss, point
    """

    sequence: Literal["sobol", "uniform"] = "sobol"

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """The next point of the sequence."""
        return self.point(ctx, len(kinds))

    def point(self, ctx: Context, dim: int) -> Sequence[float]:
        """The next point of the sequence in the unit cube [dim]."""
        number = self.asked(ctx)
        if self.sequence == "sobol":
            from scipy.stats import qmc  # a second, which whoever only asks for settings is spared

            sobol = qmc.Sobol(dim, scramble=True, seed=ctx.seeds.method % 2**32)
            if number:  # scipy cannot go forward by nothing at the start
                sobol.fast_forward(number)
            return [float(x) for x in sobol.random(1)[0]]
        gen = generator(ctx.seeds.method, "random", number)
        return torch.rand(dim, generator=gen, dtype=torch.float64).tolist()
