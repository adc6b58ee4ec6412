"""The checks of a method, each one short function of the method on a task."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from metabench.conformance.harness import (
    STEPS,
    Harness,
    NotTested,
    adapted,
    relative_gap,
    snapshot,
    stored,
    tolerance,
    unchanged,
)
from metabench.conformance.search_checks import check_account
from metabench.conformance.test_problems import Counting, Limited, Undeclared, Watched
from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import State
from metabench.contract.method import split as parted
from metabench.contract.problem import Episode, Params
from metabench.core import settings
from metabench.core.capabilities import IMPLIED, check_applicable
from metabench.core.costs import Counts, Meter
from metabench.core.errors import NotApplicable
from metabench.core.text import type_of
from metabench.run.evaluation import evaluate


def check_state(at: Harness) -> None:
    """lam keeps its names, shapes and types and stays finite; theta is there if it is carried."""
    ctx = at.context()
    first = state = at.method.init(ctx)
    for _ in range(STEPS):
        assert isinstance(state, State), f"a state is a State, not {type(state).__name__}"
        assert list(state.outer) == list(first.outer), f"lam's names change to {list(state.outer)}"
        for name, value in state.outer.items():
            old = first.outer[name]
            assert value.shape == old.shape, f"lam's {name} changes its shape to {value.shape}"
            assert value.dtype == old.dtype, f"lam's {name} changes its type to {value.dtype}"
            assert bool(torch.isfinite(value).all()), f"lam's {name} is not finite"
        assert (state.theta is not None) == ctx.problem.carried, (
            "a state has a theta exactly where the problem carries one"
        )
        state, _ = at.step(ctx, state)


def check_log(at: Harness) -> None:
    """A step's log holds plain finite numbers by name."""
    ctx = at.context()
    _, log = at.step(ctx, at.method.init(ctx))
    for name, value in log.items():
        assert isinstance(name, str) and isinstance(value, int | float), (
            f"log entry {name!r} is {type_of(value)}; logs hold plain numbers"
        )
        assert math.isfinite(value), f"log entry {name!r} is {value}"


def check_adapt(at: Harness) -> None:
    """adapt gives a whole finite theta without a graph for an episode it has never seen."""
    ctx = at.context()
    state = at.run(ctx, 1)
    for split in ("valid", *ctx.problem.evaluations):
        episode = ctx.problem.episode(split, 0)
        theta = at.method.adapt(ctx, state, episode)
        like = ctx.problem.init_inner(state.lam, episode)
        assert list(theta) == list(like), f"adapt gives {list(theta)}, theta is {list(like)}"
        for name, value in theta.items():
            assert value.shape == like[name].shape, f"adapt gives {name} of shape {value.shape}"
            assert bool(torch.isfinite(value).all()), f"adapt gives a {name} that is not finite"
            assert not value.requires_grad, f"adapt gives a {name} that has a graph"


def check_pure(at: Harness) -> None:
    """A step and an adaptation change nothing that they are given."""
    ctx = at.context()
    state = at.run(ctx, 1)
    episodes = {"train": ctx.training_episodes()[0], "valid": ctx.problem.episode("valid", 0)}
    held = {
        "the state": state,
        "the task's first lam": ctx.problem.init_outer(),
        **{f"a {k} episode": (e.batch(0), e.outer) for k, e in episodes.items()},
    }
    before = {k: snapshot(v) for k, v in held.items()}
    at.method.adapt(ctx, state, episodes["valid"])
    at.method.step(ctx, state)
    for name, value in held.items():
        assert unchanged(before[name], value), f"{name} was changed in place"


def check_storable(at: Harness) -> None:
    """A state is plain data: saved and loaded again (weights_only) it is the same."""
    state = at.run(at.context(), 1)
    assert unchanged(snapshot(state), stored(state)), "the state comes back changed"


def check_seeded(at: Harness) -> None:
    """Everything random comes from the seeds: the same seeds give the same bits."""
    held = at.plain.held
    torch.manual_seed(12345)
    assert unchanged(held, at.run(at.context())), "a second run is different"


def check_resumes(at: Harness) -> None:
    """Stored and loaded after every step, a run ends as the uninterrupted one, bit for bit."""
    on = at.context()
    state = stored(at.method.init(on))
    for step in range(STEPS):
        counts = Counts(**on.meter.counts.as_dict())
        on = at.context(step=step, meter=Meter(counts), notes=copy.deepcopy(on.notes))
        state, _ = at.method.step(on, state)
        state = stored(state)
    assert unchanged(at.plain.held, state), (
        "a run that was cut ends differently: something beside State and ctx.notes is remembered"
    )
    assert on.meter.counts == at.plain.counts, "a run that was cut counts other costs"


