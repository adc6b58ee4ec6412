"""What a method is, and the outer loop that hypergradient methods share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.context import Context, Each
from metabench.contract.example_solver import ExampleSolver
from metabench.contract.guards import (
    check_episodes,
    check_hypergradient,
    is_stationary,
    zero_may_pass,
)
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Rate, Solver, SolverState
from metabench.core import settings
from metabench.core.errors import UnknownName
from metabench.core.registry import solvers

__all__ = [
    "LEARNED",
    "Context",
    "GradientMethod",
    "Hypergradient",
    "InnerTraining",
    "Method",
    "Positive",
    "SolverName",
    "State",
    "Steps",
    "inner_loop",
    "outer_rate",
    "outer_solver",
    "split",
]


def _known_solver(name: str) -> str:
    if name not in solvers:
        raise UnknownName("solver", name, solvers.names())
    return name


Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]
SolverName = Annotated[str, AfterValidator(_known_solver)]


LEARNED = "learned/"
"""Prefix of what a method learns beside lam, where both are in one dict."""


@dataclass(frozen=True)
class State:
    """All that a method knows between two outer steps; saved as it is in a checkpoint.

    ``theta`` is the carried inner variable, None where every episode starts anew. ``memory``
    holds the method's own: nested dicts and lists of tensors, numbers and strings. ``learned`` is
    what the method learns by hypergradients beside the task's lam, such as a step size.
    """

    lam: Params
    theta: Params | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    learned: Params = field(default_factory=dict)

    @property
    def outer(self) -> Params:
        """All that hypergradients are taken in: lam, and ``learned`` with ``LEARNED`` before each
        name."""
        return self.lam | {LEARNED + k: v for k, v in self.learned.items()}

    @property
    def reported(self) -> Params:
        """lam and ``learned`` as records name them: ``LEARNED`` before a name that both have."""
        own = {LEARNED + k if k in self.lam else k: v for k, v in self.learned.items()}
        return self.lam | own


def split(outer: Params) -> tuple[Params, Params]:
    """lam and learned of :attr:`State.outer`."""
    learned = {k.removeprefix(LEARNED): v for k, v in outer.items() if k.startswith(LEARNED)}
    return {k: v for k, v in outer.items() if not k.startswith(LEARNED)}, learned


class Hypergradient(NamedTuple):
    """What one episode says: its outer loss, the gradient in lam, and the adapted theta.

    ``diagnostics``: scalars by name that tell how far to trust it, larger is worse; the worst of a
    step's episodes goes to :meth:`GradientMethod.check_diagnostics` and to the learning curve.
    ``memory``: what the next step finds in ``State.memory``; of a step's episodes the last's.
    """

    value: Tensor
    grad: Params
    theta: Params
    diagnostics: Params = {}  # noqa: RUF012
    memory: dict[str, Any] = {}  # noqa: RUF012


class Method(ABC):
    """What is registered: a frozen dataclass of settings with three functions.

    A subclass gives ``needs``, :meth:`init`, :meth:`step` and :meth:`adapt`. The rest has defaults,
    and is replaced by a ClassVar, a property or (the two numbers of steps) a setting.
    """

    registered_name: ClassVar[str]

    default_solver: ClassVar[str] = "sgd"
    """Name of the inner solver where none is chosen."""

    by_examples: ClassVar[bool] = False
    """Whether it leaves every inner step to the solver, without a graph, so that one that steps by
    single examples will do."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Capabilities (keys of ``CAPABILITIES``) that a task must offer."""

    @abstractmethod
    def init(self, ctx: Context) -> State:
        """The state before the first outer step."""

    @abstractmethod
    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One outer step: the next state, and numbers for the learning curve.

        ``outer_loss`` and, where there is one, ``hypergradient_norm`` are the usual names. The
        state that comes in is never changed. Raises :class:`Diverged`.
        """

    @abstractmethod
    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta for an evaluation episode: what this method would use at test time."""

    def report(self, ctx: Context, state: State) -> dict[str, float]:
        """Numbers that a state tells by itself, which evaluations put beside the problem's metrics;
        by default none. Never counted as cost."""
        return {}

    @classmethod
    def unfinished(cls) -> list[str]:
        """Names of the functions that it must have and lacks; it is not registered then."""
        return sorted(cls.__abstractmethods__)

    def refuses(self, solver: Solver) -> str | None:
        """Why it cannot take an inner solver, in words; None where it can."""
        return None

    @property
    def packages(self) -> tuple[str, ...]:
        """Names that must be importable."""
        return ()

    @property
    def reconstruction(self) -> str:
        """A sentence, where the source does not give all of the method; tables show it."""
        return ""

    @property
    def batched(self) -> bool:
        """Whether episodes can be worked through all at once, with vmap."""
        return True

    @property
    def capturable(self) -> bool:
        """Whether its hypergradient and its adaptation do the same operations at every outer step,
        whatever the numbers, and read none on the host: a GPU can then replay them from a captured
        graph. Of a :class:`GradientMethod` with no ``hypergradient_from`` of its own."""
        return False

    @property
    def exact_with(self) -> Mapping[str, Any] | None:
        """Settings under which a hypergradient is by theory exact on a quadratic inner problem: the
        conformance kit holds a method to that. None: there are none."""
        return None

    @property
    def inner_steps(self) -> int | None:
        """Inner steps of an episode in training; None where that means nothing."""
        return None

    @property
    def test_steps(self) -> int | None:
        """Inner steps of an episode at evaluation; None: as many as in training."""
        return None


