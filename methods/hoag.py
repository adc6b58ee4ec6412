"""HOAG: hypergradients from inner and linear solves that are only as accurate as they need be.

Pedregosa: Hyperparameter Optimization with Approximate Gradient, ICML 2016, arXiv 1602.02355; the
step rule and the constants are those of the author's code (fabianp/hoag). Differs from that code:
a rejected step goes back to where it came from, as the paper says; lam moves once an outer step
(``double_step``: twice, as in the code) and never leaves its bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metabench.contract import autodiff
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, Method, Positive, State, Steps
from metabench.contract.problem import GRADIENTS, Episode, Params
from metabench.contract.solver import Solver
from metabench.core.registry import method
from metabench.hypergradients import implicit
from metabench.hypergradients.inner_solve import InnerSolution, Rule, to_accuracy

Verdict = Literal["success", "accept", "reject"]

FLOOR = 1e-12
"""The smallest tolerance of a schedule."""

REJECT = 1.2
"""A step that makes the outer loss this many times larger is taken back."""


@method("hoag")
@dataclass(frozen=True)
class HOAG(Method):
    """HOAG (Pedregosa 2016): implicit differentiation with tolerances that decrease."""

    schedule: Literal["exponential", "quadratic", "cubic", "exact"] = "exponential"
    """The tolerance eps_k of outer step k = 1, 2, ...: first * 0.9^(k-1), first / k^2,
    first / k^3, or 1e-12 throughout."""
    first_tolerance: Positive = 1e-3
    """eps_1, of the inner gradient's first norm and of the linear system's right side."""
    solver_rule: Rule = "lbfgs"
    step_rule: Literal["adaptive", "fixed"] = "adaptive"
    """"fixed": every step has size 1 / L with the first L."""
    smooth: Positive | None = None
    """The first L; None: |p| / sqrt(number of lam's scalars) of the first hypergradient p."""
    double_step: bool = False
    """Move lam twice by the same p / L, as the author's code does."""
    most_gradients: Steps = 10_000
    """Inner gradients of one inner solve at most."""
    most_products: Steps = 1_000
    """Hessian products of one linear solve at most."""

    exact_with: ClassVar[dict[str, Any]] = {"schedule": "exact"}
    batched: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """One strongly convex inner problem that depends on lam."""
        return GRADIENTS | {"lam_in_inner_loss", "best_response", "full_batch", "strongly_convex"}

    def refuses(self, solver: Solver) -> str | None:
        """Inner solves are L-BFGS or FISTA, whatever the cell's solver is."""
        if solver.registered_name == self.default_solver:
            return None
        return f"hoag solves the inner problem by solver_rule, not by {solver.registered_name}"

    def tolerance(self, k: int) -> float:
        """eps_k of the schedule, k from 1."""
        first = self.first_tolerance
        eps = {
            "exponential": first * 0.9 ** (k - 1),
            "quadratic": first / k**2,
            "cubic": first / k**3,
            "exact": FLOOR,
        }[self.schedule]
        return max(eps, FLOOR)

    def init(self, ctx: Context) -> State:
        """lam, theta where its first solve starts, and the norm that tolerances are relative to."""
        lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
        theta = autodiff.detach(ctx.problem.init_inner(lam, episode))
        g = ctx.inner_grad(lam, theta, episode.batch(0), create_graph=False)
        memory = {"norm": float(autodiff.norm(g)), "theta": theta, "halvings": 0}
        return State(lam, theta if ctx.problem.carried else None, memory)

    def solve(self, ctx: Context, state: State, episode: Episode, eps: float) -> InnerSolution:
        """The inner problem at the state's lam to a gradient of eps times its first norm; where
        the problem has moduli, times mu at lam over mu at the first lam."""
        norm = eps * state.memory["norm"]
        first, now = (ctx.problem.moduli(x) for x in (ctx.problem.init_outer(), state.lam))
        if first is not None and now is not None:
            norm *= now.mu / first.mu
        return to_accuracy(
            ctx, state.lam, state.memory["theta"], episode,
            norm=norm, rule=self.solver_rule, limit=self.most_gradients,
        )  # fmt: skip

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Solve, differentiate, judge the last step, move or go back."""
        memory = dict(state.memory)
        eps = self.tolerance(ctx.step + 1) / 2 ** memory["halvings"]
        here, steps = self.differentiate(ctx, state, eps)
        size = check_hypergradient(here["p"], ctx.step, lambda: True)
        log = {"outer_loss": here["value"], "hypergradient_norm": size, "tolerance": eps}
        log["inner_solve_gradients"] = float(steps)
        smooth = memory.get("smooth") or self.first_smooth(size, state.lam)
        before, step = memory.get("accepted"), 1 / smooth
        if before is not None and self.step_rule == "adaptive":
            verdict = judge_step(here, before, size / smooth, smooth)
            if verdict == "success":
                smooth *= 0.95
            elif verdict == "reject":
                here, smooth, step = before, 2 * smooth, step / 2
                memory["halvings"] += 1
        lam: Params = here["lam"]
        for _ in range(2 if self.double_step else 1):
            lam = ctx.problem.project(autodiff.axpy(-step, here["p"], lam))
        memory |= {"theta": here["theta"], "smooth": smooth, "accepted": here}
        return State(lam, here["theta"] if ctx.problem.carried else None, memory), log

    def differentiate(self, ctx: Context, state: State, eps: float) -> tuple[dict[str, Any], int]:
        """What is found at the state's lam with tolerance eps: theta, q = H^-1 grad_theta F, the
        hypergradient p, the outer loss; and the inner gradients of the solve."""
        episode = ctx.problem.episode("train", 0)
        found = self.solve(ctx, state, episode, eps)
        if not found.reached:
            ctx.notes.setdefault("inner_accuracy_first_missed_at_outer_step", ctx.step)
        lam, ready = implicit.prepared(ctx, state.lam, episode)
        at = implicit.linearise(ctx, lam, found.theta, episode, ready, batch=0)
        before = state.memory.get("accepted")
        q, diagnostics = implicit.conjugate_gradient(
            at.product, at.v, terms=self.most_products, tolerance=eps,
            start=None if before is None else before["q"], check_every=1,
        )  # fmt: skip
        implicit.check_solution(ctx, {name: float(v) for name, v in diagnostics.items()})
        p = autodiff.detach(autodiff.axpy(-1.0, at.mixed(q), at.direct))
        here = {"lam": autodiff.detach(lam), "theta": found.theta, "q": q, "p": p}
        return {**here, "value": float(at.value), "eps": eps}, found.steps

    def first_smooth(self, size: float, lam: Params) -> float:
        """The first L, from the size of the first hypergradient."""
        if self.smooth is not None:
            return self.smooth
        scalars = sum(v.numel() for v in lam.values())
        return size / math.sqrt(scalars) if size > 1e-3 else 1.0

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta solved at the state's lam to a tenth of the first tolerance or better."""
        eps = min(self.first_tolerance / 10, self.tolerance(ctx.step + 1))
        return self.solve(ctx, state, episode, eps).theta


def judge_step(here: dict[str, Any], before: dict[str, Any], move: float, smooth: float) -> Verdict:
    """What the author's code says of the step between two points, each with its outer loss
    ``value`` and its tolerance ``eps``; ``move`` is |p| / L. C = 0.25, M = 1."""
    c, m = 0.25, 1.0
    allowed = before["value"] + c * here["eps"]
    allowed += before["eps"] * (c + m) * move - m * smooth * move**2
    if here["value"] <= allowed:
        return "success"
    return "reject" if here["value"] >= REJECT * before["value"] else "accept"
