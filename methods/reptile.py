"""Reptile: move the initial weights towards where inner training ends.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv 1803.02999:
theta <- theta - beta mean_i (theta - phi_i). No query set, no derivative of the outer loss.

The authors' code starts no inner Adam anew: its moments and its step count go on from task to task,
and a test episode starts from training's (``keep_moments``). Anew, with beta1 = 0, the first step
is the step size times the gradient's sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import (
    Context,
    Hypergradient,
    Positive,
    SolverName,
    State,
    inner_loop,
)
from metabench.contract.problem import Episode, Params
from metabench.contract.solver import SolverState
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import method

INNER = "inner"  # where a state has the inner solver's


@method("reptile")
@dataclass(frozen=True)
class Reptile(GradientMethod):
    r"""Reptile (Nichol 2018): move the initial weights towards where inner training ends.

    Formula:
        \lambda \leftarrow \lambda - \beta\, \frac{1}{n} \sum_{i=1}^{n} \left( \lambda - \phi_i
        \right), \qquad \phi_i \text{ after } T \text{ inner steps from } \lambda

    Loop:
        g = 0
        for F, G in episodes:  # F is not used
            phi = lam
            for t in range(inner_steps):
                phi = phi - inner_lr * grad(G(phi), phi)
            g = g + (lam - phi) / len(episodes)
        lam = lam - outer_lr * g
    """

    inner_lr: Positive = 1e-3
    outer_lr: Positive = 1.0
    outer_solver: SolverName = "sgd"
    outer_decay: Literal["none", "linear", "inverse"] = "linear"
    keep_moments: bool = settings.later(False)
    """The inner solver's state goes on from episode to episode, one after another, as in the
    authors' code."""

    @property
    def needs(self) -> frozenset[str]:
        """Only a lam that is the initial value of theta."""
        return frozenset({"lam_is_initialisation"})

    @property
    def batched(self) -> bool:
        """Not where an episode needs what the one before it leaves."""
        return not self.keep_moments

    @property
    def adapts_batched(self) -> bool:
        """What is kept is the same for every episode of an evaluation."""
        return True

    def init(self, ctx: Context) -> State:
        """With the inner solver's first state, where it is kept."""
        state = super().init(ctx)
        if not self.keep_moments:
            return state
        theta = ctx.problem.init_inner(state.lam, ctx.problem.episode("train", 0))
        return replace(
            state, memory=state.memory | {INNER: ctx.solver.init(autodiff.detach(theta))}
        )

    def hypergradients(
        self, ctx: Context, state: State, episodes: Sequence[Episode]
    ) -> list[Hypergradient]:
        """One after another where the inner solver's state is kept. Raises SettingError where ranks
        share the episodes then."""
        if not self.keep_moments:
            return super().hypergradients(ctx, state, episodes)
        if ctx.group.world > 1:
            raise SettingError("keep_moments takes episodes one after another: run with --ranks 1")
        out: list[Hypergradient] = []
        for episode in episodes:
            out.append(self.hypergradient_from(ctx, state, episode))
            state = replace(state, memory=state.memory | out[-1].memory)
        return out

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """From the inner solver's state of the last episode, where it is kept."""
        return self.moved(ctx, state.outer, episode, state.memory.get(INNER))

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """Inner steps from the solver's state of the last training episode, where it is kept."""
        if not self.keep_moments:
            return super().adapt(ctx, state, episode)
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        start = autodiff.detach(ctx.problem.init_inner(state.lam, episode))
        theta, _ = inner_loop(
            ctx, state.lam, start, episode,
            steps=steps, lr=self.inner_lr, solver_state=state.memory[INNER],
        )  # fmt: skip
        return autodiff.detach(theta)

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """theta - phi_T, in lam's names, in the place of a gradient; the outer loss is looked at
        only, and counted."""
        return self.moved(ctx, lam, episode, None)

    def moved(
        self, ctx: Context, lam: Params, episode: Episode, solver_state: SolverState | None
    ) -> Hypergradient:
        """:meth:`hypergradient` from a state of the inner solver; None: anew."""
        start, back = autodiff.pullback(lambda p: ctx.problem.init_inner(p, episode), lam)
        end, left = inner_loop(
            ctx,
            autodiff.detach(lam),
            start,
            episode,
            steps=self.inner_steps,
            lr=self.inner_lr,
            solver_state=solver_state,
        )
        value = ctx.outer_value(autodiff.detach(lam), end, episode.outer)
        (gap,) = back(autodiff.axpy(-1.0, end, start))
        kept = {INNER: autodiff.detach_tree(left)} if self.keep_moments else {}
        return Hypergradient(value, gap, end, memory=kept)
