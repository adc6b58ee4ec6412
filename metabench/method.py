"""What a method is, what it is handed, and the outer loop that hypergradient methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from metabench import grads, settings
from metabench.cell import Budget
from metabench.errors import Diverged
from metabench.meter import Meter
from metabench.problem import GRADIENTS, Batch, Episode, Params, Problem, Seeds
from metabench.registry import solvers
from metabench.solver import Memory, Rate, Solver

Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class State:
    """All that a method knows between two outer steps; saved as it is in a checkpoint.

    ``theta`` is the carried inner variable, None where every episode starts anew. ``memory``
    holds the method's own: nested dicts and lists of tensors, numbers and strings.
    """

    lam: Params
    theta: Params | None = None
    memory: dict[str, Any] = field(default_factory=dict)


class Hypergradient(NamedTuple):
    """What one episode says: its outer loss, the gradient in lam, and the adapted theta."""

    value: Tensor
    grad: Params
    theta: Params


@dataclass
class Context:
    """What the harness hands to a method: the problem, the inner solver, counters, the clock.

    ``step`` is the number of outer steps done; ``horizon`` the number planned (None where the
    budget is set in something else). ``engine`` says how episodes are worked through: "loop" (one
    after another, over ``workers`` Python threads) or "vmap" (all at once, ``chunk`` at a time).
    """

    problem: Problem
    solver: Solver
    seeds: Seeds
    offers: frozenset[str]
    meter: Meter = field(default_factory=Meter)
    budget: Budget = field(default_factory=Budget)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    engine: Literal["loop", "vmap"] = "loop"
    workers: int = 1
    chunk: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """Choices made along the way that a reader of the record should know (memory mode ...)."""

    @property
    def horizon(self) -> int | None:
        """Planned number of outer steps."""
        return self.budget.outer_steps

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Inside, what this thread does, and what it hands to others by :meth:`over_episodes`,
        does not count as cost: evaluation."""
        with self.meter.muted():
            yield

    def training_episodes(self) -> list[Episode]:
        """The training episodes of this outer step."""
        m = self.problem.episodes_per_step
        return [self.problem.episode("train", self.step * m + i) for i in range(m)]

    def inner_grad(
        self,
        lam: Params,
        theta: Params,
        batch: Batch,
        *,
        create_graph: bool = True,
        only: Sequence[str] | None = None,
    ) -> Params:
        """Gradient of G in theta (in the names of ``only``); counted as one inner gradient."""
        self.meter.add(inner_gradients=1)
        moving = {k: theta[k] for k in only} if only is not None else theta
        if not create_graph:
            lam, theta = grads.detach(lam), grads.detach(theta)
        loss = self.problem.inner_loss
        return grads.grad(
            lambda t: loss(lam, {**theta, **t}, batch), moving, create_graph=create_graph
        )[1]

    def over_episodes(
        self,
        f: Callable[[Episode], Any],
        episodes: Sequence[Episode],
        *,
        steps: int = 1,
        threads: bool = True,
    ) -> list[Any]:
        """f of every episode, in order; f returns nested dicts or named tuples of tensors.

        Under the "vmap" engine f runs once on all episodes, with torch.func derivatives;
        ``steps`` says how many inner batches of each it may ask for. Otherwise it runs once an
        episode, on Python threads where there are several workers: results do not depend on how
        many.
        """
        if self.engine == "vmap" and len(episodes) > 1:
            return self._batched(f, episodes, steps)
        if self.workers > 1 and threads and len(episodes) > 1:
            muted = self.meter.is_muted
            with ThreadPoolExecutor(self.workers, "episode", self.meter.mute, (muted,)) as pool:
                return list(pool.map(f, episodes))
        return [f(episode) for episode in episodes]

    def _batched(
        self, f: Callable[[Episode], Any], episodes: Sequence[Episode], steps: int
    ) -> list[Any]:
        fixed = not any(callable(e.inner) for e in episodes)
        times = 1 if fixed else steps
        inner = [_stack([e.batch(t) for e in episodes]) for t in range(times)]
        outer = _stack([e.outer for e in episodes])

        def one(inner: list[Batch], outer: Batch) -> Any:
            return f(Episode(inner[0] if fixed else inner.__getitem__, outer, -1))

        size = self.chunk or len(episodes)
        results: list[Any] = []
        for start in range(0, len(episodes), size):
            part = slice(start, start + size)
            n = len(episodes[part])
            cut = torch.utils._pytree.tree_map(lambda x, part=part: x[part], (inner, outer))
            with grads.functional(), self.meter.batch_of(n):
                out = torch.func.vmap(one)(*cut)
            results += [
                torch.utils._pytree.tree_map(lambda x, i=i: x[i], out) for i in range(n)
            ]
        return results


def _stack(batches: Sequence[Batch]) -> Batch:
    return {k: torch.stack([b[k] for b in batches]) for k in batches[0]}


class Method(Protocol):
    """What is registered: a frozen dataclass of settings with three functions.

    Optional class attributes: ``packages`` (names that must be importable), ``reconstruction`` (a
    sentence, where the source does not give all of the method).
    """

    registered_name: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities (keys of ``problem.CAPABILITIES``) that a task must offer."""
        ...

    def init(self, ctx: Context) -> State:
        """The state before the first outer step."""
        ...

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """One outer step: the next state, and numbers for the learning curve.

        ``outer_loss`` and, where there is one, ``hypergradient_norm`` are the usual names. The
        state that comes in is never changed. Raises :class:`Diverged`.
        """
        ...

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta for an evaluation episode: what this method would use at test time."""
        ...