def check_undisturbed(at: Harness) -> None:
    """Evaluating a state does not change the run, and is not counted as cost."""
    evaluated = at.context()
    state = at.method.init(evaluated)
    for _ in range(STEPS):
        evaluate(evaluated, at.method, state, "valid", 1)
        state, _ = at.step(evaluated, state)
    assert unchanged(at.plain.held, state), "evaluation changes the run"
    assert evaluated.meter.counts == at.plain.counts, "evaluation is counted as cost"


def check_threads(at: Harness) -> None:
    """Episodes spread over threads give the same bits and counts as one after another."""
    three = at.context(workers=3)
    assert unchanged(at.plain.held, at.run(three)), "threads change the result"
    assert three.meter.counts == at.plain.counts, "threads change the counts"


def check_batched(at: Harness) -> None:
    """All episodes at once (vmap) give what one after another gives, to rounding."""
    looped, expected = at.plain, at.plain.state
    adapts = at.method.adapts_batched and expected.theta is None
    if not (at.method.batched or adapts):
        raise NotTested("the method says that episodes cannot be batched")
    allowed = tolerance(expected.outer)
    for chunk in (None, 2) if at.method.batched else ():
        ctx = at.context(engine="vmap", chunk=chunk)
        found = at.run(ctx)
        gap = relative_gap(found.outer, expected.outer)
        assert gap <= allowed, f"the batched run's lam is {gap:.1e} away, {allowed:.0e} is allowed"
        assert ctx.meter.counts == looped.counts, (
            f"batched it counts {ctx.meter.counts}, looped {looped.counts}"
        )
    if adapts:
        whole = adapted(at, at.context(engine="vmap"), expected)
        each = adapted(at, looped.ctx, expected)
        for one, other in zip(whole, each, strict=True):
            gap = relative_gap(one, other)
            assert gap <= allowed, f"batched, adapt's theta is {gap:.1e} away"


def check_counts(at: Harness) -> None:
    """The meter agrees with how often the losses really are evaluated.

    Every evaluation belongs to one inner gradient, outer gradient or function evaluation; a
    Hessian or mixed product may take one more of its own (forward over reverse) or none (a graph
    that is gone through twice: always where it is counted along with an inner gradient). Losses of
    single examples are an evaluation of the inner loss once they are as many as its batch has.
    """
    problem = Counting(at.problem())
    ctx = at.context(problem.as_problem(), Watched)
    assert isinstance(ctx, Watched)
    problem.meter = ctx.meter
    at.run(ctx)
    n, calls, inner = ctx.meter.counts, problem.calls, problem.inner_evaluations
    assert inner >= n.inner_gradients, (
        f"{n.inner_gradients} inner gradients counted, {inner} inner losses evaluated"
    )
    assert calls["outer_loss"] >= n.outer_gradients, (
        f"{n.outer_gradients} outer gradients counted, {calls['outer_loss']} outer losses evaluated"
    )
    least = n.inner_gradients + n.outer_gradients + n.function_evaluations
    most = least + n.hvps + n.mixed_products - ctx.along
    made = inner + calls["outer_loss"]
    assert least <= made <= most, f"losses are evaluated {made} times; counted: {n}"


def check_needs(at: Harness) -> None:
    """On a problem that has only what its needs name, it runs and gives the same result."""
    problem = Limited(at.problem(), at.method.needs)
    try:
        found = at.run(at.context(problem.as_problem()))
    except Undeclared as error:
        raise AssertionError(f"{error}; needs are {sorted(at.method.needs)}") from None
    assert unchanged(at.plain.held, found), (
        "on a problem that has only what it needs, the result is different"
    )


def check_refused(at: Harness) -> None:
    """A task that lacks any one of its needs is refused with the reason."""
    for need in at.method.needs:
        lacking = _Lacking(at.task, need)
        try:
            check_applicable(lacking, at.method)
        except NotApplicable as error:
            assert str(error), f"a task without {need!r} is refused without a reason"
        else:
            raise AssertionError(f"a task without {need!r} is not refused")


def check_improves(at: Harness) -> None:
    """On the closed-form problem a method that differentiates the outer loss brings it down."""
    ctx = at.context()
    known = at.task.registered_name == "quadratic" and not ctx.problem.carried
    if not known:
        raise NotTested("only on the closed-form problem is it known that it must")
    if "outer_gradient" not in at.method.needs:
        raise NotTested("the method does not differentiate the outer loss")
    first = at.method.init(ctx)
    ctx.budget = replace(ctx.budget, outer_steps=50)
    last = at.run(ctx, 50)
    before, after = (
        evaluate(ctx, at.method, state, "test", 1)["loss"].mean for state in (first, last)
    )
    assert after < before, f"50 outer steps bring the test loss from {before:g} to {after:g}"


