"""Gradient-free search on a small lam: points are trained in full, or in segments, and judged.

A step judges a round of points on the same episodes, data order and noise, so that what differs is
lam alone (common random numbers); the next step has others. The answer of a search is by means over
all evaluations of a lam, wherever one is judged again: the best single noisy value names a lam that
was lucky.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.method import InnerTraining, State, Steps, inner_loop
from metabench.contract.problem import Episode, Hyper, Params
from metabench.contract.solver import SolverState
from metabench.core.limits import LARGEST

ARMS = "arms"
"""In a search's memory: of each different lam {"lam", "total", "count", "theta"}."""
REGRET = "regret"
"""In a search's memory, where the problem knows regret (:meth:`Problem.regret`): its sum over all
that was judged, and how much that is, {"total", "count"}."""


Paused = list[dict[str, Any]]
"""Where the training of each episode stands: {"theta", "solver"}, the solver's state; None in its
place starts the solver anew. Plain tensors, for ``State.memory``."""


class Judged(NamedTuple):
    """A point of the unit cube, its lam, the loss (infinite where training ran away), and where
    its training has ended."""

    point: Sequence[float]
    lam: Params
    loss: float
    end: Paused

    def theta(self, ctx: Context) -> Params | None:
        """The trained theta, where the problem carries one."""
        theta: Params | None = self.end[-1]["theta"] if ctx.problem.carried else None
        return theta


