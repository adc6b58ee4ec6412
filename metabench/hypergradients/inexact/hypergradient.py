"""Hypergradients from inner and linear solves that are only as accurate as asked.

    |grad_theta G| <= norm ,  |H q - grad_theta F| <= delta ,
    p = grad_lam F - (d2 G / dlam dtheta) q

at (lam, theta), both solves from where the last ones ended. Methods work on all training episodes
of a step, the same ones at every step (the capability ``full_batch``): values and hypergradients
are means over them. HOAG and MAID differ in how accurate they ask solves to be, which is a
component, :class:`Accuracy`; what an inexact hypergradient is sure of is in
:mod:`metabench.hypergradients.inexact.certificates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.declared import Moduli
from metabench.contract.method import Context, Hypergradient, Method, State, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver
from metabench.hypergradients import implicit
from metabench.hypergradients.inexact.inner_solve import InnerSolution, Rule, to_accuracy

Schedule = Literal["constant", "exponential", "quadratic", "cubic", "exact"]

FLOOR = 1e-12
"""The smallest accuracy of a schedule."""

MISSED = "inner_accuracy_first_missed_at_outer_step"
"""A note that a record keeps."""


@dataclass(frozen=True)
class Accuracy:
    """An accuracy controller: the eps of outer step k, and what failures and successes do to it.

    ``schedule``, for k = 1, 2, ...: first, first * 0.9^(k-1), first / k^2, first / k^3, or 1e-12
    throughout. HOAG's controllers shrink by 1/2 after a rejected step; MAID's is constant, shrinks
    after a failure and grows after a success; a fixed accuracy is constant and does neither.
    """

    first: float
    schedule: Schedule = "constant"
    shrink: float = 1.0
    grow: float = 1.0

    def at(self, k: int, factor: float = 1.0) -> float:
        """eps of step k from 1; ``factor``: the product of ``shrink`` and ``grow`` so far."""
        eps = {
            "constant": self.first,
            "exponential": self.first * 0.9 ** (k - 1),
            "quadratic": self.first / k**2,
            "cubic": self.first / k**3,
            "exact": FLOOR,
        }[self.schedule]
        return max(eps, FLOOR) * factor


class Answer(NamedTuple):
    """What one inner problem says at lam; nothing has a graph.

    ``value`` F; ``p`` the hypergradient; ``q`` [n] H^-1 grad_theta F; ``slope`` |grad_theta F|;
    ``residual`` |H q - grad_theta F|; ``found``: where the inner solve ended.
    """

    value: float
    p: Params
    q: Tensor
    slope: float
    residual: float
    found: InnerSolution

    @property
    def warm(self) -> dict[str, Any]:
        """What the next solves at a lam nearby start from."""
        return {"theta": self.found.theta, "q": self.q}


@dataclass(frozen=True)
class InexactMethod(Method):
    """What HOAG and MAID share: solves from warm starts, kept by episode in ``State.memory``.

    ``memory["warm"]``: for every episode of a step "theta" and, after the first, "q".
    """

    solver_rule: Rule = "lbfgs"
    most_gradients: Steps = 10_000
    """Inner gradients of one inner solve at most."""
    most_products: Steps = 1_000
    """Hessian products of one linear solve at most."""

    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """Strongly convex inner problems that depend on lam, the same at every step."""
        return GRADIENTS | {"lam_in_inner_loss", "full_batch", "strongly_convex"}

    def refuses(self, solver: Solver) -> str | None:
        """Inner solves are by ``solver_rule``, whatever the cell's solver is."""
        if solver.registered_name == self.default_solver:
            return None
        mine, other = self.registered_name, solver.registered_name
        return f"{mine} solves the inner problem by solver_rule, not by {other}"

    def answer_at(self, ctx: Context, state: State, episode: Episode) -> Answer:
        """What an episode says at the state's lam, as accurately as the state asks for."""
        raise NotImplementedError

    def hypergradient_from(self, ctx: Context, state: State, episode: Episode) -> Hypergradient:
        """:meth:`answer_at`, as methods with the shared outer loop give it."""
        found = self.answer_at(ctx, state, episode)
        return Hypergradient(torch.tensor(found.value), found.p, found.found.theta)

    def hypergradient(
        self, ctx: Context, lam: Params, theta: Params | None, episode: Episode
    ) -> Hypergradient:
        """The same at lam, from the accuracy and the theta that a run begins with."""
        return self.hypergradient_from(ctx, replace(self.init(ctx), lam=lam), episode)

    def solve(
        self,
        ctx: Context,
        lam: Params,
        theta: Params,
        episode: Episode,
        norm: float,
        moduli: Moduli | None = None,
    ) -> InnerSolution:
        """An inner problem from theta to a gradient of ``norm``; a miss is noted. ``moduli``: as
        :func:`metabench.hypergradients.inexact.inner_solve.to_accuracy` takes them."""
        found = to_accuracy(
            ctx, lam, theta, episode, norm=norm, rule=self.solver_rule,
            limit=self.most_gradients, moduli=moduli,
        )  # fmt: skip
        if not found.reached:
            ctx.notes.setdefault(MISSED, ctx.step)
        return found

    def answer(
        self,
        ctx: Context,
        lam: Params,
        episode: Episode,
        warm: dict[str, Any],
        *,
        norm: float,
        relative: Callable[[float], float],
        moduli: Moduli | None = None,
    ) -> Answer:
        """Solve to a gradient of ``norm``, then the linear system to ``relative`` (of
        |grad_theta F|) times its right side, both from ``warm``. Raises Distrusted, Diverged."""
        found = self.solve(ctx, lam, warm["theta"], episode, norm, moduli)
        lam, ready = implicit.prepared(ctx, lam, episode)
        at = implicit.linearise(ctx, lam, found.theta, episode, ready, batch=0)
        slope = float(torch.linalg.vector_norm(at.v))
        q, diagnostics = implicit.conjugate_gradient(
            at.product, at.v, terms=self.most_products, tolerance=relative(slope),
            start=warm.get("q"), check_every=1,
        )  # fmt: skip
        told = {name: float(v) for name, v in diagnostics.items()}
        implicit.check_solution(ctx, told)
        p = autodiff.detach(autodiff.axpy(-1.0, at.mixed(q), at.direct))
        return Answer(float(at.value), p, q, slope, told["residual"] * slope, found)


