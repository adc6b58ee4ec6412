"""The checks of the contract, over every kind of problem that problem_from makes."""

from __future__ import annotations

import own_problems
import pytest

from metabench import testing
from metabench.core.capabilities import why_not
from metabench.core.registry import methods

pytestmark = pytest.mark.usefixtures("plugins_forgotten")
FEW = {"bilevel": {}, "ift": {}, "maml": {}, "random": {"inner_steps": 5}}
"""Methods that run on it whatever is deselected, and settings: a search trains long by default."""

RUN_ON = {
    "decay": {"bilevel", "ift", "random", "soba", "stn", "sgld", "pbgd", "marglik", "es"},
    "decays": {"bilevel", "ift", "random", "marglik", "stocbio", "cehpo_online"},
    "decays of a recurrent model": {"bilevel", "ift", "random", "soba", "pbgd", "es"},
    "decays of weights": {"hoag", "maid", "bilevel", "random", "ucb", "marglik"},
    "weights": {"bilevel", "ift", "pbgd", "soba", "f2sa", "bome"},
    "weights and decays": {"bilevel", "ift", "pbgd", "soba"},
    "augmentation": {"bilevel", "ift", "stn", "delta_stn", "random", "hypernet"},
    "augmentation and decays": {"bilevel", "ift", "stn", "random", "soba"},
    "own": {"bilevel", "ift", "random", "stn", "soba"},
    "dropout": {"bilevel", "ift", "pbgd", "f2sa"},
    "dropout of channels": {"bilevel", "ift", "stn", "random", "hypernet"},
    "start with dropout": {"bilevel", "maml", "reptile", "imaml", "fixed"},
    "start of drawn": {"bilevel", "maml", "reptile", "imaml", "fixed"},
    "start of listed": {"bilevel", "maml", "reptile", "imaml", "fixed"},
    "start of one": {"bilevel", "maml", "reptile", "imaml", "fixed"},
}
"""Methods that apply to each, among others."""


@pytest.mark.parametrize("kind", own_problems.KINDS)
def test_every_check_of_a_task(kind: str) -> None:
    task = own_problems.KINDS[kind]()
    built = [testing.build("method", name, **given) for name, given in FEW.items()]
    short = [method for method in built if why_not(task, method) is None]
    for _, check in testing.task_checks(task, methods=short):
        check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", own_problems.KINDS)
def test_every_method_that_applies_runs(kind: str) -> None:
    for name, check in testing.task_checks(own_problems.KINDS[kind]()):
        if name.startswith("runs["):
            check()


@pytest.mark.parametrize("kind", own_problems.KINDS)
def test_methods_that_apply(kind: str) -> None:
    task = own_problems.KINDS[kind]()
    able = {name for name in methods.names() if why_not(task, methods.get(name)()) is None}
    assert able >= RUN_ON[kind]
    refused = {"protonet", "cavia", "restem", "ridge_rider", "linear_probe"}
    assert not able & refused
    assert ("hoag" in able) == (kind == "decays of weights")


def test_what_is_not_offered_has_a_reason() -> None:
    weights = own_problems.KINDS["weights"]()
    assert "without bounds" in (why_not(weights, methods.get("random")()) or "")
    start = own_problems.KINDS["start of one"]()
    assert "where theta starts" in (why_not(start, methods.get("ift")()) or "")
    decays = own_problems.KINDS["decays"]()
    assert "one linear layer" in (why_not(decays, methods.get("hoag")()) or "")