@dataclass(frozen=True)
class Search(InnerTraining):
    """The loop of every method that only answers "which points next?".

    A subclass gives :meth:`ask` or :meth:`ask_round`, and :meth:`tell` or :meth:`tell_round` where
    it learns from what came out. Each point is trained from scratch on the step's episodes and is
    charged for it.
    """

    inner_steps: Steps = 100

    by_examples: ClassVar[bool] = True
    revisits: ClassVar[bool] = False
    """Whether a point of continuous scalars may be judged again; one of categories always may."""

    @property
    def needs(self) -> frozenset[str]:
        """Bounds to search in, and few scalars."""
        return frozenset({"search_space", "small_lam"})

    def ask(self, ctx: Context, state: State, kinds: Sequence[int]) -> Sequence[float]:
        """A point of the unit cube, one entry a scalar of lam; ``kinds`` has for each the number of
        its categories, 0 for a continuous one."""
        raise NotImplementedError

    def tell(self, state: State, point: Sequence[float], loss: float) -> dict[str, Any]:
        """The method's memory once a point is judged; ``loss`` is infinite where it diverged."""
        return state.memory

    def ask_round(
        self, ctx: Context, state: State, kinds: Sequence[int]
    ) -> Sequence[Sequence[float]]:
        """The points of a round, as :meth:`ask`."""
        return [self.ask(ctx, state, kinds)]

    def tell_round(self, ctx: Context, state: State, found: Sequence[Judged]) -> dict[str, Any]:
        """The method's memory once a round is judged."""
        memory = state.memory
        for one in found:
            memory = self.tell(replace(state, memory=memory), one.point, one.loss)
        return memory

    def start(self, state: State) -> Paused | None:
        """Where the trainings of a round start; None: from scratch."""
        return None

    def init(self, ctx: Context) -> State:
        """The first lam, not yet judged."""
        lam = ctx.problem.init_outer()
        return State(lam, self.first_theta(ctx, lam), {"best": math.inf})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Ask for a round, train each of its points from scratch, answer with the best so far."""
        like, hypers = ctx.problem.init_outer(), ctx.problem.hypers
        episodes, start = ctx.training_episodes(), self.start(state)
        points = self.ask_round(ctx, state, kinds(hypers, like))
        found = [self.judged(ctx, point, episodes, paused=start) for point in points]
        memory = self.tell_round(ctx, state, found)
        log = losses_log(found)
        if memory is not state.memory:
            state = replace(state, memory=memory)
        if self.keeps_account(ctx):
            state, account = self.entered(ctx, state, found)
            log |= account
        return self.recommend(ctx, regretted(ctx, state, found, episodes), found), log

    def keeps_account(self, ctx: Context) -> bool:
        """Whether the memory has every lam with all its values: one may be judged again."""
        return self.revisits or all(kinds(ctx.problem.hypers, ctx.problem.init_outer()))

    def entered(
        self, ctx: Context, state: State, found: Sequence[Judged]
    ) -> tuple[State, dict[str, float]]:
        """The state with a round in its account of arms, and ``cumulative_loss``: the sum of all
        that was ever judged, from which regret follows."""
        return entered(ctx, state, found)

    def judged(
        self,
        ctx: Context,
        point: Sequence[float],
        episodes: Sequence[Episode],
        *,
        steps: int | None = None,
        done: int = 0,
        paused: Paused | None = None,
    ) -> Judged:
        """A point trained to ``steps`` inner steps in all (None: ``inner_steps``), as
        :func:`train` does."""
        lam = self.lam(ctx, point)
        steps = self.inner_steps if steps is None else steps
        loss, end = train(
            ctx, lam, episodes, steps=steps, lr=self.inner_lr, done=done, paused=paused
        )
        return Judged(point, lam, loss, end)

    def lam(self, ctx: Context, point: Sequence[float]) -> Params:
        """lam at a point of the unit cube, within its constraints."""
        return ctx.problem.project(place(point, ctx.problem.hypers, ctx.problem.init_outer()))

    def recommend(self, ctx: Context, state: State, found: Sequence[Judged]) -> State:
        """The state with the lam that the search answers with, ``found`` being the last round: the
        least mean over its evaluations; where none is judged again, the least loss."""
        if ARMS in state.memory:
            means = [arm["total"] / arm["count"] for arm in state.memory[ARMS]]
            best = min(means)
            if not best < math.inf:
                return state
            arm = state.memory[ARMS][means.index(best)]
            return State(arm["lam"], arm["theta"], {**state.memory, "best": best})
        for one in found:
            if one.loss < state.memory["best"]:
                state = State(one.lam, one.theta(ctx), {**state.memory, "best": one.loss})
        return state

    def ranking(self, ctx: Context, state: State) -> Sequence[Params]:
        """Every lam that was judged, the least mean first; of equals the one judged first."""
        arms = sorted(state.memory.get(ARMS, []), key=lambda arm: arm["total"] / arm["count"])
        return [arm["lam"] for arm in arms]

    def report(self, ctx: Context, state: State) -> dict[str, float]:
        """The sum and the mean of regret so far, and what the problem says of the ranking; nothing
        where it knows no regret."""
        if REGRET not in state.memory:
            return {}
        total, count = state.memory[REGRET]["total"], state.memory[REGRET]["count"]
        own = {"cumulative_regret": total, "mean_regret": total / count}
        return own | ctx.problem.ranking_metrics(self.ranking(ctx, state))


def regretted(
    ctx: Context, state: State, found: Sequence[Judged], episodes: Sequence[Episode]
) -> State:
    """The state with the regret of a round, where the problem knows it."""
    each = [ctx.problem.regret(one.lam, e) for one in found for e in episodes]
    known = [x for x in each if x is not None]
    if not known:
        return state
    old = state.memory.get(REGRET, {"total": 0.0, "count": 0})
    new = {
        "total": old["total"] + math.fsum(known) / len(episodes),
        "count": old["count"] + len(found),
    }
    return replace(state, memory={**state.memory, REGRET: new})


def losses_log(found: Sequence[Judged]) -> dict[str, float]:
    """What a learning curve is told of a round: the mean loss of what has not run away, and of
    several the least."""
    losses = [one.loss for one in found if one.loss < math.inf]
    if not losses:
        return {}
    log = {"outer_loss": sum(losses) / len(losses)}
    return log if len(found) == 1 else {**log, "least_loss": min(losses)}


def entered(ctx: Context, state: State, found: Sequence[Judged]) -> tuple[State, dict[str, float]]:
    """The state with a round in the account of its arms, and ``cumulative_loss``: the sum of all
    that was ever judged, from which regret follows."""
    arms = list(state.memory.get(ARMS, []))
    for one in found:
        same = (i for i, arm in enumerate(arms) if _equal(arm["lam"], one.lam))
        at = next(same, None)
        old = {"total": 0.0, "count": 0} if at is None else arms[at]
        arm: dict[str, Any] = {"lam": one.lam, "theta": one.theta(ctx)}
        arm |= {"total": old["total"] + one.loss, "count": old["count"] + 1}
        if at is None:
            arms.append(arm)
        else:
            arms[at] = arm
    total = sum(arm["total"] for arm in arms)
    log = {"cumulative_loss": total} if total < math.inf else {}
    return replace(state, memory={**state.memory, ARMS: arms}), log


def _equal(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def train(
    ctx: Context,
    lam: Params,
    episodes: Sequence[Episode],
    *,
    steps: int,
    lr: float,
    done: int = 0,
    paused: Paused | None = None,
) -> tuple[float, Paused]:
    """Mean outer loss after ``steps`` inner steps in all, and what to go on from, without a graph.

    ``paused`` is what a call with the same lam and episodes gave after ``done`` steps; None starts
    from scratch. Only the steps that are taken are charged, and a training where it starts. The
    loss is infinite where training ran away: it has been paid for.
    """
    before = {} if paused is None else {e.index: p for e, p in zip(episodes, paused, strict=True)}

    def trained(episode: Episode) -> tuple[torch.Tensor, Params, SolverState]:
        if paused is None:
            theta, solver = autodiff.detach(ctx.problem.init_inner(lam, episode)), None
            ctx.meter.add(trainings=1)
        else:
            theta, solver = before[episode.index]["theta"], before[episode.index]["solver"]
        end, solver = inner_loop(
            ctx, lam, theta, episode, steps=steps - done, lr=lr, start=done, solver_state=solver
        )
        value = ctx.outer_value(lam, end, episode.outer)
        return value, autodiff.detach(end), autodiff.detach_tree(solver)

    found = ctx.over_episodes(trained, episodes, steps=steps)
    loss = sum(float(value) for value, _, _ in found) / len(found)
    end = [{"theta": theta, "solver": solver} for _, theta, solver in found]
    return loss if abs(loss) < LARGEST else math.inf, end


def kinds(hypers: Sequence[Hyper], like: Params) -> list[int]:
    """Number of categories of each scalar that ``hypers`` name, 0 for a continuous one."""
    return [len(h.choices) for h in hypers for _ in range(like[h.name].numel())]


def place(u: Sequence[float], hypers: Sequence[Hyper], like: Params) -> Params:
    """A point of the unit cube as lam, by each part's bounds and scale; what ``hypers`` do not name
    stays as in ``like``, and so does a part whose condition (``only_if``) does not hold.

    Raises ValueError for a part that has neither choices nor both bounds.
    """
    out, at = dict(like), 0
    for hyper in hypers:
        value = like[hyper.name]
        part = torch.tensor(
            list(u[at : at + value.numel()]), dtype=value.dtype, device=value.device
        )
        at += value.numel()
        if hyper.choices:
            part = (part * len(hyper.choices)).floor().clamp(max=len(hyper.choices) - 1)
        else:
            low, high = (math.log(x) if hyper.log else x for x in bounds(hyper))
            part = low + part * (high - low)
            part = part.exp() if hyper.log else part
        out[hyper.name] = part.reshape(value.shape)
    idle = [h.name for h in hypers if not counts(h, hypers, out)]
    return out | {name: like[name] for name in idle}


def point_of(lam: Params, hypers: Sequence[Hyper]) -> tuple[float, ...]:
    """Where lam is in the unit cube, the inverse of :func:`place` but for rounding: a category is
    its middle in the unit interval, and what is beyond a bound is on it. Raises as that does."""
    out: list[float] = []
    for hyper in hypers:
        values = lam[hyper.name].reshape(-1).tolist()
        if hyper.choices:
            out += [(int(v) + 0.5) / len(hyper.choices) for v in values]
            continue
        low, high = bounds(hyper)
        inside = [min(max(v, low), high) for v in values]
        if hyper.log:
            low, high, inside = math.log(low), math.log(high), [math.log(v) for v in inside]
        out += [(v - low) / (high - low) for v in inside]
    return tuple(out)


def bounds(hyper: Hyper) -> tuple[float, float]:
    """Of a part of lam without choices. Raises ValueError for one that lacks a bound."""
    if hyper.low is None or hyper.high is None:
        raise ValueError(f"lam's part {hyper.name!r} has no bounds to search between")
    return hyper.low, hyper.high


def counts(hyper: Hyper, hypers: Sequence[Hyper], lam: Params) -> bool:
    """Whether a part of lam counts at lam: always, or by its condition (:attr:`Hyper.only_if`).

    Raises ValueError where the condition names no scalar part with these choices.
    """
    if hyper.only_if is None:
        return True
    name, wanted = hyper.only_if
    other = next((h for h in hypers if h.name == name), None)
    if other is None or not set(wanted) <= set(other.choices) or lam[name].numel() != 1:
        raise ValueError(f"{hyper.name!r} counts only if {name!r} is one of {wanted}: no such part")
    return counts(other, hypers, lam) and other.choices[int(lam[name])] in wanted


def counted(point: Sequence[float], hypers: Sequence[Hyper], like: Params) -> list[bool]:
    """Of each scalar that ``hypers`` name, whether it counts at a point of the unit cube."""
    lam = place(point, hypers, like)
    return [counts(h, hypers, lam) for h in hypers for _ in range(like[h.name].numel())]
