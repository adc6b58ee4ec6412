"""Broken learners without autograd are found."""

from __future__ import annotations

import pytest
import torch

from metabench.conformance.harness import NotTested
from metabench.conformance.own_step_checks import check_own_step
from metabench.contract.declared import OwnStep
from metabench.tasks.ridge import Ridge
from metabench.tasks.tagi_regression import TagiRegression, TagiRegressionProblem

SMALL = {"n_train": 8, "n_valid": 4, "n_test": 6, "batch": 4, "units": 3}


def changed(step, offers=None):
    """The task of regression, its step changed by step(problem, lam, theta, found)."""

    class Changed(TagiRegressionProblem):
        def own_step(self, lam, theta, batch):
            return step(self, lam, theta, super().own_step(lam, theta, batch))

    class Task(TagiRegression):
        lacks = {}  # noqa: RUF012

        @property
        def offers(self):
            return super().offers if offers is None else offers

        def build(self, seeds, device):
            return Changed(self, seeds, device)

    return Task(**SMALL)


def in_place(problem, lam, theta, found):
    theta["mean"].add_(1.0)
    return found


def remembers(problem, lam, theta, found):
    problem.calls = getattr(problem, "calls", 0) + 1
    return OwnStep({**found.theta, "mean": found.theta["mean"] + problem.calls}, found.costs)


def unseeded(problem, lam, theta, found):
    mean = found.theta["mean"] + torch.rand(1, dtype=torch.float64)
    return OwnStep({**found.theta, "mean": mean}, found.costs)


def counts_more(problem, lam, theta, found):
    problem.calls = getattr(problem, "calls", 0) + 1
    return OwnStep(found.theta, {"inner_gradients": problem.calls})


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (in_place, "changes what it is given"),
        (remembers, "a training that was cut ends differently"),
        (unseeded, "a training that was cut ends differently"),
        (lambda p, lam, theta, found: OwnStep(theta, found.costs), "leave theta as it was"),
        (lambda p, lam, theta, found: found.theta, "gives a dict, not an OwnStep"),
        (lambda p, lam, theta, found: OwnStep({"mean": found.theta["mean"]}, {}), "gives .'mean'"),
        (
            lambda p, lam, theta, found: OwnStep(
                {k: v / 0 for k, v in found.theta.items()}, found.costs
            ),
            "not finite",
        ),
        (
            lambda p, lam, theta, found: OwnStep(
                {k: v.requires_grad_() for k, v in found.theta.items()}, found.costs
            ),
            "has a graph",
        ),
        (
            lambda p, lam, theta, found: OwnStep(
                {k: v.float() for k, v in found.theta.items()}, found.costs
            ),
            "in torch.float32",
        ),
        (lambda p, lam, theta, found: OwnStep(found.theta, {"updates": 1}), "counts .'updates'."),
        (lambda p, lam, theta, found: OwnStep(found.theta, {"trainings": -1}), "counts -1"),
        (lambda p, lam, theta, found: OwnStep(found.theta, {}), "counts nothing"),
        (counts_more, "a training that was cut counts"),
    ],
)
def test_a_broken_step_is_found(step, words):
    with pytest.raises(AssertionError, match=words):
        check_own_step(changed(step))


def test_a_task_that_admits_methods_that_follow_a_loss_is_found():
    offers = frozenset({"own_step", "outer_gradient", "second_order", "lam_in_inner_loss"})
    with pytest.raises(AssertionError, match="follows a loss"):
        check_own_step(changed(lambda p, lam, theta, found: found, offers))


def test_a_sound_step_passes_and_other_tasks_are_not_tested():
    check_own_step(changed(lambda p, lam, theta, found: found))
    with pytest.raises(NotTested, match="follow a gradient or a field"):
        check_own_step(Ridge())
