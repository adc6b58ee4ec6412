"""What a method is, and the inner training that methods share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.by_examples.solver import ExampleSolver
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params
from metabench.contract.solver import Rate, Solver, SolverState
from metabench.core import settings
from metabench.core.errors import UnknownName
from metabench.core.registry import solvers

__all__ = [
    "LEARNED",
    "Context",
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

    It may stand for E episodes: value has the shape [E] then, grad is the mean of theirs, and
    theta is empty.
    """

    value: Tensor
    grad: Params
    theta: Params
    diagnostics: Params = {}  # noqa: RUF012
    memory: dict[str, Any] = {}  # noqa: RUF012

    @property
    def episodes(self) -> int:
        """For how many it stands."""
        return self.value.numel() if isinstance(self.value, Tensor) else 1


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
    def adapts_batched(self) -> bool:
        """Whether :meth:`adapt` can be worked through for several episodes at once, with vmap: of
        one state, so that a method may that trains on its episodes one after another."""
        return self.batched

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
            ctx.problem.prepare_inner(autodiff.detach(state.lam), episode, self.only(ctx)),
            steps=self.inner_steps if self.test_steps is None else self.test_steps,
            lr=self.rate(state.learned),
            only=self.only(ctx),
        )
        return autodiff.detach(theta)


def outer_rate(
    lr: float, decay: str, ctx: Context, rate: float = 0.0, *, end: float = 0.0
) -> float:
    """The outer step size now; "linear" and "cosine" cannot follow a budget of time alone, and note
    that. ``rate`` is that of "inverse", ``end`` the last step size of "cosine"."""
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
    if decay == "cosine":
        return end + (lr - end) * (1.0 + math.cos(math.pi * progress)) / 2
    return lr * (1.0 - progress)
