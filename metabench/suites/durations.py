"""Seconds that a cell will take, from the finished cells of the same task and method."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metabench.core.cell import CONTRACT, Cell, canonical
from metabench.core.costs import equivalents
from metabench.store.record import Record


@dataclass(frozen=True)
class Work:
    """What a finished cell did, and under which budget."""

    steps: float
    cost: Mapping[str, float]
    budget: Mapping[str, Any]


class Estimates:
    """The finished records of a store, to estimate other cells by."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._finished: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            # Those of another contract may have other budgets, and took other work.
            if record.status == "done" and record.cell.contract == CONTRACT:
                self._finished[record.cell.task, record.cell.method].append(record)
        self._found: dict[str, tuple[float | None, int]] = {}

    def of(self, cell: Cell) -> tuple[float | None, int]:
        """The median over similar cells, scaled by the work planned, and how many those are.

        Cells with equal settings are preferred, whatever their seed and budget.
        """
        # Seeds are many, and cost the same.
        key = canonical([*settings(cell), cell.budget])
        if key not in self._found:
            self._found[key] = self._median(cell)
        return self._found[key]

    def _median(self, cell: Cell) -> tuple[float | None, int]:
        known = self._finished.get((cell.task, cell.method), [])
        equal = [r for r in known if settings(r.cell) == settings(cell)]
        for group in (equal, known):
            works = [Work(r.steps, r.cost, r.cell.budget) for r in group]
            found = [s for s in (scaled(work, cell) for work in works) if s is not None]
            if found:
                return statistics.median(found), len(found)
        return None, 0


def settings(cell: Cell) -> list[Any]:
    """All that a cell is but its seed and its budget."""
    return [
        cell.task,
        cell.method,
        cell.task_settings,
        cell.method_settings,
        cell.solver,
        cell.solver_settings,
    ]


def scaled(work: Work, cell: Cell) -> float | None:
    """Seconds of ``cell`` if it costs as much a unit of work as ``work`` did."""
    # Under the same budget it was all the work there is, also where it ended before a limit: a
    # round of a search that no longer fits is not begun.
    share = 1.0 if work.budget == cell.budget else _share(work, cell.budget)
    if share is None:
        return None
    training: float = work.cost.get("seconds", 0.0) * share
    training = min(training, cell.budget.get("seconds", training))
    episodes = _evaluated(cell.budget, work, share)
    if episodes is None:
        return None
    ratio = episodes / max(1.0, _evaluated(work.budget, work, 1.0) or 0.0)
    return training + work.cost.get("evaluation_seconds", 0.0) * ratio


def _share(work: Work, budget: Mapping[str, Any]) -> float | None:
    """How many times that work a budget asks for, by the first limit that binds."""
    spent = {"outer_steps": float(work.steps), **work.cost}
    spent["cost"] = equivalents(work.cost, budget.get("prices", {})) or 0.0
    ratios: list[float] = []
    for limit, used in spent.items():
        if limit in budget:
            if not used and budget[limit]:
                continue
            ratios.append(budget[limit] / used if used else 0.0)
    return min(ratios) if ratios else None


def _evaluated(budget: Mapping[str, Any], work: Work, share: float) -> float | None:
    """Episodes evaluated on the way and at the end of so many times that work; None where they go
    by cost, and one of its counts has no price."""
    every = budget.get("eval_every_cost")
    if every is None:
        rounds = work.steps * share / budget["eval_every"]
    else:
        cost = budget.get("cost")
        if cost is None:
            taken = equivalents(work.cost, budget["prices"])
            if taken is None:
                return None
            cost = taken * share
        rounds = cost / every
    return float((rounds + 1) * budget["valid_episodes"] + budget["test_episodes"])
