"""The checks of a task that has losses of single examples, which solvers can step by, or
probabilities behind its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metabench.conformance.derivative_checks import build, start, theta_moved
from metabench.conformance.harness import (
    NotTested,
    relative_gap,
    snapshot,
    stored,
    tolerance,
    unchanged,
)
from metabench.conformance.test_problems import BY_EXAMPLE
from metabench.contract import autodiff
from metabench.contract.by_examples.solver import Differentiated, as_vector
from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.contract.problem import Params, differentiated_loss
from metabench.contract.seeds import Seeds
from metabench.core.registry import solvers
from metabench.hypergradients.evidence import log_likelihood, predictions

FEW = 4
"""Examples that are looked at one by one."""


def check_example_losses(task: Any) -> None:
    """Examples can be taken by index; the mean of their losses, or the spectral risk that it says,
    is G without its penalty, in value and gradient, and a loss does not depend on which others
    stand beside it."""
    if not task.offers & BY_EXAMPLE:
        raise NotTested("it offers no losses of single examples")
    problem = build(task)
    lam, theta, episode = start(problem)
    theta, n = theta_moved(theta), problem.example_count
    risk = problem.spectrum(lam)
    assert (risk is None) == ("example_losses" in task.offers), (
        "its spectrum says that G is a spectral risk; what it offers says the opposite"
        if risk
        else "it offers a spectral risk and has no spectrum"
    )
    assert n > 0, f"it offers losses of single examples and has {n} of them (example_count)"
    whole = problem.take(torch.arange(n))
    if "full_batch" in task.offers:
        assert unchanged(snapshot(whole), episode.batch(0)), "all examples are not the inner batch"
    losses = problem.example_losses(lam, theta, whole)
    assert losses.shape == (n,), f"example_losses has shape {tuple(losses.shape)}, not ({n},)"
    said = problem.examples_per_batch
    has = len(problem.example_losses(lam, theta, episode.batch(0)))
    assert said == has, f"examples_per_batch is {said}; the first inner batch has {has}"
    few = torch.arange(n).flip(0)[:FEW]
    alone = [problem.example_losses(lam, theta, problem.take(i[None])) for i in few]
    gap = relative_gap({"loss": torch.cat(alone)}, {"loss": losses[few]})
    assert gap <= tolerance(theta), f"losses of single examples are {gap:.1e} from those of all"
    loss = differentiated_loss(problem, problem.diagonal_penalty(lam))
    what = torch.mean if risk is None else risk.risk
    _close(
        lambda t: what(problem.example_losses(lam, t, whole)),
        lambda t: loss(lam, t, whole),
        theta,
        f"the {'mean' if risk is None else 'risk'} of the examples' losses",
    )


def check_outer_blocks(task: Any) -> None:
    """Outer batches by number are as large as drawn ones; the mean of their losses, and of the
    gradients, is that of all validation examples."""
    problem = build(task)
    if not problem.outer_blocks:
        raise NotTested("its outer batches have no numbers")
    lam, theta, episode = start(problem)
    theta = theta_moved(theta)
    blocks = [problem.outer_block(b) for b in range(problem.outer_blocks)]
    for k, v in episode.outer.items():
        shapes = {tuple(block[k].shape) for block in blocks}
        assert shapes == {tuple(v.shape)}, f"blocks of {k} are {shapes}, drawn ones {v.shape}"
    everyone = problem.episode("valid", 0).outer
    _close(
        lambda t: torch.stack([problem.outer_loss(lam, t, block) for block in blocks]).mean(),
        lambda t: problem.outer_loss(lam, t, everyone),
        theta,
        "the mean of the losses of outer batches",
        of="outer",
    )


def check_closed_forms(task: Any) -> None:
    """Losses and gradients of examples in closed form are those of differentiation."""
    problem = build(task)
    lam, theta, _ = start(problem)
    theta, closed = theta_moved(theta), problem.closed_examples(lam)
    if closed is None:
        raise NotTested("it has no closed form of its examples' losses")
    w, few = as_vector(theta), np.arange(min(FEW, problem.example_count))
    expected = Differentiated(problem, lam, theta, list(theta)).some(few, w)
    each = [closed.one(int(i), w) for i in few]
    alone = np.array([v for v, _ in each]), np.stack([g for _, g in each])
    for found in (closed.some(few, w), alone):
        for what, a, b in zip(("losses", "gradients"), found, expected, strict=True):
            gap = float(np.abs(a - b).max() / (1 + np.abs(b).max()))
            assert gap <= tolerance(theta), f"{what} in closed form are {gap:.1e} away"


def check_solvers_by_example(task: Any) -> None:
    """Every solver that steps by single examples brings G down, counts its passes, changes nothing
    that it is given, and ends in the same bits where its state is stored after every pass."""
    if not task.offers & BY_EXAMPLE:
        raise NotTested("it offers no losses of single examples")
    for name in solvers.names():
        solver: Any = solvers.get(name)()
        if solver.by_examples:
            _check_passes(task, name, solver)


def _check_passes(task: Any, name: str, solver: Any) -> None:
    problem, seeds = build(task), Seeds.of(0)
    ctx = Context(problem, solver, seeds, task.offers)
    lam, theta, episode = start(problem)
    if any(v.dtype != torch.float64 for v in theta.values()):
        raise NotTested("theta is not in float64")
    held, rate = snapshot((lam, theta)), 1e-3 / problem.example_count
    end, state = solver.train(ctx, lam, theta, episode, steps=3, lr=rate)
    assert unchanged(held, (lam, theta)), f"{name} changes what it is given"
    passes = solver.first_passes + 3 * solver.passes
    found = ctx.meter.counts.inner_gradients
    assert found == passes, f"{name} counts {found} passes of {passes}"
    whole = problem.take(torch.arange(problem.example_count))
    before, after = (float(problem.inner_loss(lam, t, whole)) for t in (theta, end))
    assert after < before, f"{name} brings the inner loss from {before:.6g} to {after:.6g}"
    at, cut = theta, None
    for _ in range(3):
        at, cut = solver.train(ctx, lam, at, episode, steps=1, lr=rate, state=cut)
        cut = stored(State(lam, memory={"solver": cut})).memory["solver"]
    assert unchanged(snapshot((end, state)), (at, cut)), f"{name} ends differently when it is cut"


def check_evidence(task: Any) -> None:
    """G times the number of examples is, in its gradient, minus the log of likelihood and prior."""
    if "evidence" not in task.offers:
        raise NotTested("it offers no evidence")
    problem = build(task)
    lam, theta, _ = start(problem)
    theta, n = theta_moved(theta), problem.example_count
    whole, at = problem.take(torch.arange(n)), problem.evidence(lam)
    assert set(at.precision) == set(theta), f"the prior is of {list(at.precision)}: {list(theta)}"
    assert all(bool((v > 0).all()) for v in at.precision.values()), "a precision is not positive"

    def joint(t: Params) -> Tensor:
        f = predictions(problem, lam, t, whole)
        prior = torch.stack([(at.precision[k] * v.square()).sum() for k, v in t.items()]).sum()
        return (0.5 * prior - log_likelihood(f, whole["y"], at.noise)) / n

    _close(joint, lambda t: problem.inner_loss(lam, t, whole), theta, "likelihood and prior", False)


def _close(
    found: Callable[[Params], Tensor],
    expected: Callable[[Params], Tensor],
    theta: Params,
    what: str,
    values: bool = True,
    of: str = "inner",
) -> None:
    (value, g), (known, right) = (autodiff.grad(f, theta) for f in (found, expected))
    gap = relative_gap(g, right)
    if values:
        gap = max(gap, relative_gap({"value": value}, {"value": known}))
    assert gap <= tolerance(theta), f"{what} and the {of} loss are {gap:.1e} apart"
