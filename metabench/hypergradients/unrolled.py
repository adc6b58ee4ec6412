"""Hypergradients through the iterations of an inner solver: reverse, truncated, forward.

Franceschi, Frasconi, Salzo, Grazzi, Pontil, ICML 2018, arXiv 1806.04910 (reverse mode, its
algorithm 1); Franceschi, Donini, Frasconi, Pontil, ICML 2017 (forward mode). Reverse mode has three
ways to remember the iterations, equal in value: the whole graph; every state, with one step's graph
rebuilt at a time; every sqrt(T)-th state, with the states between rebuilt too.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Hypergradient, Positive, State, inner_loop, split
from metabench.contract.problem import Episode, Params
from metabench.contract.solver import Rate, SolverState

Checkpointing = Literal["auto", "graph", "states", "checkpoints"]
Iterate = tuple[Params, SolverState]
"""theta and the solver's state: what one inner step maps to the next."""


@dataclass(frozen=True)
class Path:
    """The inner iterations of one episode as pure functions of lam (:attr:`State.outer`).

    ``theta`` is where they start, None for ``problem.init_inner(lam)``, which depends on lam.
    """

    ctx: Context
    theta: Params | None
    episode: Episode
    rate: Callable[[Params], Rate]
    only: Sequence[str] | None = None

    def begin(self, lam: Params) -> Iterate:
        """The first iterate."""
        start = self.theta
        if start is None:
            start = self.ctx.problem.init_inner(split(lam)[0], self.episode)
        moving = start if self.only is None else {k: start[k] for k in self.only}
        return start, self.ctx.solver.init(moving)

    def go(
        self, iterate: Iterate, lam: Params, t: int, steps: int = 1, *, create_graph: bool = False
    ) -> Iterate:
        """The iterate ``steps`` inner steps on, the first of them number ``t``."""
        theta, solver_state = iterate
        own, learned = split(lam)
        return inner_loop(
            self.ctx,
            own,
            theta,
            self.episode,
            steps=steps,
            lr=self.rate(learned),
            start=t,
            solver_state=solver_state,
            create_graph=create_graph,
            only=self.only,
        )

    def prepared(self, lam: Params) -> Path:
        """The same iterations, with what is common to them computed once, in the graph of lam."""
        ready = self.ctx.problem.prepare(split(lam)[0], self.episode, self.only)
        return replace(self, episode=ready)

    def plain(self, iterate: Iterate, lam: Params, t: int, steps: int = 1) -> Iterate:
        """As :meth:`go`, without a graph: ``iterate`` and ``lam`` must have none."""
        on: Iterate = autodiff.detach_tree(self.go(iterate, lam, t, steps))
        return on

    def outer_value(self, lam: Params, theta: Params) -> Tensor:
        """F(lam, theta) on the episode's outer batch."""
        return self.ctx.problem.outer_loss(split(lam)[0], theta, self.episode.outer)


def reverse(
    ctx: Context,
    lam: Params,
    theta: Params | None,
    episode: Episode,
    *,
    steps: int,
    rate: Callable[[Params], Rate],
    truncate: int | None = None,
    first_order: bool = False,
    only: Sequence[str] | None = None,
    mode: Checkpointing = "auto",
    memory_budget: float = 4e9,
) -> Hypergradient:
    """The hypergradient of F(lam, theta_T(lam)) by reverse mode.

    ``theta`` is where the inner steps start, None for ``problem.init_inner(lam)``, which is then
    differentiated too. ``truncate`` keeps the last K steps only (biased). ``first_order`` treats
    inner gradients as constants. ``only`` names the parameters that move. "auto" takes the fastest
    mode that keeps the episodes of one outer step within ``memory_budget`` bytes; the choice goes
    to ``ctx.notes``.
    """
    path = Path(ctx, theta, episode, rate, only)
    lam = autodiff.detach(lam)
    kept = steps if truncate is None else min(truncate, steps)
    skipped = steps - kept
    first = None
    if skipped:
        first = path.prepared(lam).plain(autodiff.detach_tree(path.begin(lam)), lam, 0, skipped)
    if first_order or kept <= 1:
        mode = "graph"
    elif mode == "auto":
        mode = choose(path, lam, kept, memory_budget)
    ctx.notes["unroll"] = "first order" if first_order else mode
    if mode == "graph":
        found = _whole_graph(path, lam, first, skipped, kept, first_order)
    else:
        every = 1 if mode == "states" else math.isqrt(kept)
        found = _replayed(path, lam, first, skipped, kept, every)
    at_lam = "lam_is_initialisation" in ctx.offers or ctx.problem.starts_at_lam
    through_start = theta is None and first is None and at_lam
    made = 0 if first_order else kept
    ctx.meter.add(
        outer_gradients=1,
        # Where the start does not depend on lam, the graph has no product in theta at its step.
        hvps=made if through_start or mode != "graph" else max(0, made - 1),
        mixed_products=made if "lam_in_inner_loss" in ctx.offers else 0,
    )
    return found