def outer_solver(name: str) -> Solver:
    """An update rule from the solver registry for the outer variable, with default constants."""
    solver: Solver = settings.build(solvers.get(name), {}, f"solver {name}")
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
    memory: Memory | None = None,
    create_graph: bool = False,
    only: Sequence[str] | None = None,
) -> tuple[Params, Memory]:
    """theta and solver memory after ``steps`` inner steps, the first of them number ``start``.

    With ``create_graph`` every step stays differentiable in lam, theta and lr; without it the
    gradients are constants (first order), though theta stays connected to where it came from.
    """
    moving = {k: theta[k] for k in (only or theta)}
    memory = ctx.solver.init(moving) if memory is None else memory
    for t in range(start, start + steps):
        g = ctx.inner_grad(
            lam, {**theta, **moving}, episode.batch(t), create_graph=create_graph, only=only
        )
        moving, memory = ctx.solver.update(moving, g, memory, lr)
    return {**theta, **moving}, memory


@dataclass(frozen=True)
class GradientMethod:
    """The outer loop of every method that only answers "what is the hypergradient now?".

    A subclass gives :meth:`hypergradient`. Each outer step averages it over the step's episodes,
    moves lam with ``outer_solver`` and projects it to its constraints.
    """

    inner_steps: Steps = 5
    inner_lr: Positive = 0.1
    test_steps: Steps | None = None
    """Inner steps at evaluation; None: as many as in training."""
    outer_lr: Positive = 1e-3
    outer_solver: str = "adam"
    outer_decay: Literal["none", "linear"] = "none"
    """"linear": the outer step size falls to 0 over the planned outer steps."""
    clip: Positive | None = None
    """Clip every entry of the mean hypergradient to [-clip, clip]."""

    @property
    def needs(self) -> frozenset[str]:
        """A differentiable problem."""
        return GRADIENTS

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """Outer loss, hypergradient and adapted theta of one episode; all without a graph.

        ``theta`` is the carried inner variable, None where the episode starts from
        ``problem.init_inner``.
        """
        raise NotImplementedError

    def init_lam(self, ctx: Context) -> Params:
        """The first outer variable; methods that learn more than lam add names to it."""
        return ctx.problem.init_outer()

    def rate(self, lam: Params) -> Rate:
        """The inner step size; a learned one reads it from lam."""
        return self.inner_lr

    def only(self, ctx: Context) -> tuple[str, ...] | None:
        """The names of theta that inner steps move; None: all."""
        return None

    def init(self, ctx: Context) -> State:
        """First lam, first theta where it is carried, and the outer solver's memory."""
        lam = self.init_lam(ctx)
        theta = None
        if ctx.problem.carried:
            theta = grads.detach(ctx.problem.init_inner(lam, ctx.problem.episode("train", 0)))
        return State(lam, theta, {"outer": outer_solver(self.outer_solver).init(lam)})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Average, guard, update, project."""
        found = ctx.over_episodes(
            lambda e: self.hypergradient(ctx, state.lam, state.theta, e),
            ctx.training_episodes(),
            steps=self.inner_steps,
        )
        g = grads.mean(h.grad for h in found)
        value = math.fsum(float(h.value) for h in found) / len(found)
        size = check_hypergradient(g, ctx.step)
        if self.clip is not None:
            g = {k: v.clamp(-self.clip, self.clip) for k, v in g.items()}
        lam, memory = outer_solver(self.outer_solver).update(
            state.lam, g, state.memory["outer"], outer_rate(self.outer_lr, self.outer_decay, ctx)
        )
        theta = grads.detach(found[-1].theta) if ctx.problem.carried else None
        new = State(ctx.problem.project(lam), theta, {**state.memory, "outer": memory})
        return new, {"outer_loss": value, "hypergradient_norm": size}

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The carried theta, or ``test_steps`` inner steps from the episode's own start."""
        if state.theta is not None:
            return state.theta
        steps = self.inner_steps if self.test_steps is None else self.test_steps
        start = grads.detach(ctx.problem.init_inner(state.lam, episode))
        theta, _ = inner_loop(
            ctx, state.lam, start, episode, steps=steps, lr=self.rate(state.lam),
            only=self.only(ctx),
        )
        return grads.detach(theta)


def outer_rate(lr: float, decay: str, ctx: Context) -> float:
    """The outer step size now."""
    if decay == "none" or not ctx.horizon:
        return lr
    return lr * max(0.0, 1.0 - ctx.step / ctx.horizon)


def check_hypergradient(g: Params, step: int) -> float:
    """The norm of a hypergradient; raises :class:`Diverged` where it is no number or exactly 0."""
    size = float(grads.norm({k: v.double() for k, v in g.items()}))
    if not math.isfinite(size):
        bad = [k for k, v in g.items() if not bool(torch.isfinite(v).all())]
        where = f" (in {', '.join(bad)})" if bad else ""
        raise Diverged(f"the hypergradient at outer step {step} is not finite{where}")
    if size == 0.0:
        raise Diverged(
            f"the hypergradient at outer step {step} is exactly zero: through this method the "
            "outer loss does not depend on lam"
        )
    return size