def outer_solver(name: str, **constants: float | None) -> Solver:
    """An update rule from the solver registry for the outer variable, with default constants but
    for those given. Raises UnknownName for one that it does not have."""
    given = {k: v for k, v in constants.items() if v is not None}
    solver: Solver = settings.build(solvers.get(name), given, f"outer solver {name}")
    return solver


def inner_loop(
    ctx: Context,
    lam: Params,
    theta: Params,
    episode: Episode,
    *,
    steps: int,
    lr: Rate,
    start: int = 0,
    solver_state: SolverState | None = None,
    create_graph: bool = False,
    only: Sequence[str] | None = None,
    hvps: int = 0,
    mixed_products: int = 0,
) -> tuple[Params, SolverState]:
    """theta and solver state after ``steps`` inner steps, the first of them number ``start``.

    ``solver_state`` None starts the solver anew. With ``create_graph`` every step stays
    differentiable in lam, theta and lr; without it the gradients are constants (first order),
    though theta stays connected to where it came from. ``only`` names the parameters that move
    (None: all). A noisy solver gets the noise of the episode's step. ``hvps`` and
    ``mixed_products`` are counted at each step (:meth:`Context.inner_grad`). Where lam sets the
    step size or the solver (:meth:`Problem.inner_rule`), that is what is taken; where the problem
    has steps of its own (:meth:`Problem.own_step`), it takes those, and no solver. A solver that
    steps by single examples takes a pass over them in each inner step, never with a graph.
    """
    if "own_step" in ctx.offers:
        for t in range(start, start + steps):
            theta = ctx.own_step(lam, theta, episode.batch(t))
        return theta, {}
    solver, lr = ctx.inner_rule(lam, lr)
    if isinstance(solver, ExampleSolver):
        solver.refuse_graph(create_graph)
        return solver.train(ctx, lam, theta, episode, steps, lr, solver_state, only)
    moving = theta if only is None else {k: theta[k] for k in only}
    solver_state = solver.init(moving) if solver_state is None else solver_state
    for t in range(start, start + steps):
        g = ctx.inner_grad(
            lam,
            {**theta, **moving},
            episode.batch(t),
            create_graph=create_graph,
            only=only,
            hvps=hvps,
            mixed_products=mixed_products,
        )
        moving, solver_state = solver.update(
            moving, g, solver_state, lr, ctx.noise(episode, t, theta)
        )
    return {**theta, **moving}, solver_state


