"""What all trials of an arena resolve to, kept for the next process.

As with suites, only the classes can tell (:mod:`metabench.suites.recalling`); here thousands of
settings are checked besides, which takes longer than to import torch. In the file every part that
several trials share stands once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, NamedTuple

from metabench.core.cell import Resolved, canonical
from metabench.core.declaration import Declaration
from metabench.core.registry import methods, solvers, tasks
from metabench.suites import recalling
from metabench.suites.arena.definition import Arena, At
from metabench.suites.resolving import declared


class _Known(NamedTuple):
    resolved: Mapping[At, Resolved]
    metrics: Mapping[str, str]


def recall(arena: Arena, budget: str) -> None:
    """Have ready for :meth:`Arena.cells` what every trial under a budget resolves to, and the
    metric of every problem: recalled, or asked for and kept. Nothing is done where the classes are
    imported already, or where the arena names what is not metabench's own.

    Raises as :meth:`Arena.cells`.
    """
    if not recalling.slow() or arena.resolved or not _is_of_metabench(arena):
        return
    question = {"arena": asdict(arena), "budget": budget, "scipy": version("scipy")}
    known = recalling.told(question, lambda: _asked(arena, budget), _plain, _read)
    arena.resolved.update(known.resolved)
    vars(arena)["metrics"] = dict(known.metrics)


def _is_of_metabench(arena: Arena) -> bool:
    named = [(tasks, p.task) for p in arena.problems]
    named += [(methods, m.method) for m in arena.methods]
    named += [(solvers, m.solver) for m in arena.methods if m.solver is not None]
    return all(registry.is_built_in(name) for registry, name in named)


def _asked(arena: Arena, budget: str) -> _Known:
    arena.trials(budget)
    return _Known(arena.resolved, arena.metrics)


def _plain(known: _Known) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    shared: list[Any] = []

    def number(part: Any) -> int:
        text = canonical(part)
        if text not in numbers:
            numbers[text] = len(shared)
            shared.append(part)
        return numbers[text]

    trials = []
    for at, one in known.resolved.items():
        parts = (one.task_settings, one.method_settings, one.solver_settings, one.budget)
        places = [number(part) for part in (*parts, asdict(one.declaration))]
        trials.append([*at, one.task, one.method, one.solver, *places])
    return {"trials": trials, "shared": shared, "metrics": dict(known.metrics)}


def _read(data: Mapping[str, Any]) -> _Known:
    shared: list[Any] = data["shared"]
    said: dict[int, Declaration] = {}
    resolved: dict[At, Resolved] = {}
    for *at, task, method, solver, of_task, of_method, of_solver, budget, told in data["trials"]:
        if told not in said:
            said[told] = declared(shared[told])
        method_id, problem, number, stretch, charged = at
        resolved[method_id, problem, number, stretch, charged] = Resolved(
            task,
            method,
            solver,
            shared[of_task],
            shared[of_method],
            shared[of_solver],
            shared[budget],
            said=said[told],
        )
    return _Known(resolved, data["metrics"])
