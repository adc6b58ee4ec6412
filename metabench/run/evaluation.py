"""From a state to numbers: adapted on held-out episodes, each metric with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from metabench.contract import autodiff
from metabench.contract.context import Context, Each
from metabench.contract.guards import check_like, name_of
from metabench.contract.method import State, inner_loop, split
from metabench.contract.problem import Episode, Params, Problem
from metabench.contract.solver import Solver
from metabench.core import settings
from metabench.core.cell import Budget
from metabench.core.errors import Diverged
from metabench.core.limits import LARGEST
from metabench.core.readouts import by_steps
from metabench.core.registry import solvers
from metabench.store.record import Estimate

PART = 32
"""Episodes between two looks at the clock and at whether to stop."""

DRAWN_BYTES = 128_000_000
"""So much in inner batches, which vmap needs drawn ahead where every step has its own."""

Metrics = dict[str, Estimate]


def evaluate(
    ctx: Context,
    method: Any,
    state: State,
    split: str,
    episodes: int,
    check: Callable[[], None] = lambda: None,
    *,
    charged: bool = False,
) -> Metrics:
    """Every metric of ``state`` on episodes 0 to n - 1 of a split; n is ``episodes``, or fewer
    where the split has fewer. What the method reports of the state stands with them, as of one
    episode. Nothing is counted as cost unless ``charged``: then what adapting to each episode
    takes, and a function evaluation for its metrics.

    ``check`` is called now and then and may raise. Raises Diverged where a metric is not finite, or
    so large that there can be no interval.
    """
    there = ctx.problem.count(split)
    n = episodes if there is None else min(episodes, there)
    values: dict[str, list[float]] = {}
    size = at_once(ctx, method, state, split)
    part = size * max(-(-PART // size), ctx.workers * ctx.group.world)
    with nullcontext() if charged else ctx.uncounted():
        for start in range(0, n, part):
            check()
            some = ctx.problem.episodes(split, range(start, min(start + part, n)))
            for metrics in _adapted(ctx, method, state, some, size):
                for name, value in metrics.items():
                    values.setdefault(name, []).append(float(value))
    with ctx.uncounted():
        for name, value in method.report(ctx, state).items():
            values[name] = [float(value)]
    for name, found in values.items():
        bad = next((i for i, v in enumerate(found) if not abs(v) <= LARGEST), None)
        if bad is not None:
            raise Diverged(f"{name} on episode {bad} of {split!r} is {found[bad]:.3g}")
    return {name: estimate(found) for name, found in values.items()}


def at_once(ctx: Context, method: Any, state: State, split: str) -> int:
    """How many episodes of a split are adapted by one vmap: as many as the context says, where the
    method can and memory allows."""
    steps = _steps(method)
    if state.theta is not None or steps is None or not method.adapts_batched:
        return 1
    if ctx.solver.by_examples:
        return 1
    most = ctx.adapted_at_once
    if most is None:
        most = ctx.chunk or ctx.problem.episodes_per_step if ctx.engine == "vmap" else 1
    if most > 1 and steps > 1:
        first = ctx.problem.episode(split, 0)
        if callable(first.inner):
            drawn = steps * sum(x.nbytes for x in first.batch(0).values())
            most = max(1, min(most, DRAWN_BYTES // drawn))
    return most


def _steps(method: Any) -> int | None:
    steps: int | None = method.inner_steps if method.test_steps is None else method.test_steps
    return steps


def _adapted(
    ctx: Context, method: Any, state: State, episodes: Sequence[Episode], size: int
) -> list[dict[str, float]]:
    def judge(theta: dict[str, torch.Tensor], episode: Episode) -> dict[str, float]:
        ctx.meter.add(function_evaluations=1)
        with torch.no_grad():
            if episode.index == 0:
                like = ctx.problem.init_inner(state.lam, episode)
                check_like(f"what adapt of {name_of(method)} gives", theta, like)
            return ctx.problem.metrics(state.lam, theta, episode)

    def adapt(episode: Episode) -> Params:
        theta: Params = method.adapt(ctx, state, episode)
        return theta

    def judged(some: Sequence[Episode]) -> list[dict[str, float]]:
        if len(some) == 1:
            return [judge(adapt(some[0]), some[0])]
        if replays:
            thetas = _replayed(ctx, method, state, some)
        else:
            thetas = ctx.at_once(adapt, some, steps=max(1, _steps(method) or 0))
        return [judge(theta, e) for theta, e in zip(thetas, some, strict=True)]

    replays, engine = ctx.replays(method), ctx.engine
    ctx.engine = "loop"
    try:
        found: list[dict[str, float]] = ctx.in_chunks(judged, episodes, size)
        return found
    finally:
        ctx.engine = engine


def _replayed(ctx: Context, method: Any, state: State, episodes: Sequence[Episode]) -> list[Params]:
    def whole(outer: Params, each: Each) -> Any:
        lam, learned = split(outer)
        at = replace(state, lam=lam, learned=learned)
        return each(lambda e: method.adapt(ctx, at, e))

    steps = max(1, _steps(method) or 0)
    out = ctx.replayed(("adapt", method), whole, state.outer, episodes, steps=steps)
    # The graph writes to its own tensors again for the next episodes.
    return [{k: v[i].clone() for k, v in out.items()} for i in range(len(episodes))]


@dataclass(frozen=True)
class Retrained:
    """A readout that is the same for every method: theta trained anew at the lam of a state, with
    the solver, step size and number of steps that the budget says.

    A carried theta starts where the run's first training episode does, and trains on it; otherwise
    every evaluation episode has a training of its own.
    """

    inner_steps: int
    lr: float
    solver: Solver
    test_steps: int | None = None
    capturable: ClassVar[bool] = False

    @property
    def adapts_batched(self) -> bool:
        """Not where its solver draws noise: that of the run's solver is drawn ahead."""
        return not (self.solver.noisy or self.solver.by_examples)

    @classmethod
    def of(cls, budget: Budget) -> Retrained | None:
        """What a budget says; None where it says nothing. Raises UnknownName."""
        if budget.retrain_steps is None or budget.retrain_lr is None:
            return None
        name = budget.retrain_solver or "sgd"
        return cls(
            budget.retrain_steps,
            budget.retrain_lr,
            settings.build(solvers.get(name), {}, f"budget.retrain_solver {name}"),
        )

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta for an evaluation episode."""
        problem, lam = ctx.problem, autodiff.detach(state.lam)
        start = problem.episode("train", 0) if problem.carried else episode
        theta, _ = inner_loop(
            replace(ctx, solver=self.solver),
            lam,
            autodiff.detach(problem.init_inner(lam, start)),
            problem.prepare_inner(lam, start),
            steps=self.inner_steps,
            lr=self.lr,
        )
        return autodiff.detach(theta)

    def report(self, ctx: Context, state: State) -> dict[str, float]:
        """Nothing: what a method reports of a state is not of this training."""
        return {}


def pictures(ctx: Context, method: Any, state: State) -> dict[str, np.ndarray[Any, Any]]:
    """What the problem shows of its first test episode, adapted, in bytes [h, w]; not counted as
    cost. Where the budget has ``test_after``, what is another then stands beside it
    ("fitted@5_steps"), unless it has run away. Where the adaptation has run away there are none,
    and a note says so: the run has been tested by then."""
    if type(ctx.problem).pictures is Problem.pictures:
        return {}
    episode = ctx.problem.episode(ctx.problem.evaluations[0], 0)

    def adapted(way: Any) -> Params:
        theta = way.adapt(ctx, state, episode)
        return ctx.problem.pictures(state.lam, theta, episode)

    with ctx.uncounted():
        try:
            shown = adapted(method)
        except Diverged as error:
            ctx.notes["pictures"] = str(error)
            return {}
        for end, way in by_steps(method, ctx.budget).items() if ctx.budget.test_after else ():
            try:
                then = adapted(way)
            except Diverged:  # as its evaluation, whose note says so
                continue
            for name, value in then.items():
                if bool(value.isfinite().all()) and not torch.equal(value, shown[name]):
                    shown = {**shown, name + end: value}
    bytes_of = {k: v.detach().cpu().clamp(0, 1).mul(255).round() for k, v in shown.items()}
    return {k: v.to(torch.uint8).numpy() for k, v in bytes_of.items()}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, n, deviation (n - 1) and half-width of the 95 % t-interval of values that are one
    number an episode."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, 1)
    from scipy.special import stdtrit

    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, n, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))


class Stopwatch:
    """Seconds spent inside, on the device too."""

    def __init__(self, device: torch.device, before: float = 0.0) -> None:
        self.device, self.seconds = device, before

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._since = self._now()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            now = self._now()
        except Exception:
            if error is None:
                raise
            now = time.perf_counter()  # the error on its way says why the device fails
        self.seconds += now - self._since