@dataclass(frozen=True)
class InnerTraining(Method):
    """The inner settings that methods share, and what they use at test time: theta, trained."""

    inner_steps: Steps = 5
    inner_lr: Positive = 0.1
    test_steps: Steps | None = None
    """Inner steps at evaluation; None: as many as in training."""

    def rate(self, learned: Params) -> Rate:
        """The inner step size; a learned one reads it from ``State.learned``."""
        return self.inner_lr

    def only(self, ctx: Context) -> tuple[str, ...] | None:
        """The names of theta that inner steps move; None: all."""
        return None

    def first_theta(self, ctx: Context, lam: Params) -> Params | None:
        """The first carried theta; None where every episode starts anew."""
        if not ctx.problem.carried:
            return None
        return autodiff.detach(ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)))

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The carried theta, or ``test_steps`` inner steps from the episode's own start."""
        if state.theta is not None:
            return state.theta
        theta, _ = inner_loop(
            ctx,
            state.lam,
            autodiff.detach(ctx.problem.init_inner(state.lam, episode)),
            ctx.problem.prepare(autodiff.detach(state.lam), episode, self.only(ctx)),
            steps=self.inner_steps if self.test_steps is None else self.test_steps,
            lr=self.rate(state.learned),
            only=self.only(ctx),
        )
        return autodiff.detach(theta)


@dataclass(frozen=True)
class GradientMethod(InnerTraining):
    """The outer loop of every method that only answers "what is the hypergradient now?".

    A subclass gives :meth:`hypergradient`. Each outer step averages it over the step's episodes,
    moves lam with ``outer_solver`` and projects it to its constraints. A carried theta goes on
    from where the last episode left it, with a solver that starts anew.
    """

    outer_lr: Positive = 1e-3
    outer_solver: SolverName = "adam"
    outer_decay: Literal["none", "linear", "inverse", "sqrt"] = "none"
    """"linear": the outer step size falls to 0 over the budget (unless that is time only);
    "inverse": at outer step i it is divided by 1 + i * ``outer_decay_rate``; "sqrt": by the square
    root of i + 1."""
    clip: Positive | None = None
    """Clip every entry of the mean hypergradient to [-clip, clip]."""
    outer_decay_rate: Positive = settings.later(1e-5)
    """Of the inverse decay."""
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

    def outer_rule(self) -> Solver:
        """What moves lam."""
        return outer_solver(self.outer_solver, eps=self.outer_eps)

    def hypergradients(
        self, ctx: Context, state: State, episodes: Sequence[Episode]
    ) -> list[Hypergradient]:
        """:meth:`hypergradient_from` of every episode, which have nothing to do with each other."""
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
        lr = outer_rate(self.outer_lr, self.outer_decay, ctx, self.outer_decay_rate)
        episodes = ctx.training_episodes()
        self.choose_memory_mode(ctx, state, episodes[0])
        if ctx.replays(self) and len(episodes) > 1:
            return self.replayed_step(ctx, state, episodes, lr)
        found = self.hypergradients(ctx, state, episodes)
        check_episodes(type(self).__name__, found, state.outer, state.theta)
        diagnostics = worst([h.diagnostics for h in found])
        self.check_diagnostics(ctx, diagnostics)
        g = autodiff.mean(h.grad for h in found)
        value = sum(float(h.value) for h in found) / len(found)
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
        check_episodes(
            type(self).__name__, [Hypergradient(out["told"]["outer_loss"], out["g"], {})],
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


def outer_rate(lr: float, decay: str, ctx: Context, rate: float = 0.0) -> float:
    """The outer step size now; "linear" cannot follow a budget of time alone, and notes that."""
    if decay == "inverse":
        return lr / (1.0 + rate * ctx.step)
    if decay == "sqrt":
        return lr / math.sqrt(ctx.step + 1)
    if decay == "none":
        return lr
    progress = ctx.progress
    if progress is None:
        ctx.notes["outer_decay"] = "none: only time limits the run"
        return lr
    return lr * (1.0 - progress)
