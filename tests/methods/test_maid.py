"""MAID: the exact small case, sure descent by the exact f, its accuracies."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from oracles import F64, context, given

from metabench.contract import autodiff
from metabench.contract.declared import Moduli
from metabench.core.capabilities import why_not
from metabench.core.registry import solvers, tasks
from metabench.hypergradients.inexact.certificates import certificate, enclosure, error_bound
from metabench.hypergradients.inexact.hypergradient import Answer
from metabench.hypergradients.inexact.inner_solve import InnerSolution
from metabench.methods.maid import MAID
from metabench.tasks.families.no_data import NoData
from metabench.tasks.least_squares import LeastSquares
from metabench.tasks.quadratic import Quadratic

OFFERS = ("outer_gradient", "second_order", "lam_in_inner_loss", "full_batch", "strongly_convex")


class Scalar(NoData):
    """h = (m/2) (x - lam)^2, g = 1/2 (x - 1)^2: xhat = lam, f = 1/2 (lam - 1)^2."""

    device = torch.device("cpu")

    def __init__(self, m: float = 4.0, first: float = 3.0, start: float = 3.05, known=True) -> None:
        self.m, self.first, self.start, self.known = m, first, start, known

    def init_outer(self):
        return {"lam": torch.tensor([self.first], dtype=F64)}

    def init_inner(self, lam, episode):
        return {"x": torch.tensor([self.start], dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        return 0.5 * self.m * (theta["x"] - lam["lam"]).square().sum()

    def outer_loss(self, lam, theta, batch):
        return 0.5 * (theta["x"] - 1).square().sum()

    def moduli(self, lam):
        m = self.m
        return Moduli(m, m, True, 1.0, lambda theta: m, 0.0, 0.0, 0.0, True) if self.known else None


def run(method, ctx, steps):
    """States and logs, from the start on."""
    states, logs = [method.init(ctx)], []
    for _ in range(steps):
        state, log = method.step(ctx, states[-1])
        ctx.step += 1
        states.append(state)
        logs.append(log)
    return states, logs


def test_a_small_case_by_hand():
    """theta = 3, xt = 3.05, eps = 0.05: z = 2.05, U = 2.205, D = 1.9975, f = 2 between them; the
    bound is eps, and |z - grad f| attains it."""
    problem = Scalar()
    ctx, method = given(problem, *OFFERS), MAID(first_accuracy=0.05, first_residual=1e-12)
    state = method.init(ctx)
    answer = method.answer_at(ctx, state, problem.episode("train", 0))
    assert float(answer.found.theta["x"]) == 3.05, "3.05 is within eps: the solve stays there"
    z = float(answer.p["lam"])
    assert z == pytest.approx(2.05, abs=1e-12)
    known = problem.moduli(state.lam)
    low, high = enclosure(answer.value, answer.slope, 0.05, known)
    assert (low, high) == (pytest.approx(1.9975, abs=1e-12), pytest.approx(2.205, abs=1e-12))
    omega = error_bound(known, answer.found.theta, eps=0.05, delta=0.0, slope=answer.slope)
    assert omega == pytest.approx(0.05, abs=1e-12)
    assert abs(z - (3.0 - 1.0)) == pytest.approx(omega, abs=1e-12)
    here = certificate([answer], [known], eps=0.05, delta=0.0)
    assert here.omega == pytest.approx(0.05, abs=1e-12) and here.low == low
    assert here.slack == pytest.approx(0.05**2 / 2, abs=1e-15), "g is convex"


@settings(max_examples=15, deadline=None)
@drawn(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 2.0, 5.0]),
    st.floats(-3, 0),
    st.sampled_from(["fista", "gd", "lbfgs"]),
    st.sampled_from(["adaptive", "fixed"]),
    st.floats(-2, 3),
)
def test_every_accepted_step_decreases_the_exact_f(seed, condition, eps, rule, controller, step):
    """f(theta+) - f(theta) <= -decrease a |z|^2, whatever the first accuracies and step are."""
    task = LeastSquares(rows=8, dim=3, condition=condition, noise=0.3, first=float(seed % 7) - 3)
    ctx = context(task)
    method = MAID(
        controller=controller, first_accuracy=10**eps, solver_rule=rule, first_step=10**step
    )
    states, logs = run(method, ctx, 4)
    assert ctx.notes["certificate"] == "proved"
    for (one, other), log in zip(pairwise(states), logs, strict=True):
        gain = ctx.problem.exact_loss(one.lam) - ctx.problem.exact_loss(other.lam)
        if log["accepted"]:
            asked = method.decrease * log["alpha"] * log["hypergradient_norm"] ** 2
            assert gain >= asked * (1 - 1e-9) - 1e-12
        else:
            assert gain == 0.0


def test_every_bound_of_a_run_holds():
    ctx = context("ridge")
    states, logs = run(MAID(), ctx, 12)
    assert sum(log["accepted"] for log in logs) >= 10
    for state, log in zip(states, logs, strict=False):
        exact = float(ctx.problem.exact_hypergradient(state.lam).norm())
        assert abs(log["hypergradient_norm"] - exact) <= log["bound"]
        assert log["bound"] <= (1 - 1e-4) * log["hypergradient_norm"], "the descent test"


@pytest.mark.parametrize("task", [Quadratic(dim=4), LeastSquares(rows=40, dim=1)])
def test_it_ends_at_the_optimum_in_closed_form(task):
    """f to 1e-8, from solves that are never exact."""
    ctx = context(task)
    states, _ = run(MAID(), ctx, 40)
    problem, lam = ctx.problem, states[-1].lam
    if isinstance(task, Quadratic):
        gap = float(0.5 * (problem.B @ lam["lam"] - problem.c).square().sum())
    else:
        gap = problem.exact_loss(lam) - problem.losses[0]
    assert -1e-12 < gap < 1e-8


def test_first_accuracies_end_alike_and_a_fixed_one_stalls():
    ends = {}
    for name, method in {
        **{e: MAID(first_accuracy=e) for e in (1e-1, 1e-3, 1e-5)},
        "loose": MAID(controller="fixed", first_accuracy=1e-1),
        "tight": MAID(controller="fixed", first_accuracy=1e-6),
    }.items():
        ctx = context(LeastSquares(rows=60, dim=4))
        states, logs = run(method, ctx, 12)
        ends[name] = ctx.problem.exact_loss(states[-1].lam)
        if name == "loose":
            assert logs[-1]["accepted"] == 0.0
    assert ends[1e-3] == pytest.approx(ends[1e-1], rel=0.01)
    assert ends[1e-5] == pytest.approx(ends[1e-1], rel=0.01)
    assert ends["tight"] == pytest.approx(ends[1e-1], rel=0.01)
    assert ends["loose"] > 1.5 * ends["tight"]


def test_accuracies_grow_after_a_step_and_shrink_until_the_descent_test_holds():
    """The bound is eps, |z| about 2: eps = 10 shrinks to 1.25, and a step makes it 5 % looser."""
    ctx = given(Scalar(start=3.0), *OFFERS)
    method = MAID(first_accuracy=10.0, first_residual=1e-9, first_step=1e-3)
    states, logs = run(method, ctx, 1)
    assert logs[0]["eps"] <= 1.25
    assert logs[0]["bound"] <= (1 - 1e-4) * logs[0]["hypergradient_norm"]
    if logs[0]["accepted"]:
        assert states[1].memory["factor"] == pytest.approx(logs[0]["eps"] / 10 * 1.05)
        assert states[1].memory["alpha"] == pytest.approx(logs[0]["alpha"] * 10 / 9)


def test_both_sides_of_the_line_search_are_of_the_same_accuracy(monkeypatch):
    """After a failed round the state is solved again to the smaller eps before anything is
    compared with it."""
    asked = []
    real = MAID.solve

    def solve(self, ctx, lam, theta, episode, norm, moduli=None):
        asked.append((float(lam["lam"].reshape(-1)[0]), norm))
        return real(self, ctx, lam, theta, episode, norm, moduli)

    monkeypatch.setattr(MAID, "solve", solve)
    ctx = given(Scalar(), *OFFERS)
    method = MAID(first_accuracy=0.5, first_step=1e-7, most_trials=1)
    _, (log,) = run(method, ctx, 1)
    assert not log["accepted"], "the step is so short that no accuracy tells it from none"
    here = [norm for lam, norm in asked if lam == 3.0]
    there = [norm for lam, norm in asked if lam != 3.0]
    assert len(there) == 1 + 2 + 3, "one trial more each round"
    assert here == sorted(here, reverse=True) and set(there) <= set(here)


def test_trials_grow_until_a_step_succeeds():
    """From a first step a million times too long, one trial a line search and one more each."""
    ctx = given(Scalar(), *OFFERS)
    states, logs = run(MAID(first_accuracy=1e-3, first_step=1e6, most_trials=1), ctx, 9)
    assert [s.memory["failed"] for s in states[:4]] == [0, 3, 6, 9]
    assert not logs[2]["accepted"] and states[1].memory["alpha"] == 1e6
    assert states[1].memory["factor"] == 1 / 8
    assert states[-1].memory["failed"] == 0 and logs[-1]["accepted"]


def test_what_is_estimated_is_never_called_proved():
    ctx = given(Scalar(known=False, start=0.0), *OFFERS)
    states, logs = run(MAID(), ctx, 6)
    assert ctx.notes["certificate"].startswith("estimated: mu, smooth, outer_smooth, mixed")
    assert all(log["certified"] == 0.0 for log in logs)
    assert abs(float(states[-1].lam["lam"]) - 1.0) < 0.1
    ctx = given(Scalar(), *OFFERS)
    _, (log,) = run(MAID(), ctx, 1)
    assert ctx.notes["certificate"] == "proved" and log["certified"] == 1.0


def test_a_solve_that_misses_its_accuracy_widens_the_bounds():
    known = Moduli(2.0, 4.0, True, 1.0, lambda theta: 3.0, 0.0, 0.0, 0.0)
    p = {"lam": torch.ones(1, dtype=F64)}
    missed = InnerSolution({"x": torch.zeros(1, dtype=F64)}, 1.0, 7, reached=False)
    answer = Answer(5.0, p, torch.zeros(1, dtype=F64), 2.0, 0.25, missed)
    here = certificate([answer], [known], eps=1e-3, delta=1e-3)
    assert here.exhausted
    assert here.omega == pytest.approx(3 / 2 * 0.5 + 3 / 2 * 0.25), "eps = 1 / mu, delta = 0.25"
    assert here.low == pytest.approx(5 - 2 * 0.5 - 0.5**2 / 2) and here.slack == 0.0


def test_lam_stays_within_its_bounds():
    task = tasks.get("shrinkage")(target=0.999)
    ctx = context(task)
    states, logs = run(MAID(first_step=1e4), ctx, 8)
    assert float(states[-1].lam["log_penalty"]) >= -6.0
    assert logs[0]["accepted"]
    first, last = (
        float(ctx.problem.outer_loss(s.lam, {"w": ctx.problem.solve(s.lam)}, None))
        for s in (states[0], states[-1])
    )
    assert last < first


def test_at_the_optimum_lam_stays():
    """z falls to 0 with eps, no step is sure to descend, and the run goes on."""
    ctx = given(Scalar(first=1.0, start=1.0), *OFFERS)
    states, logs = run(MAID(), ctx, 2)
    assert abs(float(states[-1].lam["lam"]) - 1.0) < 1e-9
    assert not any(log["accepted"] for log in logs)


def test_the_first_step_is_hoags():
    ctx = given(Scalar(), *OFFERS)
    _, (log,) = run(MAID(first_accuracy=1e-6), ctx, 1)
    assert log["alpha"] == pytest.approx(1 / 2, rel=1e-5), "sqrt 1 / |z|, z = 2"


def test_who_may_run_it():
    maid = MAID()
    assert why_not(tasks.get("ridge")(), maid, solvers.get("sgd")()) is None
    assert "strongly convex" in (why_not(tasks.get("two_minima")(), maid) or "")
    said = why_not(tasks.get("ridge")(), maid, solvers.get("adam")())
    assert said == "maid solves the inner problem by solver_rule, not by adam"
    with pytest.raises(ValueError, match="it must be less than eta"):
        MAID(decrease=1e-3)


def test_it_adapts_to_the_lam_that_it_ends_with():
    ctx = context("ridge")
    method = MAID()
    states, _ = run(method, ctx, 5)
    theta = method.adapt(ctx, states[-1], ctx.problem.episode("test", 0))
    exact = {"w": ctx.problem.solve(states[-1].lam)}
    assert float(autodiff.norm(autodiff.axpy(-1.0, exact, theta))) <= 1e-2