def begin(ctx: Context, lam: Params) -> list[dict[str, Any]]:
    """``memory["warm"]`` before the first step: every episode's own start."""
    episodes = ctx.training_episodes()
    return [{"theta": autodiff.detach(ctx.problem.init_inner(lam, e))} for e in episodes]


def of_episodes(ctx: Context, f: Callable[[Episode, int], Any]) -> list[Any]:
    """f of every training episode of the step and its place among them."""
    m = ctx.problem.episodes_per_step
    return ctx.over_episodes(lambda e: f(e, e.index % m), ctx.training_episodes())


def start_for(ctx: Context, state: State, episode: Episode) -> Params:
    """Where a solve for an evaluation episode starts: at the one inner problem's last solution;
    where there are several, at the episode's own start, which may be of other data."""
    warm = state.memory["warm"]
    if len(warm) == 1:
        theta: Params = warm[0]["theta"]
        return theta
    return autodiff.detach(ctx.problem.init_inner(state.lam, episode))


def point(lam: Params, answers: Sequence[Answer]) -> dict[str, Any]:
    """The mean of what the episodes say at lam, and where their solves ended; plain data."""
    value = math.fsum(a.value for a in answers) / len(answers)
    p = autodiff.mean(a.p for a in answers)
    lam = autodiff.detach(lam)
    return {"lam": lam, "p": p, "value": value, "warm": [a.warm for a in answers]}


def first_smooth(size: float, lam: Params) -> float:
    """1 / the first step size, from the norm of the first hypergradient: the author's of HOAG."""
    scalars = sum(v.numel() for v in lam.values())
    return size / math.sqrt(scalars) if size > 1e-3 else 1.0
