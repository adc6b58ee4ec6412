"""ReST-EM: sample from the policy, keep what was rewarded, fit the policy to what was kept.

Singh et al.: Beyond Human Data, TMLR 2024, arXiv 2312.06585, as used by Zweiger et al.:
Self-Adapting Language Models, 2025, arXiv 2506.10943. An outer step is a round: m actions for
each of the step's episodes from the current policy (E), then supervised steps on the kept pairs
(M). No derivative goes through a reward or through a training. Differs from the second paper: its
M-step merges a fresh LoRA into the model every round; here lam goes on from where it is, with a
solver that starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import Method, Positive, SolverName, State, Steps, outer_solver
from metabench.contract.problem import Batch, Episode, Params
from metabench.contract.seeds import generator
from metabench.core.registry import method

Kept = tuple[Episode, Batch]


@method("restem")
@dataclass(frozen=True)
class ReSTEM(Method):
    r"""ReST-EM (Singh 2024, SEAL 2025): clone the rewarded samples of a policy; rewards only.

    Formula:
        a_{ij} \sim \pi_\lambda(\cdot \mid e_i), \quad j = 1, \dots, m, \qquad r_{ij} = R(e_i,
        a_{ij})

        \lambda \leftarrow \operatorname*{arg\,max}_{\lambda}\; \sum_{(i, j)\; \text{kept}} \log
        \pi_\lambda(a_{ij} \mid e_i)

    Loop:
        kept = []
        for e in episodes:  # E: sample and reward
            actions = [sample(lam, e) for j in range(samples)]
            kept.append((e, max(actions, key=lambda a: reward(lam, e, a))))
        for epoch in range(epochs):  # M: fit what was kept
            for part in batches(shuffled(kept), batch):
                lam = lam + outer_lr * grad(mean(log_p(lam, e, a) for e, a in part), lam)
    """

    samples: Annotated[int, Field(ge=1)] = 5
    """Actions drawn for an episode (m)."""
    select: Literal["best", "above"] = "best"
    """Keep the best action of each episode, or every one whose reward is above ``threshold``."""
    threshold: float = 0.5
    epochs: Steps = 2
    batch: Annotated[int, Field(ge=1)] = 10
    """Kept pairs of a supervised step."""
    outer_lr: Positive = 3e-4
    outer_solver: SolverName = "adam"

    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """A policy and rewards, nothing else."""
        return frozenset({"policy"})

    def init(self, ctx: Context) -> State:
        """The first policy."""
        return State(ctx.problem.init_outer())

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One round."""
        episodes = ctx.training_episodes()
        found = ctx.over_episodes(lambda e: self.explore(ctx, state.lam, e), episodes)
        rewards = torch.stack([r for _, r in found]).double()
        kept = [
            (e, {k: v[i : i + 1] for k, v in actions.items()})
            for e, (actions, r) in zip(episodes, found, strict=True)
            for i in self.chosen(r)
        ]
        lam = self.fit(ctx, state.lam, kept)
        best = rewards.amax(1).mean()
        log = {"outer_loss": -rewards.mean(), "best_reward": best}
        return State(lam), {k: float(v) for k, v in log.items()} | {"kept": float(len(kept))}

    def explore(self, ctx: Context, lam: Params, episode: Episode) -> tuple[Batch, Tensor]:
        """m actions and their rewards [m]."""
        gen = generator(ctx.seeds.method, "actions", episode.index)
        actions = ctx.problem.sample(lam, episode, self.samples, gen)
        return actions, ctx.rewards(lam, episode, actions)

    def chosen(self, rewards: Tensor) -> list[int]:
        """Numbers of the actions to keep."""
        if self.select == "best":
            return [int(rewards.argmax())]
        return [i for i, r in enumerate(rewards.tolist()) if r > self.threshold]

    def fit(self, ctx: Context, lam: Params, kept: list[Kept]) -> Params:
        """lam after ``epochs`` passes over the kept pairs in batches, in an order of each its own:
        descent on -(1/n) sum log p(action | episode)."""
        solver = outer_solver(self.outer_solver)
        solver_state = solver.init(lam)
        for epoch in range(self.epochs):
            gen = generator(ctx.seeds.method, "order", ctx.step, epoch)
            order = torch.randperm(len(kept), generator=gen).tolist()
            for start in range(0, len(kept), self.batch):
                some = [kept[i] for i in order[start : start + self.batch]]
                g = autodiff.mean(ctx.share(partial(self.slope, ctx, lam), some))
                lam, solver_state = solver.update(lam, g, solver_state, self.outer_lr)
                lam = ctx.problem.project(lam)
        return lam

    def slope(self, ctx: Context, lam: Params, pair: Kept) -> Params:
        """Gradient of -log p of one action."""
        return autodiff.grad(lambda x: -ctx.log_likelihood(x, *pair).sum(), lam)[1]

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta trained on one action of the policy."""
        gen = generator(ctx.seeds.evaluation, "action", episode.index)
        action = ctx.problem.sample(state.lam, episode, 1, gen)
        theta = ctx.problem.adapted(state.lam, episode, action)
        return {k: v[0] for k, v in theta.items()}
