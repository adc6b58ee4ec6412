"""What the leaderboard page knows of an arena: plain data, scored and ranked in the page.

The page scores records itself, the same way for those that it was written with and for those that
somebody drops onto it: here are the problems with their fixed and bound, and the records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from metabench.core import settings
from metabench.core.capabilities import causes
from metabench.core.cell import CONTRACT
from metabench.core.costs import equivalents
from metabench.core.errors import MetabenchError
from metabench.core.registry import tasks
from metabench.store.published import private
from metabench.store.record import SCHEMA, Curve, Record
from metabench.suites.arena.definition import (
    AS_SHIPPED,
    TRACKS,
    Arena,
    ArenaMethod,
    ArenaProblem,
    Chosen,
)
from metabench.suites.planning import NEVER_RUN, Planned

DIGITS = 6
"""Significant digits of a learning curve in the page."""
LEFT_OUT = ("seeds", "files", "schema")
"""Of a record: numbers that follow from the cell, and what lies beside the record in its store."""


def page_data(
    arena: Arena,
    budget: str,
    trials: Sequence[Planned],
    finals: Sequence[Planned],
    chosen: Chosen,
    curves: Mapping[str, Curve],
) -> dict[str, Any]:
    """JSON data of an arena under a budget; ``curves``: key of a record to its learning curve.

    Raises MetabenchError where finals have not been run, or where nobody plays.
    """
    played = [p for p in finals if p.state not in NEVER_RUN]
    missing = [p for p in played if p.record is None]
    if missing or not played:
        first = f", the first {_name(missing[0])}: {missing[0].why}" if missing else ""
        raise MetabenchError(
            f"the leaderboard of {arena.name} (budget {budget}) shows finished finals, and "
            f"{len(missing) or 'all'} are missing{first}; run metabench arena first"
        )
    rules = arena.budget(budget)
    on = {p.column for p in played}
    problems = [p for p in arena.problems if p.id in on]
    records = _Records(problems, curves)
    entries = [_entry(method, trials, played, chosen, records) for method in arena.methods]
    for entry in entries:
        entry["refused"] = _refused(entry, trials, on)
    return {
        "arena": {
            "name": arena.name,
            "title": arena.title,
            "description": arena.description,
            "budget": budget,
            "trials": rules.trials,
            "tuning_seeds": rules.tuning_seeds,
            "seeds": rules.seeds,
        },
        "contract": CONTRACT,
        "schema": SCHEMA,
        "tracks": {name: what for name, what in TRACKS.items() if name in _tracks(problems)},
        "problems": [_problem(problem, arena, played) for problem in problems],
        "entries": [entry for entry in entries if entry["pairs"]],
        "absent": [
            {name: entry[name] for name in ("id", "label", "refused")}
            for entry in entries
            if entry["refused"] and not entry["pairs"]
        ],
        "records": records.found,
        "environments": records.environments,
    }


def _name(planned: Planned) -> str:
    return f"{planned.row}/{planned.column} seed {planned.cell.seed}"


def _tracks(problems: Sequence[ArenaProblem]) -> set[str]:
    return {p.track for p in problems}


def _problem(problem: ArenaProblem, arena: Arena, played: Sequence[Planned]) -> dict[str, Any]:
    """A problem, and what a record must agree with to be one of it: the task's settings but for
    those that methods of the arena have of their own (``free``), and the budget of a run."""
    task: Any = tasks.get(problem.task)
    of_methods = [
        *(name for m in arena.methods for name in m.set.get("task", {})),
        *(
            name.partition(".")[2]
            for m in arena.methods
            for name in m.space
            if name.startswith("task.")
        ),
    ]
    built = settings.build(task, problem.set.get("task", {}), f"task {problem.task}")
    return {
        "id": problem.id,
        "label": problem.label or problem.id,
        "track": problem.track,
        "task": problem.task,
        "metric": task.metric,
        "goal": task.goal,
        "fixed": problem.fixed,
        "bound": problem.bound,
        "target": problem.score(problem.target),
        "retrained": problem.retrain is not None,
        "split": _split(problem),
        "prices": problem.prices,
        "settings": settings.values(built),
        "free": sorted({*of_methods}),
        "budget": next(p.cell.budget for p in played if p.column == problem.id),
    }


def _split(problem: ArenaProblem) -> str:
    return "selection" if problem.select == "best_selection" else "valid"


def _entry(
    method: ArenaMethod,
    trials: Sequence[Planned],
    finals: Sequence[Planned],
    chosen: Chosen,
    records: _Records,
) -> dict[str, Any]:
    """A method: on each problem its trials with the scored metric on the tuning seeds (None where
    a run ended without numbers), and the numbers of its records in the finals."""
    pairs: dict[str, dict[str, Any]] = {}
    for p in finals:
        row = p.row.removesuffix(AS_SHIPPED)
        if row == method.id and p.record is not None:
            pair = pairs.setdefault(
                p.column,
                {"trials": [], "chosen": chosen[row, p.column], "tuned": [], "shipped": []},
            )
            pair["tuned" if p.row == row else "shipped"].append(records.add(p.column, p.record))
    for p in trials:
        row, _, number = p.row.rpartition("#")
        if row != method.id or p.column not in pairs or p.record is None:
            continue
        of = pairs[p.column]["trials"]
        if not of or of[-1]["number"] != int(number):
            of.append({"number": int(number), "settings": _drawn(method, p), "values": []})
        of[-1]["values"].append(records.selected(p.column, p.record))
    return {
        "id": method.id,
        "label": method.label or method.id,
        "method": method.method,
        "pairs": pairs,
    }


def _refused(
    entry: Mapping[str, Any], trials: Sequence[Planned], on: Collection[str]
) -> dict[str, list[str]]:
    """Problem of the page to why the method does not apply to it, one by one."""
    return {
        p.column: causes(p.reason, p.cell.method)
        for p in trials
        if p.state in NEVER_RUN and p.column in on and p.row.rpartition("#")[0] == entry["id"]
    }


def _drawn(method: ArenaMethod, planned: Planned) -> dict[str, Any]:
    """The settings of a trial that are drawn from the method's space."""
    groups = {
        "task": planned.cell.task_settings,
        "method": planned.cell.method_settings,
        "solver": planned.cell.solver_settings,
    }
    names = [name.partition(".") for name in method.space]
    return {f"{group}.{name}": groups[group].get(name) for group, _, name in names}