def check_exact(at: Harness) -> None:
    """On the closed-form problem the hypergradient is the derivative of the outer loss at the theta
    that comes with it, under the settings for which the method's theory says so (``exact_with``);
    and one plain outer step (gradient descent, no clipping) moves lam by it.

    It is compared with central differences along three directions of lam.
    """
    exact = at.method.exact_with
    if at.task.registered_name != "quadratic":
        raise NotTested("only the closed-form problem has known derivatives")
    if exact is None:
        raise NotTested("the method says of no settings that they are exact (exact_with)")
    plain = {k: v for k, v in {**PLAIN, **exact}.items() if k in settings.fields(type(at.method))}
    ctx, method = at.context(), replace(at.method, **plain)
    state, episode = method.init(ctx), ctx.training_episodes()[0]
    given = {}
    if _has_hypergradient(method):
        given["the hypergradient"] = method.hypergradient_from(ctx, state, episode).grad
    if "outer_lr" in plain:
        moved = method.step(ctx, state)[0].outer
        given["an outer step"] = {
            k: (v - moved[k]) / PLAIN["outer_lr"] for k, v in state.outer.items()
        }
    if not given or (ctx.problem.carried and not _has_hypergradient(method)):
        raise NotTested("it has no hypergradient of its own and no outer_lr that scales its step")
    _check_slopes(ctx, method, state, episode, given, exact)


PLAIN: dict[str, Any] = {
    "outer_solver": "sgd",
    "outer_lr": 2.0**-10,
    "outer_decay": "none",
    "clip": None,
}
"""Settings of an outer step that moves lam by the hypergradient; a method may lack some."""


def _check_slopes(
    ctx: Context, method: Any, state: State, episode: Episode, given: dict[str, Params], exact: Any
) -> None:
    gen, lam = torch.Generator().manual_seed(0), state.outer
    trained = "the hypergradient" in given
    for _ in range(3):
        direction = {
            k: torch.randn(v.shape, generator=gen, dtype=torch.float64).to(v)
            for k, v in lam.items()
        }

        def outer_value(size: float, direction: Params = direction) -> float:
            there = autodiff.axpy(size, direction, lam)
            if trained:
                end = method.hypergradient(ctx, there, state.theta, episode).theta
            else:
                own, learned = parted(there)
                end = method.adapt(ctx, replace(state, lam=own, learned=learned), episode)
            return float(ctx.problem.outer_loss(there, end, episode.outer))

        h = 1e-4
        slope = 8 * (outer_value(h) - outer_value(-h)) - (outer_value(2 * h) - outer_value(-2 * h))
        expected = slope / (12 * h)
        for what, g in given.items():
            said = float(autodiff.dot(g, direction))
            assert abs(said - expected) <= 1e-8 * (1 + abs(expected)), (
                f"with {exact} {what} should be exact: along one direction of lam it says "
                f"{said:.10g}, differences {expected:.10g}"
            )


def check_precision(at: Harness) -> None:
    """In float64, a hypergradient is not rounded to float32 on the way."""
    ctx = at.context()
    state = at.method.init(ctx)
    if not _has_hypergradient(at.method):
        raise NotTested("the method has no hypergradient of its own")
    if any(v.dtype != torch.float64 for v in state.outer.values()):
        raise NotTested("lam is not in float64")
    g = autodiff.flatten(at.method.hypergradient_from(ctx, state, ctx.training_episodes()[0]).grad)
    g = g[g != 0]
    if len(g) < FEW:
        raise NotTested(f"fewer than {FEW} numbers of the hypergradient are not zero")
    assert not torch.equal(g, g.float().double()), (
        "every number of the first hypergradient is one of float32"
    )


def _has_hypergradient(method: Any) -> bool:
    own = (type(method), GradientMethod)
    names = ("hypergradient", "hypergradient_from")
    if not isinstance(method, GradientMethod):  # a step of its own, and the two to look at it by
        return all(hasattr(method, name) for name in names)
    return any(len({getattr(cls, name) for cls in own}) == 2 for name in names)


FEW = 3
"""Numbers that may all be ones of float32 by chance."""


CHECKS: tuple[Callable[[Harness], None], ...] = (
    check_state,
    check_log,
    check_adapt,
    check_pure,
    check_storable,
    check_seeded,
    check_resumes,
    check_undisturbed,
    check_threads,
    check_batched,
    check_counts,
    check_account,
    check_needs,
    check_refused,
    check_improves,
    check_exact,
    check_precision,
)


class _Lacking:
    """A task without one of its capabilities."""

    def __init__(self, task: Any, need: str) -> None:
        self.registered_name = task.registered_name
        # What is implied is lacking where a task offers what it is the opposite of.
        self.offers = task.offers - {need} | frozenset(sorted(IMPLIED.get(need, ()))[:1])
        self.lacks: dict[str, str] = {}
