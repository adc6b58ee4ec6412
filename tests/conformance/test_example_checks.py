"""Wrong losses of single examples, and wrong probabilities, are found."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from metabench.conformance.example_checks import check_evidence, check_example_losses
from metabench.conformance.harness import NotTested
from metabench.contract.problem import Evidence
from metabench.core.registry import tasks
from metabench.tasks.ridge import Ridge


@dataclass(frozen=True)
class Changed(Ridge):
    """Ridge regression whose problem has other functions."""

    given = {}  # noqa: RUF012

    def build(self, seeds, device):
        problem = super().build(seeds, device)
        for name, value in self.given.items():
            setattr(problem, name, value(problem) if callable(value) else value)
        return problem


def changed(**given):
    return type("Changed", (Changed,), {"given": given})()


def sums(problem):
    return lambda lam, theta, batch: (batch["x"] @ theta["w"] - batch["y"]).square()


def neighbours(problem):
    original = problem.example_losses

    def losses(lam, theta, batch):
        found = original(lam, theta, batch)
        return found + torch.arange(len(found)) - (len(found) - 1) / 2

    return losses


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"example_losses": sums}, "the mean of the examples' losses and the inner loss"),
        ({"example_losses": neighbours}, "losses of single examples are"),
        ({"example_count": 0}, "has 0 of them"),
        ({"example_count": 39}, "all examples are not the inner batch"),
        ({"example_losses": lambda p: p.inner_loss}, r"has shape \(\), not \(40,\)"),
    ],
)
def test_wrong_losses_of_examples(given, words):
    with pytest.raises(AssertionError, match=words):
        check_example_losses(changed(**given))


def of(change):
    def given(problem):
        at = problem.evidence

        def evidence(lam):
            return change(at(lam))

        return evidence

    return {"evidence": given}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (of(lambda e: Evidence(e.precision, 2 * e.noise)), "likelihood and prior and the inner"),
        (of(lambda e: Evidence({"w": 2 * e.precision["w"]}, e.noise)), "likelihood and prior and"),
        (of(lambda e: Evidence({}, e.noise)), "the prior is of"),
        (of(lambda e: Evidence({"w": 0 * e.precision["w"]}, e.noise)), "is not positive"),
    ],
)
def test_wrong_probabilities(given, words):
    with pytest.raises(AssertionError, match=words):
        check_evidence(changed(**given))


def test_tasks_that_are_right_or_say_nothing():
    check_example_losses(changed())
    check_evidence(changed())
    for check in (check_example_losses, check_evidence):
        with pytest.raises(NotTested):
            check(tasks.get("quadratic")())