class _Records:
    """The records that the page holds, each once."""

    def __init__(self, problems: Sequence[ArenaProblem], curves: Mapping[str, Curve]) -> None:
        self.problems = {p.id: p for p in problems}
        self.curves = curves
        self.found: list[dict[str, Any]] = []
        self.environments: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def selected(self, problem: str, record: Record) -> float | None:
        """The metric of the state that a run selected, on the examples that it was selected by."""
        if record.status != "done":
            return None
        metric: str = getattr(tasks.get(record.cell.task), "metric")  # noqa: B009
        return record.metrics[_split(self.problems[problem])][metric].mean

    def add(self, problem: str, record: Record) -> int:
        """The place of a record in ``found``."""
        if record.key not in self._places:
            self._places[record.key] = len(self.found)
            self.found.append(self._data(self.problems[problem], record))
        return self._places[record.key]

    def _data(self, problem: ArenaProblem, record: Record) -> dict[str, Any]:
        """A record without what names a person or a machine, nor what would fill the page."""
        told = private(record)
        data = {k: v for k, v in told.as_dict().items() if k not in LEFT_OUT}
        cell = asdict(told.cell)
        data["cell"] = {k: v for k, v in cell.items() if k not in ("budget", "contract")}
        data["lam"] = {k: v for k, v in told.lam.items() if k in ("numbers", "summary")}
        if told.environment not in self.environments:
            self.environments.append(told.environment)
        data["environment"] = self.environments.index(told.environment)
        data["curve"] = self._curve(problem, record)
        return data

    def _curve(self, problem: ArenaProblem, record: Record) -> Curve:
        """Outer steps, counted cost, seconds, and the metric on the split that selects."""
        curve = self.curves.get(record.key, {})
        metric: str = getattr(tasks.get(record.cell.task), "metric")  # noqa: B009
        counts = [c for c in curve if c.startswith("cost/") and c != "cost/seconds"]
        cost = [
            equivalents({c[5:]: curve[c][i] or 0.0 for c in counts}, problem.prices)
            for i in range(len(curve.get("step", [])))
        ]
        columns = {
            "step": curve.get("step", []),
            "cost": cost,
            "seconds": curve.get("cost/seconds", []),
            "value": curve.get(f"{_split(problem)}/{metric}", []),
        }
        return {name: [_rounded(v) for v in values] for name, values in columns.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
