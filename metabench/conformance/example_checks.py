"""The checks of a task that has losses of single examples, or probabilities behind its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metabench.conformance.derivative_checks import build, start, theta_moved
from metabench.conformance.harness import NotTested, relative_gap, snapshot, tolerance, unchanged
from metabench.contract import autodiff
from metabench.contract.problem import Params, differentiated_loss
from metabench.hypergradients.evidence import log_likelihood, predictions

FEW = 4
"""Examples that are looked at one by one."""


def check_example_losses(task: Any) -> None:
    """Examples can be taken by index; the mean of their losses is G without its penalty, in value
    and gradient, and a loss does not depend on which others stand beside it."""
    if "example_losses" not in task.offers:
        raise NotTested("it offers no losses of single examples")
    problem = build(task)
    lam, theta, episode = start(problem)
    theta, n = theta_moved(theta), problem.example_count
    assert n > 0, f"it offers losses of single examples and has {n} of them (example_count)"
    whole = problem.take(torch.arange(n))
    if "full_batch" in task.offers:
        assert unchanged(snapshot(whole), episode.batch(0)), "all examples are not the inner batch"
    losses = problem.example_losses(lam, theta, whole)
    assert losses.shape == (n,), f"example_losses has shape {tuple(losses.shape)}, not ({n},)"
    few = torch.arange(n).flip(0)[:FEW]
    alone = [problem.example_losses(lam, theta, problem.take(i[None])) for i in few]
    gap = relative_gap({"loss": torch.cat(alone)}, {"loss": losses[few]})
    assert gap <= tolerance(theta), f"losses of single examples are {gap:.1e} from those of all"
    loss = differentiated_loss(problem, problem.diagonal_penalty(lam))
    _close(
        lambda t: problem.example_losses(lam, t, whole).mean(),
        lambda t: loss(lam, t, whole),
        theta,
        "the mean of the examples' losses",
    )


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
) -> None:
    (value, g), (known, right) = (autodiff.grad(f, theta) for f in (found, expected))
    gap = relative_gap(g, right)
    if values:
        gap = max(gap, relative_gap({"value": value}, {"value": known}))
    assert gap <= tolerance(theta), f"{what} and the inner loss are {gap:.1e} apart"
