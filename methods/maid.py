"""MAID: inexact descent on lam that chooses its own accuracy, and proves that it descends.

Salehi, Mukherjee, Roberts, Ehrhardt: An Adaptively Inexact First-Order Method for Bilevel
Optimization with Application to Hyperparameter Learning, SIAM J. Math. Data Sci. 7(3), 2025, arXiv
2308.10098. With theta within eps of the minimiser, z the inexact hypergradient, omega its bound
(:mod:`metabench.hypergradients.inexact.certificates`) and g = F:

    descent test    omega <= (1 - eta) |z| , else eps, delta <- nu eps, nu delta
    line search     U(theta+) - D(theta) + decrease a |z|^2 <= 0 ,  a = alpha rho^i , with
                    U = g + |grad g| eps + L_g eps^2 / 2 ,  D = g - |grad g| eps - L_g eps^2 / 2
    success         alpha <- a / rho', eps, delta <- nu' eps, nu' delta
    failure         eps, delta <- nu eps, nu delta; one trial more

and U - D is L_g eps^2 / 2 less where F is convex. A step so accepted decreases the exact outer loss
by ``decrease`` a |z|^2 at least. Bounds and U, D are means over the episodes of a step.

Differs from the authors' code (MohammadSadeghSalehi/MAID): omega keeps L_g in its first term; both
sides of the line search are evaluated at the eps of now; FISTA has its momentum (there it is
always zero); the number of trials grows until a step succeeds, over outer steps too; bounds that a
problem does not give are estimated, and the record says so. lam moves to the nearest point within
its bounds, and a |z|^2 is then |lam - lam+|^2 / a.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from metabench.contract import autodiff
from metabench.contract.declared import Moduli
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Context, Positive, State, Steps
from metabench.contract.problem import Episode, Params
from metabench.core.registry import method
from metabench.hypergradients.inexact import moduli as bounds
from metabench.hypergradients.inexact.certificates import Certificate, certificate, enclosure, mean
from metabench.hypergradients.inexact.hypergradient import (
    FLOOR,
    Accuracy,
    Answer,
    InexactMethod,
    begin,
    first_smooth,
    of_episodes,
    point,
    start_for,
)
from metabench.hypergradients.inexact.inner_solve import InnerSolution, Rule

Part = Annotated[float, Field(gt=0, lt=1)]

ROUNDS = 3
"""Line searches of an outer step at most, each with a smaller eps and one trial more."""


class Here(NamedTuple):
    """What the episodes say at a lam: their mean
    (:func:`metabench.hypergradients.inexact.hypergradient.point`) with its certificate, the factor
    of the accuracies it took, and the inner gradients."""

    at: dict[str, Any]
    sure: Certificate
    factor: float
    steps: int


class Trial(NamedTuple):
    """A lam that the line search has accepted, with step size ``a``; where solves ended there."""

    lam: Params
    a: float
    thetas: list[Params]


@method("maid")
@dataclass(frozen=True)
class MAID(InexactMethod):
    r"""MAID (Salehi 2025): adaptive accuracies and steps, with a certificate of descent.

    Formula:
        \left\| z - \nabla \ell(\lambda) \right\| \le \omega, \qquad \omega \le (1 - \eta)\, \|z\|
        \quad \text{(or } \varepsilon, \delta \text{ shrink)}

        U(\lambda^+) - D(\lambda) + c\, a\, \|z\|^2 \le 0, \qquad
        U = F + \|\nabla_\theta F\|\, \varepsilon + \tfrac{L}{2} \varepsilon^2, \quad
        D = F - \|\nabla_\theta F\|\, \varepsilon - \tfrac{L}{2} \varepsilon^2

    Loop:
        z, omega = inexact_hypergradient(lam, eps, delta)
        while omega > (1 - eta) * norm(z):
            eps, delta = accuracy_cut * eps, accuracy_cut * delta
            z, omega = inexact_hypergradient(lam, eps, delta)
        for a in (step * backtrack**i for i in range(trials)):
            if upper(lam - a * z, eps) - lower(lam, eps) + decrease * a * norm(z) ** 2 <= 0:
                lam, step = lam - a * z, step_growth * a
                eps, delta = accuracy_growth * eps, accuracy_growth * delta
                break
        else:
            eps, delta, trials = accuracy_cut * eps, accuracy_cut * delta, trials + 1
    """

    controller: Literal["adaptive", "fixed"] = "adaptive"
    """"fixed": eps and delta stay as they are; no descent test."""
    first_accuracy: Positive = 1e-1
    """The first eps, of theta's distance to the minimiser."""
    first_residual: Positive | None = None
    """The first delta, of the linear system's residual; None: as ``first_accuracy``."""
    first_step: Positive | None = None
    """The first alpha; None: HOAG's, sqrt(number of lam's scalars) / |z| of the first z."""
    solver_rule: Rule = "fista"
    most_gradients: Steps = 2_000
    """Inner gradients of one solve at most, as in the authors' code: a trial far off is then given
    up, and not accepted."""
    eta: Part = 1e-4
    """Of the descent test."""
    decrease: Part = 5e-5
    """The part of a |z|^2 that a step must gain; less than eta."""
    backtrack: Part = 0.5
    """rho."""
    step_growth: Annotated[float, Field(gt=1)] = 10 / 9
    """1 / rho'."""
    accuracy_cut: Part = 0.5
    """nu."""
    accuracy_growth: Annotated[float, Field(gt=1)] = 1.05
    """nu'."""
    most_trials: Annotated[int, Field(ge=1)] = 10
    """Of a line search; one more after each that fails."""

    exact_with: ClassVar[dict[str, Any]] = {"controller": "fixed", "first_accuracy": FLOOR}

    def __post_init__(self) -> None:
        if self.decrease >= self.eta:
            raise ValueError(
                f"decrease is {self.decrease:g}: it must be less than eta, {self.eta:g}, or steps "
                "that descend are not accepted"
            )

    @property
    def accuracy(self) -> Accuracy:
        """eps, with what failures and successes do to it; delta keeps its ratio to it."""
        if self.controller == "fixed":
            return Accuracy(self.first_accuracy)
        return Accuracy(self.first_accuracy, shrink=self.accuracy_cut, grow=self.accuracy_growth)

    def init(self, ctx: Context) -> State:
        """lam, where the first solves start, and accuracies of their first size."""
        lam = ctx.problem.init_outer()
        warm = begin(ctx, lam)
        memory = {"warm": warm, "factor": 1.0, "failed": 0}
        return State(lam, warm[0]["theta"] if ctx.problem.carried else None, memory)

    def asked(self, factor: float) -> tuple[float, float]:
        """eps and delta."""
        residual = self.first_residual or self.first_accuracy
        eps = self.accuracy.at(1, factor)
        return eps, eps * residual / self.first_accuracy

    def answer_with(
        self, ctx: Context, lam: Params, episode: Episode, warm: dict[str, Any], known: Moduli,
        factor: float,
    ) -> Answer:  # fmt: skip
        """Steps 1 and 2: |grad G| <= mu eps, and a residual of delta."""
        eps, delta = self.asked(factor)
        return self.answer(
            ctx, lam, episode, warm, norm=known.mu * eps, moduli=known,
            relative=lambda slope: delta / slope if slope else 1.0,
        )  # fmt: skip

    def answer_at(self, ctx: Context, state: State, episode: Episode) -> Answer:
        """What an episode says at the state's lam with the accuracies of now."""
        warm = state.memory["warm"][episode.index % len(state.memory["warm"])]
        known = bounds.complete(ctx, state.lam, warm["theta"], episode)
        return self.answer_with(ctx, state.lam, episode, warm, known, state.memory["factor"])

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """A hypergradient that passes the descent test, and a step that is sure to descend; or
        smaller accuracies where there is none."""
        memory, lam, steps = dict(state.memory), state.lam, 0
        factor, failed = memory["factor"], memory["failed"]
        known = of_episodes(
            ctx, lambda e, i: bounds.complete(ctx, lam, state.memory["warm"][i]["theta"], e)
        )
        proved = self.note(ctx, known)
        for _ in range(1 if self.controller == "fixed" else ROUNDS):
            here = self.direction(ctx, lam, memory["warm"], known, factor)
            memory["warm"], factor = here.at["warm"], here.factor
            size = check_hypergradient(here.at["p"], ctx.step, lambda: True)
            alpha = memory.get("alpha") or self.first_step or 1 / first_smooth(size, lam)
            taken, more = self.line_search(ctx, here, known, alpha, self.most_trials + failed)
            steps += here.steps + more
            if taken is not None:
                break
            failed += 1
            if here.sure.exhausted:
                break
            factor *= self.accuracy.shrink
        log = {
            "outer_loss": here.at["value"], "hypergradient_norm": size, "bound": here.sure.omega,
            "eps": self.asked(here.factor)[0], "alpha": alpha if taken is None else taken.a,
            "accepted": float(taken is not None), "inner_solve_gradients": float(steps),
            "certified": float(proved),
        }  # fmt: skip
        if taken is not None:
            lam, alpha, failed = taken.lam, taken.a * self.step_growth, 0
            factor *= self.accuracy.grow
            old = zip(taken.thetas, memory["warm"], strict=True)
            memory["warm"] = [{"theta": theta, "q": w["q"]} for theta, w in old]
        memory |= {"alpha": alpha, "factor": factor, "failed": failed}
        theta = memory["warm"][0]["theta"] if ctx.problem.carried else None
        return State(lam, theta, memory), log

    def direction(
        self, ctx: Context, lam: Params, warm: list[dict[str, Any]], known: list[Moduli],
        factor: float,
    ) -> Here:  # fmt: skip
        """Steps 1 to 4, until the descent test holds."""
        steps = 0
        while True:

            def answer(
                e: Episode, i: int, warm: list[dict[str, Any]] = warm, factor: float = factor
            ) -> Answer:
                return self.answer_with(ctx, lam, e, warm[i], known[i], factor)

            answers = of_episodes(ctx, answer)
            eps, delta = self.asked(factor)
            at, sure = point(lam, answers), certificate(answers, known, eps=eps, delta=delta)
            steps += sum(a.found.steps for a in answers)
            passed = sure.omega <= (1 - self.eta) * float(autodiff.norm(at["p"]))
            if passed or sure.exhausted or self.controller == "fixed":
                return Here(at, sure, factor, steps)
            warm, factor = at["warm"], factor * self.accuracy.shrink

    def line_search(
        self, ctx: Context, here: Here, known: list[Moduli], alpha: float, trials: int
    ) -> tuple[Trial | None, int]:
        """Step 5: the first of alpha, alpha rho, ... that is sure to descend; inner gradients."""
        lam, z, steps = here.at["lam"], here.at["p"], 0
        eps, _ = self.asked(here.factor)
        for i in range(trials):
            a = alpha * self.backtrack**i
            there = ctx.problem.project(autodiff.axpy(-a, z, lam))
            moved = autodiff.axpy(-1.0, there, lam)
            gain = self.decrease * float(autodiff.dot(moved, moved)) / a
            if gain == 0.0:
                break

            def top(e: Episode, j: int, there: Params = there) -> tuple[float, InnerSolution]:
                return self.top(ctx, there, e, here.at["warm"][j]["theta"], known[j], eps)

            tops = of_episodes(ctx, top)
            steps += sum(found.steps for _, found in tops)
            if mean([top for top, _ in tops]) - here.sure.low - here.sure.slack + gain <= 0:
                return Trial(there, a, [found.theta for _, found in tops]), steps
        return None, steps

    def top(
        self, ctx: Context, lam: Params, episode: Episode, theta: Params, near: Moduli, eps: float
    ) -> tuple[float, InnerSolution]:
        """U of an episode at lam, solved from theta to eps, and the solution."""
        known = bounds.borrowed(ctx.problem.moduli(lam), near)
        self.note(ctx, [known])
        found = self.solve(ctx, lam, theta, episode, known.mu * eps, known)
        value, g = autodiff.grad(lambda t: ctx.outer_loss(lam, t, episode.outer), found.theta)
        reached = max(eps, found.gradient_norm / known.mu)
        return enclosure(float(value), float(autodiff.norm(g)), reached, known)[1], found

    def note(self, ctx: Context, known: list[Moduli]) -> bool:
        """Whether the certificates of this step are proved; kept in the record for the run."""
        if proved := all(m.certified for m in known):
            ctx.notes.setdefault("certificate", "proved")
        else:
            which = ", ".join(bounds.missing(ctx.problem.moduli(ctx.problem.init_outer())))
            ctx.notes["certificate"] = f"estimated: {which or 'the problem says so of its bounds'}"
        return proved

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """theta solved at the state's lam to the accuracy of now, or a tenth of the first one."""
        theta = start_for(ctx, state, episode)
        known = bounds.complete(ctx, state.lam, theta, episode)
        eps = min(self.first_accuracy / 10, self.asked(state.memory["factor"])[0])
        return self.solve(ctx, state.lam, theta, episode, known.mu * eps, known).theta
