"""The shared outer loop: inner steps, step sizes, guards, search; what methods do with them."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import F64, LinearEpisodes, SmallNet, context, given, quadratic_end

from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.guards import check_hypergradient
from metabench.contract.method import Hypergradient, State, inner_loop, outer_rate
from metabench.contract.problem import GRADIENTS, Hyper, Problem
from metabench.core import settings
from metabench.core.cell import Budget
from metabench.core.costs import Counts, Meter
from metabench.core.errors import Diverged, SettingError, UnknownName
from metabench.core.registry import methods, tasks
from metabench.hypergradients import implicit

OFFERS = (*GRADIENTS, "lam_is_initialisation", "head", "episodes")
Quadratic = tasks.get("quadratic")


class Renamed(Problem):
    """The quadratic problem, with lam under the name of the step size that bilevel learns."""

    def __init__(self) -> None:
        self.known = context("quadratic").problem

    def init_outer(self):
        return {"inner_lr": self.known.init_outer()["lam"]}

    def init_inner(self, lam, episode):
        return self.known.init_inner({"lam": lam["inner_lr"]}, episode)

    def inner_loss(self, lam, theta, batch):
        return self.known.inner_loss({"lam": lam["inner_lr"]}, theta, batch)

    def outer_loss(self, lam, theta, batch):
        return self.known.outer_loss({"lam": lam["inner_lr"]}, theta, batch)

    def episode(self, split, index):
        return self.known.episode(split, index)


class WarmStarted(GradientMethod):
    """Implicit differentiation with one more Richardson step of the linear solve a call."""

    def hypergradient_from(self, ctx, state, episode):
        lam, ready = implicit.prepared(ctx, state.lam, episode)
        theta = ctx.problem.init_inner(lam, episode)
        theta, _ = inner_loop(ctx, lam, theta, ready, steps=self.inner_steps, lr=self.inner_lr)
        at = implicit.linearise(ctx, lam, theta, episode, ready, batch=0)
        x = state.memory.get("solved", torch.zeros_like(at.v))
        x = x + 0.1 * (at.v - at.product(x))
        g = autodiff.axpy(-1.0, at.mixed(x), at.direct)
        return Hypergradient(at.value, g, autodiff.detach(theta), memory={"solved": x})


# What is learned beside lam, and what a hypergradient remembers.


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_lam_called_as_the_learned_step_size_is_another(mode):
    set_ = {"mode": mode, "learn_rate": True, "inner_lr": 0.05, "outer_lr": 0.01}
    method = methods.get("bilevel")(**set_)
    plain, renamed = context("quadratic"), given(Renamed(), *GRADIENTS, "lam_in_inner_loss")
    one, other = method.init(plain), method.init(renamed)
    for _ in range(3):
        (one, log), (other, also) = method.step(plain, one), method.step(renamed, other)
        assert log == also
    assert torch.equal(one.lam["lam"], other.lam["inner_lr"])
    assert torch.equal(one.learned["inner_lr"], other.learned["inner_lr"])
    assert float(other.learned["inner_lr"]) != 0.05
    assert list(one.reported) == ["lam", "inner_lr"]
    assert list(other.reported) == ["inner_lr", "learned/inner_lr"]
    episode = plain.problem.episode("test", 0)
    ends = method.adapt(plain, one, episode), method.adapt(renamed, other, episode)
    assert torch.equal(ends[0]["w"], ends[1]["w"])


def test_a_linear_solve_goes_on_from_the_last_step():
    method = WarmStarted(outer_lr=1e-12)
    ctx = context("quadratic")
    exact = methods.get("ift")(inverse="exact")
    state, episode = method.init(ctx), ctx.problem.episode("train", 0)
    known = exact.hypergradient(ctx, state.lam, None, episode).grad
    gaps = []
    for ctx.step in range(60):
        found = method.hypergradient_from(ctx, state, episode).grad
        gaps.append(float((found["lam"] - known["lam"]).norm()))
        state, _ = method.step(ctx, state)
    assert gaps[-1] < 1e-2 * gaps[0]


# Inner steps.


def test_inner_loop_goes_on_from_where_it_was():
    ctx = given(SmallNet(batches=True), *OFFERS, solver="adam")
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    whole, _ = inner_loop(ctx, lam, lam, episode, steps=5, lr=0.1)
    half, held = inner_loop(ctx, lam, lam, episode, steps=2, lr=0.1)
    rest, _ = inner_loop(ctx, lam, half, episode, steps=3, lr=0.1, start=2, solver_state=held)
    anew, _ = inner_loop(ctx, lam, half, episode, steps=3, lr=0.1, start=2)
    for k in whole:
        assert torch.equal(rest[k], whole[k])
        assert not torch.equal(anew[k], whole[k])
    assert ctx.meter.counts.inner_gradients == 13


def test_inner_loop_moves_only_what_it_is_told():
    ctx = given(SmallNet(), *OFFERS)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    theta, _ = inner_loop(ctx, lam, lam, episode, steps=3, lr=0.1, only=("body.bias",))
    assert list(theta) == list(lam)
    moved = {k for k in lam if not torch.equal(theta[k], lam[k])}
    assert moved == {"body.bias"}


def test_adapt_takes_the_steps_of_the_test():
    ctx = context("quadratic")
    problem, episode = ctx.problem, ctx.problem.episode("test", 0)
    for test_steps, steps in ((None, 5), (9, 9), (0, 0)):
        method = methods.get("bilevel")(inner_steps=5, test_steps=test_steps)
        theta = method.adapt(ctx, method.init(ctx), episode)
        expected = quadratic_end(problem, problem.lam, problem.w0, 0.1, steps)
        torch.testing.assert_close(theta["w"], expected, rtol=1e-12, atol=0)


# Outer steps.


class Given(GradientMethod):
    """Answers with a gradient that is given, and remembers what it was asked."""

    g = torch.tensor([3.0], dtype=F64)

    def hypergradient(self, ctx, lam, theta, episode):
        return Hypergradient(torch.tensor(1.0 + episode.index), {"lam": self.g}, {})


def after_a_step(ctx, **set_):
    method = Given(outer_solver="sgd", **set_)
    state = method.init(ctx)
    new, log = method.step(ctx, state)
    return float(state.lam["lam"] - new.lam["lam"]), new, log


def test_a_step_and_what_it_logs():
    moved, state, log = after_a_step(context("quadratic"), outer_lr=0.1)
    assert moved == pytest.approx(0.3)
    assert log == {"outer_loss": 1.0, "hypergradient_norm": 3.0}
    assert state.theta is None and state.memory == {"outer": {}}


def test_clipping_is_entry_by_entry_and_after_the_norm():
    moved, _, log = after_a_step(context("quadratic"), outer_lr=0.1, clip=2.0)
    assert moved == pytest.approx(0.2) and log["hypergradient_norm"] == 3.0


def test_lam_is_projected():
    moved, state, _ = after_a_step(context("quadratic"), outer_lr=100.0)
    assert float(state.lam["lam"]) == -4.0 and moved == pytest.approx(4.4)


def test_episodes_of_a_step_are_its_own():
    ctx = given(LinearEpisodes(per_step=3), *OFFERS)
    ctx.step = 5
    assert [e.index for e in ctx.training_episodes()] == [15, 16, 17]


def test_the_outer_solver_keeps_its_memory():
    ctx = context("quadratic")
    method = Given(outer_solver="adam", outer_lr=0.1)
    state = method.init(ctx)
    for _ in range(3):
        state, _ = method.step(ctx, state)
    assert state.memory["outer"]["count"]["steps"] == 3
    assert float(state.lam["lam"]) == pytest.approx(0.4 - 0.3)  # equal gradients: equal steps


@pytest.mark.parametrize(("g", "words"), [
    ([0.0, 0.0], "at outer step 7 is exactly zero"),
    ([math.nan, 0.0], r"at outer step 7 is not finite \(in a\)"),
    ([math.inf, 0.0], "not finite"),
])  # fmt: skip
def test_hypergradients_that_mean_nothing(g, words):
    with pytest.raises(Diverged, match=words):
        check_hypergradient({"a": torch.tensor(g), "b": torch.zeros(1)}, 7)


def test_a_zero_hypergradient_is_found_out():
    ctx = context(Quadratic(b=0.0))
    with pytest.raises(Diverged, match="exactly zero"):
        method = methods.get("bilevel")()
        method.step(ctx, method.init(ctx))


def test_a_run_at_its_optimum_has_not_diverged():
    ctx = context(Quadratic(b=1.0, c=0.5, lam=0.5, w0=0.5))
    for mode in ("reverse", "forward"):
        method = methods.get("bilevel")(mode=mode)
        before = ctx.meter.counts.outer_gradients
        state, log = method.step(ctx, method.init(ctx))
        assert log["hypergradient_norm"] == 0.0 and float(state.lam["lam"]) == 0.5
        assert ctx.meter.counts.outer_gradients == before + 1, "looking is not counted"


def test_outer_rate_follows_the_budget():
    ctx = context("quadratic", budget=Budget(outer_steps=4))
    assert outer_rate(0.5, "none", ctx) == 0.5
    rates = []
    for ctx.step in range(5):
        rates.append(outer_rate(0.8, "linear", ctx))
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    spent = Meter(Counts(inner_gradients=30, hvps=5))
    ctx = context("quadratic", budget=Budget(inner_gradients=40, hvps=100), meter=spent)
    assert outer_rate(0.8, "linear", ctx) == pytest.approx(0.2) and ctx.notes == {}
    ctx = context("quadratic", budget=Budget(seconds=5.0))
    assert ctx.progress is None
    assert outer_rate(0.8, "linear", ctx) == outer_rate(0.8, "cosine", ctx, end=0.1) == 0.8
    assert ctx.notes == {"outer_decay": "none: only time limits the run"}


def test_a_cosine_is_that_of_torch():
    rule = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, T_max=6, eta_min=1e-5)
    ctx = context("quadratic", budget=Budget(outer_steps=6))
    method = methods.get("maml")(outer_lr=1e-3, outer_decay="cosine", outer_lr_min=1e-5)
    for ctx.step in range(7):
        assert method.outer_rate(ctx) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        rule.step()
        schedule.step()
    assert replace(method, outer_lr_min=0.0).outer_rate(ctx) == pytest.approx(0.0, abs=1e-18)


def test_a_step_goes_by_the_rate_of_its_decay():
    own = {"outer_solver": "sgd", "outer_lr": 0.5, "outer_decay": "cosine", "outer_lr_min": 0.1}
    sizes = []
    for step in (0, 2, 4):
        ctx = context("quadratic", budget=Budget(outer_steps=4), step=step)
        method = methods.get("bilevel")(**own)
        before = method.init(ctx)
        after, log = method.step(ctx, before)
        moved = torch.linalg.vector_norm(after.lam["lam"] - before.lam["lam"])
        sizes.append(float(moved) / log["hypergradient_norm"])
    assert sizes == pytest.approx([0.5, 0.3, 0.1], rel=1e-9)


def test_settings_that_cannot_be():
    with pytest.raises(UnknownName, match="no solver 'adm'; near: adam"):
        settings.build(methods.get("maml"), {"outer_solver": "adm"}, "method maml")
    with pytest.raises(SettingError, match="method bilevel: forward mode cannot be truncated"):
        both = {"mode": "forward", "truncate": 2}
        settings.build(methods.get("bilevel"), both, "method bilevel")
    with pytest.raises(SettingError, match="task quadratic: a carried w has one start"):
        both = {"carried": True, "formulation": "init"}
        settings.build(Quadratic, both, "task quadratic")


def test_needs_follow_the_settings():
    bilevel, maml = methods.get("bilevel"), methods.get("maml")
    assert bilevel().needs == GRADIENTS
    assert bilevel(mode="forward").needs == GRADIENTS | {"small_lam"}
    assert bilevel(truncate=2).needs == GRADIENTS | {"lam_in_inner_loss"}
    assert bilevel(truncate=5, inner_steps=5).needs == GRADIENTS
    assert maml(order="first").needs == {"outer_gradient", "lam_is_initialisation"}
    assert maml(anil=True).needs == GRADIENTS | {"lam_is_initialisation", "head"}


# Floors and search.


def test_fixed_trains_a_carried_theta_and_nothing_else():
    ctx = context(Quadratic(dim=2, carried=True))
    method = methods.get("fixed")(inner_steps=3)
    state = method.init(ctx)
    after, log = method.step(ctx, state)
    assert after.lam is state.lam and log == {}
    expected = quadratic_end(ctx.problem, state.lam["lam"], ctx.problem.w0, 0.1, 3)
    torch.testing.assert_close(after.theta["w"], expected, rtol=1e-12, atol=0)
    ctx = context("quadratic")
    state = method.init(ctx)
    assert method.step(ctx, state) == (state, {}) and ctx.meter.counts == Counts()


@pytest.mark.parametrize("sequence", ["sobol", "uniform"])
def test_search_finds_the_best_penalty(sequence):
    ctx = context("quadratic")
    method = methods.get("random")(inner_steps=60, inner_lr=0.2, sequence=sequence)
    state, best = method.init(ctx), math.inf
    for ctx.step in range(40):
        state, log = method.step(ctx, state)
        best = min(best, log["outer_loss"])
        assert state.memory["best"] == best
    assert ctx.meter.counts.trainings == ctx.meter.counts.function_evaluations == 40
    assert ctx.meter.counts.inner_gradients == 40 * 60
    assert float(state.lam["lam"]) == pytest.approx(0.7 / 1.5, abs=0.3)


@pytest.mark.parametrize("sequence", ["sobol", "uniform"])
def test_search_points_depend_on_the_step_and_the_seed_alone(sequence):
    ctx = context("ridge")
    method = methods.get("random")(sequence=sequence)
    points = []
    for ctx.step in range(8):
        points.append(method.point(ctx, 3))
    assert len({tuple(p) for p in points}) == 8
    ctx.step = 5
    assert method.point(ctx, 3) == points[5]
    if sequence == "sobol":  # every eighth of every axis is visited once
        for axis in range(3):
            assert sorted(int(8 * p[axis]) for p in points) == list(range(8))


def test_search_keeps_the_best_and_counts_what_diverged():
    ctx = context("quadratic")
    method = methods.get("random")(inner_steps=3000, inner_lr=10.0)
    state = method.init(ctx)
    after, log = method.step(ctx, state)
    assert after is state and log == {} and ctx.meter.counts.trainings == 1
    good = State(state.lam, None, {"best": 0.0})
    after, log = methods.get("random")(inner_steps=5).step(ctx, good)
    assert after is good and log["outer_loss"] > 0


def test_search_scales_and_leaves_alone_what_it_has_no_bounds_for():
    ctx = context("ridge")
    hypers = (
        Hyper("rate", (2,), 1e-4, 1.0, log=True),
        Hyper("kind", (), choices=("a", "b", "c")),
    )
    like = {k: torch.zeros(n, dtype=F64) for k, n in (("rate", 2), ("kind", ()), ("other", 1))}

    ctx.problem.hypers = hypers
    ctx.problem.init_outer = lambda: dict(like)
    ctx.problem.init_inner = lambda lam, episode: {"w": torch.zeros(1, dtype=F64)}
    seen = []

    def inner_loss(lam, theta, batch):
        return (theta["w"] ** 2).sum()

    def outer_loss(lam, theta, batch):
        seen.append(lam)
        return torch.tensor(1.0)

    ctx.problem.inner_loss, ctx.problem.outer_loss = inner_loss, outer_loss
    ctx.problem.unpenalised_loss = inner_loss
    ctx.problem.diagonal_penalty = lambda lam: None
    method = methods.get("random")(inner_steps=1)
    state = method.init(ctx)
    for ctx.step in range(24):
        state, _ = method.step(ctx, state)
    rates = torch.stack([lam["rate"] for lam in seen])
    assert float(rates.min()) >= 1e-4 and float(rates.max()) <= 1.0
    assert 16 <= int((rates < 1e-2).sum()) <= 32  # half of 48 below the middle of the scale
    assert {int(lam["kind"]) for lam in seen} == {0, 1, 2}
    assert all(torch.equal(lam["other"], like["other"]) for lam in seen)
    ctx.problem.hypers = (Hyper("rate", (2,), 1e-4),)
    with pytest.raises(ValueError, match="'rate' has no bounds"):
        method.step(ctx, state)
