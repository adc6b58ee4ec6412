"""Which state of a run is tested: the best on held-out episodes, or the last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from metabench.contract.method import State
from metabench.core.cell import Budget
from metabench.run.attempts.checkpoint import Boundary
from metabench.run.attempts.guards import Untouched
from metabench.run.evaluation import Metrics

Found = dict[str, Metrics]
"""What an evaluation on the way has found, by split."""


class Selection:
    """The state last validated and the best one so far, which nobody may write to."""

    def __init__(self, task: Any, budget: Budget) -> None:
        self.task, self.budget = task, budget
        self._validated: tuple[State, Found] | None = None
        self._kept: dict[str, Untouched] = {}

    @property
    def splits(self) -> list[str]:
        """What a state is evaluated on: "valid", and "selection" where the budget chooses by it."""
        return ["valid"] + ["selection"] * (self.budget.select == "best_selection")

    def known(self, state: State) -> Found | None:
        """What is known of a state: where a step has not moved it, what was found before it."""
        if self._validated is None or self._validated[0] is not state:
            return None
        return self._validated[1]

    def keep(self, state: State, found: Found) -> None:
        """Take down what has just been found of a state."""
        self._validated = state, found
        self._kept["validated"] = Untouched(state, bits=True)

    def select(self, at: Boundary, found: Found) -> Boundary:
        """The boundary, with its own state as the best one where ``found`` of it says so."""
        metrics, chosen_by = found["valid"], found.get("selection", {})
        first = self.budget.select == "last" or at.best is None
        if not first and not self.is_better(chosen_by or metrics, at.selection or at.valid):
            return at
        self._kept["best"] = self._kept["validated"]
        return replace(at, best=at.state, best_step=at.step, valid=metrics, selection=chosen_by)

    def is_better(self, new: Metrics, old: Metrics) -> bool:
        """Whether the task's metric has improved."""
        a, b = new[self.task.metric].mean, old[self.task.metric].mean
        return a > b if self.task.goal == "max" else a < b

    def check_kept(self) -> None:
        """Raise ChangedInPlace where the state last validated, or the best one, was written to."""
        for held in self._kept.values():
            held.check("after it was validated")
