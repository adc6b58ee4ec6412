"""Tree-structured Parzen estimators by the Optuna library: one full inner training a try.

Bergstra, Bardenet, Bengio, Kegl: Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; Akiba
et al.: Optuna, KDD 2019. The search is in the unit cube of the bounds (categories as such). Every
step gives a fresh sampler, seeded by the step, all points so far: the state is the history itself,
and a resumed search goes on bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from metabench.contract.method import Context, State
from metabench.contract.seeds import generator
from metabench.core.registry import method
from metabench.hypergradients.search.tries import Tries

TRIED = "tried"  # in the method's memory: [*point, loss] of every try


@method("optuna_tpe")
@dataclass(frozen=True)
class OptunaTPE(Tries):
    r"""TPE (Bergstra 2011) by Optuna on a small lam; one full inner training a try.

    Formula:
        \lambda_{i+1} = \operatorname*{arg\,max}_{\lambda}\; \frac{l(\lambda)}{g(\lambda)}, \qquad
        l: \text{density of the best tries}, \quad g: \text{of all others}

    Loop:
        sampler = TPESampler(n_startup_trials=startup, n_ei_candidates=candidates, seed=k)
        point = sampler.suggest(history)
        loss = mean(F(point, train(point, inner_steps)) for F in episodes)
        history.append((point, loss))
        lam = min(history, key=lambda tried: tried[1])[0]
    """

    startup: Annotated[int, Field(ge=1)] = 10
    """Tries at random before the estimators are asked, an initial lam among them."""
    candidates: Annotated[int, Field(ge=1)] = 24
    """Draws of which the most promising becomes the next try."""
    multivariate: bool = False
    """Model the entries of lam together."""

    packages: ClassVar[tuple[str, ...]] = ("optuna",)

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """What the sampler suggests after all tries so far."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [str(i) for i in range(len(kinds))]
        space: dict[str, Any] = {
            name: optuna.distributions.CategoricalDistribution(range(n))
            if n
            else optuna.distributions.FloatDistribution(0.0, 1.0)
            for name, n in zip(names, kinds, strict=True)
        }
        seed = torch.randint(2**32, (), generator=generator(ctx.seeds.method, "tpe", ctx.step))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.startup,
                n_ei_candidates=self.candidates,
                multivariate=self.multivariate,
                seed=int(seed),
            )
        study = optuna.create_study(sampler=sampler)
        for *point, loss in state.memory.get(TRIED, []):
            each = zip(names, kinds, point, strict=True)
            params = {k: int(u * n) if n else u for k, n, u in each}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=space, value=loss)
            )
        chosen = study.ask(space).params
        # A category is its middle in the unit interval.
        return [
            (chosen[k] + 0.5) / n if n else chosen[k] for k, n in zip(names, kinds, strict=True)
        ]

    def tell(self, state: State, point: Sequence[float], loss: float) -> dict[str, Any]:
        """One line more in the history."""
        return {**state.memory, TRIED: [*state.memory.get(TRIED, []), [*point, loss]]}
