"""The outer loop that hypergradient methods share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context, Each
from metabench.contract.guards import (
    check_episodes,
    check_hypergradient,
    is_stationary,
    name_of,
    zero_may_pass,
)
from metabench.contract.method import (
    Hypergradient,
    InnerTraining,
    Positive,
    SolverName,
    State,
    outer_rate,
    outer_solver,
    split,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Rate, Solver, SolverState
from metabench.core import settings


@dataclass(frozen=True)
class GradientMethod(InnerTraining):
    """The outer loop of every method that only answers "what is the hypergradient now?".

    A subclass gives :meth:`hypergradient`. Each outer step averages it over the step's episodes,
    moves lam with ``outer_solver`` and projects it to its constraints. A carried theta goes on
    from where the last episode left it, with a solver that starts anew.
    """

    outer_lr: Positive = 1e-3
    outer_solver: SolverName = "adam"
    outer_decay: Literal["none", "linear", "inverse", "sqrt", "cosine"] = "none"
    """"linear": the outer step size falls to 0 over the budget (unless that is time only);
    "inverse": at outer step i it is divided by 1 + i * ``outer_decay_rate``; "sqrt": by the square
    root of i + 1; "cosine": by half a cosine it falls to ``outer_lr_min`` over the budget."""
    clip: Positive | None = None
    """Clip every entry of the mean hypergradient to [-clip, clip]."""
    outer_decay_rate: Positive = settings.later(1e-5)
    """Of the inverse decay."""
    outer_lr_min: Annotated[float, Field(ge=0)] = settings.later(0.0)
    """Where the cosine decay ends."""
    outer_eps: Positive | None = settings.later(None)
    """The constant eps of an outer Adam; None: its default."""

    @property
    def needs(self) -> frozenset[str]:
        """A differentiable problem."""
        return GRADIENTS

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Outer loss, hypergradient and adapted theta of one episode; all without a graph.

        ``lam`` is :attr:`State.outer`. ``theta`` is the carried inner variable, None where the
        episode starts from ``problem.init_inner``.
        """
        raise NotImplementedError

    @classmethod
    def unfinished(cls) -> list[str]:
        """As of every method; :meth:`hypergradient`, where there is no step of its own either."""
        one_of = ("hypergradient", "hypergradient_from", "step")
        own = any(getattr(cls, name) is not getattr(GradientMethod, name) for name in one_of)
        return [*super().unfinished(), *([] if own else [one_of[0]])]

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """:meth:`hypergradient` at a state. Override this one to see ``state.memory``, where the
        ``memory`` of the last step's hypergradient is: a linear solve can start from there."""
        return self.hypergradient(ctx, state.outer, state.theta, episode)

    def choose_memory_mode(self, ctx: Context, state: State, episode: Episode) -> None:
        """Make the choices, and note them, that all episodes of the run share."""

    @property
    def inner_batches(self) -> int:
        """How many inner batches of an episode a hypergradient may ask for."""
        return self.inner_steps

    def check_diagnostics(self, ctx: Context, diagnostics: Mapping[str, float]) -> None:
        """Raise :class:`Diverged`, with the reason, where the diagnostics say so."""

    def first_learned(self, ctx: Context, lam: Params) -> Params:
        """The first values of what is learned beside lam."""
        return {}

    def project_learned(self, learned: Params) -> Params:
        """What is learned beside lam, moved to where it may be."""
        return learned

    def init(self, ctx: Context) -> State:
        """First lam, first theta where it is carried, and the outer solver's state."""
        lam = ctx.problem.init_outer()
        state = State(lam, self.first_theta(ctx, lam), learned=self.first_learned(ctx, lam))
        return replace(state, memory={"outer": self.outer_rule().init(state.outer)})

    def outer_rate(self, ctx: Context) -> float:
        """The outer step size now."""
        constants = {"rate": self.outer_decay_rate, "end": self.outer_lr_min}
        return outer_rate(self.outer_lr, self.outer_decay, ctx, **constants)

    def outer_rule(self) -> Solver:
        """What moves lam."""
        return outer_solver(self.outer_solver, eps=self.outer_eps)

    def hypergradients(
        self, ctx: Context, state: State, episodes: Sequence[Episode]
    ) -> list[Hypergradient]:
        """:meth:`hypergradient_from` of every episode, which have nothing to do with each other;
        where that is less work, means over several (:attr:`Hypergradient.episodes`)."""
        return ctx.over_episodes(
            lambda e: self.hypergradient_from(ctx, state, e), episodes, steps=self.inner_batches
        )

    def is_at_optimum(
        self, ctx: Context, lam: Params, found: Sequence[Hypergradient], episodes: Sequence[Episode]
    ) -> bool:
        """Whether a hypergradient of zero is right: the outer loss is stationary at every
        adapted theta too, so that there is nothing left to pass back. Not counted as cost."""
        if "outer_gradient" not in self.needs:
            return False
        each = zip(episodes, found, strict=True)
        return all(is_stationary(ctx, lam, h.theta, e) for e, h in each)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Average, guard, update, project."""
        lr = self.outer_rate(ctx)
        episodes = ctx.training_episodes()
        self.choose_memory_mode(ctx, state, episodes[0])
        if ctx.replays(self) and len(episodes) > 1:
            return self.replayed_step(ctx, state, episodes, lr)
        found = self.hypergradients(ctx, state, episodes)
        check_episodes(name_of(self), found, state.outer, state.theta)
        diagnostics = worst([h.diagnostics for h in found])
        self.check_diagnostics(ctx, diagnostics)
        counts = [h.episodes for h in found]
        g = autodiff.mean([h.grad for h in found], counts)
        value = sum(float(h.value if h.episodes == 1 else h.value.sum()) for h in found)
        value /= sum(counts)
        size = check_hypergradient(
            g,
            ctx.step,
            lambda: self.is_at_optimum(ctx, state.lam, found, episodes) or zero_may_pass(ctx),
        )
        moved, outer = self.outer_update(state.outer, g, state.memory["outer"], lr)
        theta = autodiff.detach(found[-1].theta) if ctx.problem.carried else None
        memory = {**state.memory, **autodiff.detach_tree(found[-1].memory), "outer": outer}
        new = self.next_state(ctx, moved, theta, memory)
        return new, {"outer_loss": value, "hypergradient_norm": size, **diagnostics}

    def outer_update(
        self, outer: Params, g: Params, memory: SolverState, lr: Rate
    ) -> tuple[Params, SolverState]:
        """lam and what is learned beside it one outer step on, before they are projected."""
        if self.clip is not None:
            g = {k: v.clamp(-self.clip, self.clip) for k, v in g.items()}
        return self.outer_rule().update(outer, g, memory, lr)

    def next_state(
        self, ctx: Context, moved: Params, theta: Params | None, memory: dict[str, Any]
    ) -> State:
        """With lam and what is learned moved to where they may be."""
        lam, learned = split(moved)
        return State(ctx.problem.project(lam), theta, memory, self.project_learned(learned))

    def replayed_step(
        self, ctx: Context, state: State, episodes: Sequence[Episode], lr: float
    ) -> tuple[State, dict[str, float]]:
        """The same step as one function of tensors, from hypergradients to the outer update, which
        is captured and replayed; what the host must see comes back in one piece.

        Sums over episodes are taken by the device, in another order than otherwise.
        """

        def whole(given: tuple[Params, SolverState, Tensor], each: Each) -> dict[str, Any]:
            outer, memory, rate = given
            found: Hypergradient = each(lambda e: self.hypergradient(ctx, outer, None, e))
            g = {k: v.mean(0) for k, v in found.grad.items()}
            moved, new = self.outer_update(outer, g, memory, rate)
            told = {
                "outer_loss": found.value.double().mean(),
                "hypergradient_norm": autodiff.norm(g),
                **{k: v.double().amax(0) for k, v in found.diagnostics.items()},
            }
            return {"moved": moved, "memory": new, "g": g, "told": told, "theta": found.theta}

        anchor = next(iter(state.outer.values()))
        rate = torch.full((), lr, dtype=anchor.dtype, device=anchor.device)
        given = state.outer, state.memory["outer"], rate
        out = ctx.replayed(("step", self), whole, given, episodes, steps=self.inner_batches)
        ctx.draw_ahead()  # before the host waits for what the device has been given
        check_episodes(
            name_of(self), [Hypergradient(out["told"]["outer_loss"], out["g"], {})],
            state.outer, None,
        )  # fmt: skip
        log = worst([out["told"]])
        self.check_diagnostics(ctx, dict(list(log.items())[2:]))

        def is_right() -> bool:
            thetas = [{k: v[i] for k, v in out["theta"].items()} for i in range(len(episodes))]
            found = [Hypergradient(rate, out["g"], theta) for theta in thetas]
            return self.is_at_optimum(ctx, state.lam, found, episodes)

        check_hypergradient(out["g"], ctx.step, is_right, log["hypergradient_norm"])
        # The graph writes to its own tensors again at the next step.
        moved = {k: v.clone() for k, v in out["moved"].items()}
        memory = {part: {k: v.clone() for k, v in x.items()} for part, x in out["memory"].items()}
        return self.next_state(ctx, moved, None, {**state.memory, "outer": memory}), log


def worst(diagnostics: Sequence[Params]) -> dict[str, float]:
    """The largest of each scalar, brought from the device in one piece; NaN where one is."""
    names = list(diagnostics[0])
    if not names:
        return {}
    every = torch.stack([torch.stack([one[k] for k in names]) for one in diagnostics])
    return dict(zip(names, every.amax(0).tolist(), strict=True))
