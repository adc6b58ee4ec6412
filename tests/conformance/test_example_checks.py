"""Wrong losses of single examples, and wrong probabilities, are found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from metabench.conformance.example_checks import (
    _check_passes,
    check_closed_forms,
    check_evidence,
    check_example_losses,
    check_outer_blocks,
    check_solvers_by_example,
)
from metabench.conformance.harness import NotTested
from metabench.contract.by_examples.losses import SquaredErrors
from metabench.contract.declared import Evidence
from metabench.contract.problem import Episode
from metabench.core.registry import solvers, tasks
from metabench.tasks.ridge import Ridge
from metabench.tasks.spectral_risk import SpectralRisk, SpectralRiskProblem


@dataclass(frozen=True)
class Changed(Ridge):
    """Ridge regression whose problem has other functions."""

    given = {}  # noqa: RUF012

    def build(self, seeds, device):
        problem = super().build(seeds, device)
        for name, value in self.given.items():
            setattr(problem, name, value(problem) if callable(value) else value)
        return problem


def changed(rows=Ridge.rows, **given):
    return type("Changed", (Changed,), {"given": given})(rows=rows)


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


def test_a_wrong_number_of_examples_in_a_batch():
    def parts(problem):
        return type("Parts", (type(problem),), {"examples_per_batch": 8})

    with pytest.raises(AssertionError, match="examples_per_batch is 8; the first inner batch has"):
        check_example_losses(changed(__class__=parts))


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


def spectral(**given):
    """Spectral-risk regression of invented rows, with other functions."""

    def build(self, seeds, device):
        gen = torch.Generator().manual_seed(3)
        x = torch.randn(20, 2, dtype=torch.float64, generator=gen)
        problem = SpectralRiskProblem(self, device, x, x.sum(1).square())
        for name, value in given.items():
            setattr(problem, name, value(problem) if callable(value) else value)
        return problem

    return type("Invented", (SpectralRisk,), {"build": build})(dataset="concrete")


def mean(problem):
    return lambda lam, theta, batch: problem.example_losses(lam, theta, batch).mean()


def doubled(problem):
    closed = problem.closed
    return lambda lam: SquaredErrors(2**0.5 * closed.x, 2**0.5 * closed.y)


@pytest.mark.parametrize(
    ("check", "given", "words"),
    [
        (check_example_losses, {"unpenalised_loss": mean}, "the risk of the examples' losses"),
        (check_example_losses, {"spectrum": lambda p: lambda lam: None}, "has no spectrum"),
        (check_closed_forms, {"closed_examples": doubled}, "losses in closed form are"),
        (check_solvers_by_example, {"inner_loss": lambda p: lambda *_: torch.ones(())}, "brings"),
    ],
)
def test_wrong_spectral_risks(check, given, words):
    check(spectral())
    with pytest.raises(AssertionError, match=words):
        check(spectral(**given))


def test_a_mean_that_says_it_is_a_risk():
    risk = spectral().build(None, torch.device("cpu")).spectrum({})
    with pytest.raises(AssertionError, match="what it offers says the opposite"):
        check_example_losses(changed(spectrum=lambda p: lambda lam: risk))


def two_judges(of_problem):
    """Ridge regression whose outer loss in training is that of 5 of 10 examples."""
    episode = of_problem.episode

    def drawn(split, index):
        found = episode(split, index)
        few = {k: v[:5] for k, v in found.outer.items()}
        return found if split != "train" else Episode(found.inner, few, index)

    return drawn


def test_outer_blocks():
    def blocks(size):
        def found(problem):
            whole = problem.episode("valid", 0).outer
            return lambda b: {k: v[b * size : b * size + 5] for k, v in whole.items()}

        return found

    def outer_loss(problem):
        return lambda lam, theta, batch: (batch["x"] @ theta["w"] - batch["y"]).square().mean()

    given = {"outer_blocks": 2, "episode": two_judges, "outer_loss": outer_loss}
    check_outer_blocks(changed(**given, outer_block=blocks(5), rows=10))
    with pytest.raises(AssertionError, match="the mean of the losses of outer batches and the ou"):
        check_outer_blocks(changed(**given, outer_block=blocks(0), rows=10))
    with pytest.raises(AssertionError, match="blocks of"):
        check_outer_blocks(changed(**given, outer_block=blocks(6), rows=10))
    with pytest.raises(NotTested, match="no numbers"):
        check_outer_blocks(changed())


def remembers(self, loss, w, tables, lr, draws):
    """Steps that rest on what is no part of the tables."""
    type(self).taken += 1
    return w - lr * type(self).taken * loss.gradient(np.arange(loss.n), w)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda self, loss, w, tables, lr, draws: w, "brings the inner loss from"),
        (remembers, "ends differently when it is cut"),
    ],
)
def test_wrong_solvers_by_example(run, words):
    wrong = type("Wrong", (solvers.get("lsvrg"),), {"run": run, "taken": 0})
    with pytest.raises(AssertionError, match=words):
        _check_passes(spectral(), "lsvrg", wrong())
