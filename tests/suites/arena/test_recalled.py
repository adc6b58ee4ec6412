"""What an arena's trials resolve to: asked for once, and recalled as it was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import arenas
import pytest

from metabench.core.errors import SuiteError
from metabench.core.registry import methods
from metabench.suites.arena import definition
from metabench.suites.arena.definition import Arena
from metabench.suites.arena.recalled import recall
from metabench.suites.suite import SuiteCell

SMALL = arenas.arena(["one", "two"], ["a", "b"], alone=["b"], anew=["two"])
CHOSEN = {("a", "one"): 3, ("a", "two"): 1, ("b", "one"): 0, ("b", "two"): 0}


def cells(arena: Arena) -> list[SuiteCell]:
    """Of all trials, and of finals."""
    return [*arena.trials("smoke"), *arena.finals("smoke", CHOSEN)]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers any more."""

    def asked(*given: Any) -> None:
        raise AssertionError(f"asked for {given}")

    monkeypatch.setattr(definition, "resolve", asked)
    monkeypatch.setattr(definition.tasks, "get", asked)


def test_what_is_recalled_is_what_was_found(kept: Path, request: pytest.FixtureRequest) -> None:
    asked, once, again = (replace(SMALL) for _ in range(3))
    found, metrics = cells(asked), asked.metrics
    recall(once, "smoke")
    assert cells(once) == found and len(list(kept.iterdir())) == 1
    request.getfixturevalue("silent")
    recall(again, "smoke")
    recalled = cells(again)
    assert recalled == found
    assert [item.cell.key for item in recalled] == [item.cell.key for item in found]
    assert [item.declaration for item in recalled] == [item.declaration for item in found]
    assert vars(again)["metrics"] == metrics and set(metrics) == {"one", "two"}


@pytest.mark.usefixtures("kept")
def test_another_arena_is_another_question(request: pytest.FixtureRequest) -> None:
    recall(replace(SMALL), "smoke")
    request.getfixturevalue("silent")
    rules = SMALL.budgets["smoke"]
    dearer = replace(SMALL.problems[0], cap=SMALL.problems[0].cap + 1)
    changes: list[Mapping[str, Any]] = [
        {"budgets": {"smoke": replace(rules, trials=rules.trials + 1)}},
        {"budgets": {"smoke": replace(rules, stretch=2.0)}},
        {"problems": [dearer, *SMALL.problems[1:]]},
        {"methods": SMALL.methods[:1]},
    ]
    for change in changes:
        with pytest.raises(AssertionError, match="asked for"):
            recall(replace(SMALL, **change), "smoke")


def test_nothing_is_kept_of_what_somebody_else_has(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "is_built_in", lambda name: False)
    arena = replace(SMALL)
    recall(arena, "smoke")
    assert not arena.resolved and not kept.exists()


def test_an_arena_that_cannot_be_played_is_not_kept(kept: Path) -> None:
    problem = replace(SMALL.problems[0], prices={"inner_gradients": 1.0})
    with pytest.raises(SuiteError, match="problem one: prices lack"):
        recall(replace(SMALL, problems=[problem]), "smoke")
    assert not kept.exists()