def _whole_graph(
    path: Path, lam: Params, first: Iterate | None, t: int, steps: int, first_order: bool
) -> Hypergradient:
    """One graph through the start (unless ``first`` is given), all steps and the outer loss."""

    def f(lam: Params) -> tuple[Tensor, Params]:
        ready = path.prepared(lam)
        start = ready.begin(lam) if first is None else first
        end, _ = ready.go(start, lam, t, steps, create_graph=not first_order)
        return ready.outer_value(lam, end), end

    return Hypergradient(*autodiff.grad_and_rest(f, lam))


def _replayed(
    path: Path, lam: Params, first: Iterate | None, t: int, steps: int, every: int
) -> Hypergradient:
    """Every ``every``-th iterate stored on the way; one step's graph at a time on the way back:

    g <- g + (d Phi / d lam)' alpha ; alpha <- (d Phi / d iterate)' alpha.
    """
    if first is None:
        iterate, start_back = autodiff.pullback(path.begin, lam)
    else:
        iterate, start_back = first, None
    stored = Iterates(-(-steps // every))
    for i in range(steps):
        if i % every == 0:
            stored.push(iterate)
        iterate = path.plain(iterate, lam, t + i)

    end, solver_state = iterate
    value, back = autodiff.pullback(path.outer_value, lam, end)
    g, alpha_theta = back(torch.ones_like(value))
    alpha: Any = (alpha_theta, tree_map(torch.zeros_like, solver_state))
    iterates = Iterates(every)
    while len(stored):
        begun = (len(stored) - 1) * every
        iterate = stored.pop()
        for i in range(begun, min(begun + every, steps) - 1):
            iterates.push(iterate)
            iterate = path.plain(iterate, lam, t + i)
        for i in reversed(range(begun, min(begun + every, steps))):
            _, back = autodiff.pullback(
                lambda p, q, i=i: path.go(p, q, t + i, create_graph=True), iterate, lam
            )
            alpha, more = back(alpha)
            g = autodiff.axpy(1.0, more, g)
            if i > begun:
                iterate = iterates.pop()
    if start_back is not None:
        g = autodiff.axpy(1.0, start_back(alpha)[0], g)
    return Hypergradient(value, g, end)


class Iterates:
    """A stack of at most ``room`` iterates, copied into few large pieces of memory: kept where
    inner steps left them, they would lie between temporaries and leave holes that nothing fits.

    What :meth:`pop` gives is overwritten by the next :meth:`push`.
    """

    PIECE = 32

    def __init__(self, room: int) -> None:
        self.room, self.count = room, 0
        self.pieces: list[list[Tensor]] = []
        self.like: Any = None
        self.batched: list[Iterate] = []

    def __len__(self) -> int:
        return self.count

    def push(self, iterate: Iterate) -> None:
        """Keep a copy; under vmap the iterate itself."""
        self.count += 1
        if autodiff.is_functional():
            self.batched.append(iterate)
            return
        self.like, parts = iterate, autodiff.tensors(iterate)
        piece, place = divmod(self.count - 1, self.PIECE)
        if piece == len(self.pieces):
            some = min(self.PIECE, self.room - piece * self.PIECE)
            self.pieces.append([x.new_empty((some, *x.shape)) for x in parts])
        for kept, x in zip(self.pieces[piece], parts, strict=True):
            kept[place].copy_(x)

    def pop(self) -> Iterate:
        """The last iterate, taken off."""
        self.count -= 1
        if self.batched:
            return self.batched.pop()
        piece, place = divmod(self.count, self.PIECE)
        found: Iterate = autodiff.with_tensors(self.like, [x[place] for x in self.pieces[piece]])
        return found


def forward(
    ctx: Context,
    lam: Params,
    theta: Params | None,
    episode: Episode,
    *,
    steps: int,
    rate: Callable[[Params], Rate],
) -> Hypergradient:
    """The same value by forward mode: Z_{t+1} = A_t Z_t + B_t, one column a scalar of lam.

    Memory does not grow with ``steps``; time grows with the number of scalars in lam.
    """
    path = Path(ctx, theta, episode, rate)
    lam = autodiff.detach(lam)
    directions = unit_directions(lam)
    n = len(next(iter(directions.values())))
    iterate, z = along(path.begin, (lam,), (directions,))
    for t in range(steps):
        iterate, z = along(
            lambda p, q, t=t: path.go(p, q, t, create_graph=True), (iterate, lam), (z, directions)
        )
    value, slopes = along(path.outer_value, (lam, iterate[0]), (directions, z[0]))
    ctx.meter.add(
        outer_gradients=1,
        hvps=n * steps,
        mixed_products=n * steps if "lam_in_inner_loss" in ctx.offers else 0,
    )
    ctx.notes["unroll"] = "forward"
    return Hypergradient(value, from_slopes(slopes, lam), iterate[0])


def along(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Values of ``f`` at ``primals``, and its derivatives along every one of the stacked
    ``tangents`` (nested as the primals, one more dimension in front)."""
    load_forward_mode()

    def one(*tangent: Any) -> Any:
        return torch.func.jvp(f, primals, tangent)

    # Noise that a step draws by its address is the same along every tangent.
    with autodiff.functional():
        values, slopes = torch.func.vmap(one, randomness="same")(*tangents)
    # The values are the same along every tangent: a view n times over.
    return tree_map(lambda x: x[0], values), slopes


def from_slopes(slopes: Tensor, lam: Params) -> Params:
    """Derivatives along the unit directions [n] as a gradient in lam's names and shapes."""
    parts = torch.split(slopes, [v.numel() for v in lam.values()])
    return {k: part.reshape(v.shape) for (k, v), part in zip(lam.items(), parts, strict=True)}


@functools.cache
def load_forward_mode() -> None:
    """torch compiles rules of forward mode when it is first used, and warns of its own doing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script. is deprecated", FutureWarning)
        warnings.filterwarnings(
            "ignore", r".*torch\.jit\.script. is deprecated", DeprecationWarning
        )
        zero = torch.zeros((), dtype=torch.float32)
        torch.func.jvp(torch.sin, (zero,), (zero,))


def unit_directions(lam: Params) -> Params:
    """Unit vectors, stacked: name -> [n, *shape] with n the number of scalars in lam."""
    sizes = [v.numel() for v in lam.values()]
    return {
        k: torch.eye(sum(sizes), dtype=v.dtype, device=v.device)[:, before : before + size].reshape(
            -1, *v.shape
        )
        for (k, v), size, before in zip(
            lam.items(), sizes, (sum(sizes[:i]) for i in range(len(sizes))), strict=True
        )
    }


def choose(path: Path, lam: Params, steps: int, budget: float) -> Checkpointing:
    """The fastest mode whose estimated peak fits ``budget`` bytes, all episodes of a step together.

    The estimate comes from one inner step, taken once a run and counted; it does not depend on how
    many threads or batches the episodes are spread over.
    """
    notes = path.ctx.notes
    if "unroll_bytes" not in notes:
        if autodiff.is_functional():
            return "graph"
        notes["unroll_bytes"] = measure(path, lam)
    shared, step, point = (notes["unroll_bytes"][k] for k in ("shared", "step", "point"))
    share = budget / path.ctx.problem.episodes_per_step
    if shared + steps * step <= share:
        return "graph"
    return "states" if steps * point + shared + step <= share else "checkpoints"


def measure(path: Path, lam: Params) -> dict[str, int]:
    """Bytes: what the graphs of the shared part and of one inner step keep, and one iterate."""
    lam = autodiff.leaf(lam)
    iterate: Iterate = tree_map(lambda x: x.detach().requires_grad_(), path.begin(lam))
    given = [*tree_flatten((iterate, lam))[0], *path.episode.batch(0).values()]
    there = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ready = path.prepared(lam)
        shared = sum(kept.values())
        after = ready.go(iterate, lam, 0, create_graph=True)
    return {
        "shared": shared,
        "step": sum(kept.values()) - shared,
        "point": sum(x.numel() * x.element_size() for x in tree_flatten(after)[0]),
    }


@dataclass(frozen=True)
class Unrolling(GradientMethod):
    """Settings of the methods that differentiate through inner iterations in reverse."""

    memory: Checkpointing = "auto"
    """How iterations are remembered: the same numbers, faster ("graph") or smaller."""
    memory_budget_gb: Positive = 4.0
    """What "auto" may use for the episodes of one outer step."""

    def differentiated_steps(self) -> int:
        """Inner steps that the hypergradient goes back through."""
        return self.inner_steps

    def choose_memory_mode(self, ctx: Context, state: State, episode: Episode) -> None:
        """Measure a step before episodes run side by side, so that all choose alike."""
        steps = self.differentiated_steps()
        if self.memory == "auto" and steps > 1:
            path = Path(ctx, state.theta, episode, self.rate, self.only(ctx))
            choose(path, state.outer, steps, self.memory_budget_gb * 1e9)
