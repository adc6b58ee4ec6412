"""HOAG: hypergradients from inner and linear solves that are only as accurate as they need be.

Pedregosa: Hyperparameter Optimization with Approximate Gradient, ICML 2016, arXiv 1602.02355; the
step rule and the constants are those of the author's code (fabianp/hoag). Differs from that code:
a rejected step goes back to where it came from, as the paper says; lam moves once an outer step
(``double_step``: twice, as in the code) and never leaves its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metabench.contract import autodiff
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, Positive, State
from metabench.contract.problem import Episode, Params
from metabench.core.registry import method
from metabench.hypergradients.inexact.hypergradient import (
    Accuracy,
    Answer,
    InexactMethod,
    begin,
    first_smooth,
    of_episodes,
    point,
    start_for,
)

Verdict = Literal["success", "accept", "reject"]

REJECT = 1.2
"""A step that makes the outer loss this many times larger is taken back."""


@method("hoag")
@dataclass(frozen=True)
class HOAG(InexactMethod):
    r"""HOAG (Pedregosa 2016): implicit differentiation with tolerances that decrease.

    Formula:
        \|\nabla_\theta G(\lambda_k, \theta_k)\| \le \varepsilon_k \|\nabla_\theta G(\lambda_1,
        \theta_0)\|, \qquad \|\nabla^2_{\theta\theta} G\, x_k - \nabla_\theta F\| \le
        \varepsilon_k \|\nabla_\theta F\|

        p_k = \nabla_\lambda F - \nabla^2_{\lambda\theta} G\, x_k, \qquad \lambda_{k+1} =
        \lambda_k - \tfrac{1}{L} p_k

    Loop:
        theta = minimise(G, lam, theta, tolerance)
        x = solve(d2G_dtheta2(lam, theta), dF_dtheta(lam, theta), tolerance)
        p = dF_dlam(lam, theta) - d2G_dlam_dtheta(lam, theta) @ x
        lam = lam - p / smooth  # adaptive: smooth falls after a success; a rejected step goes back
    """

    schedule: Literal["exponential", "quadratic", "cubic", "exact"] = "exponential"
    """The tolerance eps_k of outer step k = 1, 2, ...: first * 0.9^(k-1), first / k^2,
    first / k^3, or 1e-12 throughout."""
    first_tolerance: Positive = 1e-3
    """eps_1, of the inner gradient's first norm and of the linear system's right side."""
    step_rule: Literal["adaptive", "fixed"] = "adaptive"
    """"fixed": every step has size 1 / L with the first L."""
    smooth: Positive | None = None
    """The first L; None: |p| / sqrt(number of lam's scalars) of the first hypergradient p."""
    double_step: bool = False
    """Move lam twice by the same p / L, as the author's code does."""

    exact_with: ClassVar[dict[str, Any]] = {"schedule": "exact"}

    @property
    def accuracy(self) -> Accuracy:
        """The tolerance by outer step; half of it after each rejection."""
        return Accuracy(self.first_tolerance, self.schedule, shrink=0.5)

    def init(self, ctx: Context) -> State:
        """lam, where the first solves start, and the norms that tolerances are relative to."""
        lam = ctx.problem.init_outer()
        warm = begin(ctx, lam)

        def norm(episode: Episode, i: int) -> float:
            theta = warm[i]["theta"]
            g = ctx.inner_grad(lam, theta, episode.batch(0), create_graph=False)
            return float(autodiff.norm(g))

        memory = {"norms": of_episodes(ctx, norm), "warm": warm, "factor": 1.0}
        return State(lam, warm[0]["theta"] if ctx.problem.carried else None, memory)

    def norm(self, ctx: Context, state: State, episode: Episode, eps: float) -> float:
        """eps times the inner gradient's first norm; where the problem has moduli, times mu at the
        state's lam over mu at the first lam."""
        norms = state.memory["norms"]
        norm: float = eps * norms[episode.index % len(norms)]
        first, now = (ctx.problem.moduli(x) for x in (ctx.problem.init_outer(), state.lam))
        return norm if first is None or now is None else norm * (now.mu / first.mu)

    def answer_at(self, ctx: Context, state: State, episode: Episode) -> Answer:
        """What an episode says at the state's lam with the step's tolerance."""
        warm = state.memory["warm"]
        eps = self.accuracy.at(ctx.step + 1, state.memory["factor"])
        return self.answer(
            ctx, state.lam, episode, warm[episode.index % len(warm)],
            norm=self.norm(ctx, state, episode, eps), relative=lambda _: eps,
        )  # fmt: skip

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Solve, differentiate, judge the last step, move or go back."""
        memory = dict(state.memory)
        answers = of_episodes(ctx, lambda e, _: self.answer_at(ctx, state, e))
        eps = self.accuracy.at(ctx.step + 1, memory["factor"])
        here = {**point(state.lam, answers), "eps": eps}
        size = check_hypergradient(here["p"], ctx.step, lambda: True)
        log = {"outer_loss": here["value"], "hypergradient_norm": size, "tolerance": eps}
        log["inner_solve_gradients"] = float(sum(a.found.steps for a in answers))
        smooth = memory.get("smooth") or self.smooth or first_smooth(size, state.lam)
        before, step = memory.get("accepted"), 1 / smooth
        if before is not None and self.step_rule == "adaptive":
            verdict = judge_step(here, before, size / smooth, smooth)
            if verdict == "success":
                smooth *= 0.95
            elif verdict == "reject":
                here, smooth, step = before, 2 * smooth, step / 2
                memory["factor"] *= self.accuracy.shrink
        lam: Params = here["lam"]
        for _ in range(2 if self.double_step else 1):
            lam = ctx.problem.project(autodiff.axpy(-step, here["p"], lam))
        memory |= {"warm": here["warm"], "smooth": smooth, "accepted": here}
        theta = here["warm"][0]["theta"] if ctx.problem.carried else None
        return State(lam, theta, memory), log

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta solved at the state's lam to a tenth of the first tolerance or better."""
        eps = min(self.first_tolerance / 10, self.accuracy.at(ctx.step + 1))
        norm = self.norm(ctx, state, episode, eps)
        return self.solve(ctx, state.lam, start_for(ctx, state, episode), episode, norm).theta


def judge_step(here: dict[str, Any], before: dict[str, Any], move: float, smooth: float) -> Verdict:
    """What the author's code says of the step between two points, each with its outer loss
    ``value`` and its tolerance ``eps``; ``move`` is |p| / L. C = 0.25, M = 1."""
    c, m = 0.25, 1.0
    allowed = before["value"] + c * here["eps"]
    allowed += before["eps"] * (c + m) * move - m * smooth * move**2
    if here["value"] <= allowed:
        return "success"
    return "reject" if here["value"] >= REJECT * before["value"] else "accept"
