"""Cross-entropy search along one training: a population shares one theta for a segment of it.

The online form of :mod:`metabench.methods.cehpo`, which see for source and formulas; a
reconstruction, and another method: points are judged by what they do to theta in the next
``segment`` inner steps, from where the best point of the last segment has brought it. That favours
what pays soon (small step sizes at the end of a training, no decay), and the answer, the sampler's
mean, is a constant of a whole training that was never judged as one. A training that has had
``inner_steps`` steps is followed by another from scratch; the sampler stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from metabench.contract.method import Context, State
from metabench.core.registry import method
from metabench.hypergradients.search.cross_entropy import SAMPLER, CrossEntropy
from metabench.hypergradients.search.gradient_free import kinds, losses_log


@method("cehpo_online")
@dataclass(frozen=True)
class CEHPOOnline(CrossEntropy):
    r"""Cross-entropy search online: points share one theta and are judged on segments.

    Formula:
        J_i = F(\lambda_i, \theta_{t+s}(\lambda_i)), \qquad \theta_{t+s}(\lambda_i) \text{ after a
        segment of } s \text{ inner steps from the common } \theta_t

        \gamma = \rho\text{-quantile of } J_1, \dots, J_N, \qquad \hat{v} =
        \operatorname*{arg\,max}_{v} \sum_{i:\, J_i \le \gamma} \log p(\lambda_i \mid v), \qquad v
        \leftarrow a\, \hat{v} + (1 - a)\, v

    Loop:
        points = [draw(mean, sigma) for i in range(samples)]
        ends = [train(p, theta, segment) for p in points]
        losses = [F(p, end) for p, end in zip(points, ends)]
        theta = ends[argmin(losses)]  # the best goes on
        mean, sigma = fitted(points, losses, rho, smoothing)  # as in cehpo
        lam = mean
    """

    segment: Annotated[int, Field(ge=1)] = 5
    """Inner steps that a point is judged by."""

    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """Bounds, and trainings that start anew."""
        return super().needs | {"episodes"}

    def init(self, ctx: Context) -> State:
        """No training begun."""
        state = super().init(ctx)
        return State(state.lam, None, {**state.memory, "training": 0, "done": 0, "paused": None})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A segment from the shared theta for every point; the best one's theta is shared next."""
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        memory = state.memory
        episodes = ctx.training_episodes(memory["training"])
        steps = min(memory["done"] + self.segment, self.inner_steps)
        points = self.draws(ctx, state, kinds(hypers, like))
        found = [
            self.judged(
                ctx, point, episodes, steps=steps, done=memory["done"], paused=memory["paused"]
            )
            for point in points
        ]
        losses = [one.loss for one in found]
        sampler = self.fitted(ctx, state, points, losses)
        memory = {**memory, SAMPLER: sampler}
        if min(losses) < math.inf:
            end = found[losses.index(min(losses))].end
            # Another point's solver may have another state: each segment starts its own.
            shared = [{"theta": part["theta"], "solver": None} for part in end]
            memory |= {"done": steps, "paused": shared}
        if memory["done"] >= self.inner_steps:
            memory |= {"training": memory["training"] + 1, "done": 0, "paused": None}
        log = {**losses_log(found), **self.spread(ctx, sampler)}
        return State(self.middle(ctx, sampler), None, memory), log
