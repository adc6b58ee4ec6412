"""The checks of a task whose learner has steps of its own, without autograd."""

from __future__ import annotations

import io
from typing import Any

import torch

from metabench.conformance.derivative_checks import build, start
from metabench.conformance.harness import NotTested, snapshot, unchanged
from metabench.contract.declared import OwnStep
from metabench.contract.problem import GRADIENTS, Params
from metabench.core.capabilities import why_not
from metabench.core.costs import COUNT_NAMES
from metabench.core.registry import methods
from metabench.core.text import type_of

STEPS = 3
BY_LOSS = GRADIENTS | {"inner_loss"}
"""What methods need that follow a loss."""


def check_own_step(task: Any) -> None:
    """A step gives a whole finite theta without a graph, changes nothing that it is given, counts
    what it costs, and is a function of lam, theta and batch: cut, stored and gone on from on a
    problem freshly built, a training ends in the same bits. Methods that follow a loss are refused.
    """
    if "own_step" not in task.offers:
        raise NotTested("its inner steps follow a gradient or a field")
    problem = build(task)
    lam, theta, episode = start(problem)
    held = snapshot((lam, theta, episode.batch(0)))
    found = problem.own_step(lam, theta, episode.batch(0))
    assert unchanged(held, (lam, theta, episode.batch(0))), "own_step changes what it is given"
    _check_theta(theta, found)
    _check_costs(found)

    def trained(fresh: bool) -> tuple[Params, list[dict[str, int]]]:
        at, there, costs = theta, problem, []
        for step in range(STEPS):
            if fresh:
                at, there = _stored(at), build(task)
            batch = there.episode("train", 0).batch(step)
            at, cost = there.own_step(lam, at, batch)
            costs.append(dict(cost))
        return at, costs

    end, costs = trained(fresh=False)
    assert not unchanged(snapshot(theta), end), f"{STEPS} steps of its own leave theta as it was"
    cut, again = trained(fresh=True)
    assert unchanged(snapshot(end), cut), (
        "a training that was cut ends differently: a step rests on more than lam, theta and batch"
    )
    assert costs == again, f"a training that was cut counts {again}, an uncut one {costs}"
    _check_refusals(task)


def _check_theta(theta: Params, found: OwnStep) -> None:
    assert isinstance(found, OwnStep), f"own_step gives {type_of(found)}, not an OwnStep"
    assert list(found.theta) == list(theta), f"own_step gives {list(found.theta)}"
    for name, value in found.theta.items():
        old = theta[name]
        assert (value.shape, value.dtype) == (old.shape, old.dtype), (
            f"own_step gives a {name} of shape {tuple(value.shape)} in {value.dtype}"
        )
        assert bool(torch.isfinite(value).all()), f"own_step gives a {name} that is not finite"
        assert not value.requires_grad, f"own_step gives a {name} that has a graph"


def _check_costs(found: OwnStep) -> None:
    unknown = sorted(set(found.costs) - set(COUNT_NAMES))
    assert not unknown, f"own_step counts {unknown}; counts are {', '.join(COUNT_NAMES)}"
    for name, n in found.costs.items():
        assert type(n) is int and n >= 0, f"own_step counts {n!r} {name}: a whole number from 0"
    assert any(found.costs.values()), "own_step counts nothing: every step costs something"


def _check_refusals(task: Any) -> None:
    for name in methods.names():
        method = methods.get(name)()
        taken = method.needs & BY_LOSS and why_not(task, method) is None
        assert not taken, f"{name} follows a loss, and the task with steps of its own admits it"


def _stored(theta: Params) -> Params:
    buffer = io.BytesIO()
    torch.save(theta, buffer)
    buffer.seek(0)
    loaded: Params = torch.load(buffer, weights_only=True)
    return loaded
