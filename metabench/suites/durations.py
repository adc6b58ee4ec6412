"""Seconds that a cell will take, from the finished cells of the same task and method."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from metabench.core.cell import CONTRACT, Cell, canonical
from metabench.core.costs import equivalents
from metabench.store.record import Record


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
        key = canonical([cell.task, cell.method, *_settings(cell), cell.budget])
        if key not in self._found:
            self._found[key] = self._median(cell)
        return self._found[key]

    def _median(self, cell: Cell) -> tuple[float | None, int]:
        known = self._finished.get((cell.task, cell.method), [])
        equal = [r for r in known if _settings(r.cell) == _settings(cell)]
        for group in (equal, known):
            found = [s for s in (_scaled(r, cell) for r in group) if s is not None]
            if found:
                return statistics.median(found), len(found)
        return None, 0


def _settings(cell: Cell) -> tuple[Any, ...]:
    return (cell.task_settings, cell.method_settings, cell.solver, cell.solver_settings)


def _scaled(record: Record, cell: Cell) -> float | None:
    """Seconds of ``cell`` if it costs as much a unit of work as ``record`` did."""
    share = _share(record, cell.budget)
    if share is None:
        return None
    training: float = record.cost.get("seconds", 0.0) * share
    training = min(training, cell.budget.get("seconds", training))
    episodes = _evaluated(cell.budget, record.steps * share)
    ratio = episodes / max(1.0, _evaluated(record.cell.budget, record.steps))
    return training + record.cost.get("evaluation_seconds", 0.0) * ratio


def _share(record: Record, budget: Mapping[str, Any]) -> float | None:
    """How many times the record's work a budget asks for, by the first limit that binds."""
    spent = {"outer_steps": float(record.steps), **record.cost}
    spent["cost"] = equivalents(record.cost, budget.get("prices", {})) or 0.0
    ratios: list[float] = []
    for limit, used in spent.items():
        if limit in budget:
            if not used and budget[limit]:
                continue
            ratios.append(budget[limit] / used if used else 0.0)
    return min(ratios) if ratios else None


def _evaluated(budget: Mapping[str, Any], steps: float) -> float:
    """Episodes evaluated on the way and at the end."""
    every = budget.get("eval_every_cost")
    rounds = (steps / budget["eval_every"] if every is None else budget["cost"] / every) + 1
    return float(rounds * budget["valid_episodes"] + budget["test_episodes"])
