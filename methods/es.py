"""Evolution strategies on lam: a gradient from the values of perturbed trainings alone.

With antithetic pairs lam + eps and lam - eps, eps ~ N(0, sigma^2), every estimator is

    mean over pairs of  xi (L(+) - L(-)) / (2 sigma^2)

full         a training of T = ``inner_steps`` for each step of lam; xi = eps
truncated    ``segment`` steps from one state that is trained with lam itself; xi = eps. Biased: it
             sees only what lam does within the segment
persistent   (PES: Vicol, Metz, Sohl-Dickstein, ICML 2021, arXiv 2112.13835) every particle goes on
             with its own state and a new eps each segment; xi = the sum of its eps so far
single       (ES-Single: Vicol, Kolter, Swersky, ICML 2023, arXiv 2304.11153; Li et al., NeurIPS
             2023, arXiv 2304.12180) as persistent, with one eps for the whole training; xi = eps

After T steps a training starts anew. All but "truncated" are unbiased for the smoothed loss while
lam stays; it moves after each segment, so that a particle's past was made with older lam. What lam
is does not matter: step sizes and constants of solvers that implicit methods cannot see, and losses
with steps. The two of a pair share start, data and noise. Perturbed is log lam where the part has a
logarithmic scale; parts that are choices stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.method import (
    Context,
    InnerTraining,
    Positive,
    SolverName,
    State,
    outer_solver,
)
from metabench.contract.problem import Episode, Hyper, Params
from metabench.contract.seeds import generator
from metabench.core.errors import Diverged
from metabench.core.registry import method
from metabench.hypergradients.search.gradient_free import Paused, train


@method("es")
@dataclass(frozen=True)
class ES(InnerTraining):
    r"""Evolution strategies (Vicol 2021, 2023): full, truncated, persistent (PES), ES-Single.

    Formula:
        g = \frac{1}{n} \sum_{i=1}^{n} \xi_i\, \frac{L(\lambda + \varepsilon_i) - L(\lambda -
        \varepsilon_i)}{2 \sigma^2}, \qquad \varepsilon_i \sim \mathcal{N}(0, \sigma^2 I)

        \xi_i = \varepsilon_i \;\; \text{(full, truncated, single)}, \qquad \xi_i =
        \textstyle\sum_{s} \varepsilon_i^{(s)} \;\; \text{over the segments so far (persistent)}

    Loop:
        g = 0  # objective "sum"
        for i in range(pairs):
            eps = sigma * normal()
            up[i], down[i] = train(lam + eps, up[i], segment), train(lam - eps, down[i], segment)
            xi[i] = xi[i] + eps  # "persistent"; all others: eps
            g = g + xi[i] * (L(up[i]) - L(down[i])) / (2 * sigma**2 * pairs)
        lam = lam - outer_lr * g
    """

    estimator: Literal["full", "truncated", "persistent", "single"] = "persistent"
    pairs: Annotated[int, Field(ge=1)] = 5
    """Antithetic pairs: twice as many trainings."""
    sigma: Positive = 0.1
    """Standard deviation of the perturbation."""
    inner_steps: Annotated[int, Field(ge=1)] = 100
    """T."""
    segment: Annotated[int, Field(ge=1)] = 10
    """Inner steps between two steps of lam (not of "full")."""
    objective: Literal["last", "sum"] = "last"
    """The outer loss where training ends, or its sum over the ends of all segments."""
    outer_lr: Positive = 0.01
    outer_solver: SolverName = "adam"

    by_examples: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """Nothing but values, and few scalars: the noise grows with their number."""
        return frozenset({"small_lam", "continuous"})

    def init(self, ctx: Context) -> State:
        """The first lam, and no training begun."""
        lam = ctx.problem.init_outer()
        outer = outer_solver(self.outer_solver).init(lam)
        return State(lam, self.first_theta(ctx, lam), {"outer": outer, "training": 0, "done": 0})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A segment of every particle, or a training of each; then a step of lam."""
        held = state.memory
        episodes = ctx.training_episodes(held["training"])
        done = held["done"]
        end = self.inner_steps if self.estimator == "full" else min(
            done + self.segment, self.inner_steps
        )  # fmt: skip
        x = coordinates(state.lam, ctx.problem.hypers)
        found = [self.pair(ctx, state, x, i, episodes, done, end) for i in range(self.pairs)]
        whole = [one for one in found if one["finite"]]
        if not whole:
            raise Diverged(
                f"in every pair of outer step {ctx.step} a training ran away: a smaller sigma "
                f"({self.sigma:g} now) or bounds on lam may help"
            )
        g = autodiff.mean(one["part"] for one in found)
        size = float(autodiff.norm(g))
        moved, outer = outer_solver(self.outer_solver).update(x, g, held["outer"], self.outer_lr)
        lam = ctx.problem.project(lam_at(moved, state.lam, ctx.problem.hypers))
        log = {
            "outer_loss": sum(one["mean"] for one in whole) / len(whole),
            "hypergradient_norm": size,
        }
        if len(whole) < len(found):
            log["pairs_that_ran_away"] = float(len(found) - len(whole))
        memory: dict[str, Any] = {"outer": outer, "training": held["training"], "done": end}
        theta = state.theta
        if self.estimator == "truncated" or ctx.problem.carried:
            _, memory["own"] = self.trained(ctx, state.lam, episodes, done, end, held.get("own"))
            # Of the trainings after the first only the ends are worth more than what was there.
            if ctx.problem.carried and (not held["training"] or end == self.inner_steps):
                theta = memory["own"][-1]["theta"]
        if self.estimator in ("persistent", "single"):
            memory["pairs"] = [one["keep"] for one in found]
        if end == self.inner_steps:
            memory = {"outer": outer, "training": held["training"] + 1, "done": 0}
        return State(lam, theta, memory), log

    def pair(
        self,
        ctx: Context,
        state: State,
        x: Params,
        i: int,
        episodes: Sequence[Episode],
        done: int,
        end: int,
    ) -> dict[str, Any]:
        """Pair ``i``: its part of the estimate (zero where one of the two ran away), its mean loss,
        and what it goes on from."""
        held = state.memory
        before = held["pairs"][i] if "pairs" in held else None
        address = held["training"] if self.estimator == "single" else ctx.step
        gen = generator(ctx.seeds.method, "es", address, i)
        eps = {
            k: self.sigma * torch.randn(v.shape, generator=gen, dtype=v.dtype).to(v.device)
            for k, v in x.items()
        }
        sums = before is not None and self.estimator == "persistent"
        xi = autodiff.axpy(1.0, before["xi"], eps) if sums and before else eps
        values, ends = [], []
        for sign, side in ((1.0, "up"), (-1.0, "down")):
            at = lam_at(autodiff.axpy(sign, eps, x), state.lam, ctx.problem.hypers)
            start = held.get("own") if self.estimator == "truncated" else (before or {}).get(side)
            value, paused = self.trained(ctx, ctx.problem.project(at), episodes, done, end, start)
            values.append(value)
            ends.append(paused)
        finite = all(math.isfinite(v) for v in values)
        gap = values[0] - values[1] if finite else 0.0
        scale = 1.0 / (2.0 * self.sigma**2)
        part = {k: gap * scale * v for k, v in xi.items()}
        telescopes = self.objective == "last" and self.estimator in ("persistent", "single")
        if telescopes and before is not None:
            part = autodiff.axpy(-before["gap"] * scale, before["xi"], part)
        return {
            "part": part if finite else {k: torch.zeros_like(v) for k, v in xi.items()},
            "mean": sum(values) / 2,
            "finite": finite,
            "keep": {"xi": xi, "gap": gap, "up": ends[0], "down": ends[1]},
        }

    def trained(
        self,
        ctx: Context,
        lam: Params,
        episodes: Sequence[Episode],
        done: int,
        end: int,
        paused: Paused | None,
    ) -> tuple[float, Paused]:
        """Mean outer loss after ``end`` inner steps, ``done`` of which ``paused`` has."""
        return train(ctx, lam, episodes, steps=end, lr=self.inner_lr, done=done, paused=paused)


def coordinates(lam: Params, hypers: Sequence[Hyper]) -> Params:
    """What is perturbed: lam without its choices, logarithms where the scale is logarithmic."""
    scale = {h.name: h for h in hypers}
    return {
        k: v.log() if k in scale and scale[k].log else v.clone()
        for k, v in lam.items()
        if k not in scale or not scale[k].choices
    }


def lam_at(x: Params, like: Params, hypers: Sequence[Hyper]) -> Params:
    """lam at these coordinates; what they lack is as in ``like``."""
    scale = {h.name: h for h in hypers}
    logarithmic = {k for k in x if k in scale and scale[k].log}
    return like | {k: v.exp() if k in logarithmic else v for k, v in x.items()}
