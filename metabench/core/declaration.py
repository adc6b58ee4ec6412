"""What plans and tables ask of the task, method and solver of a cell, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metabench.core.capabilities import why_not
from metabench.core.readouts import by_steps


@dataclass(frozen=True)
class Declaration:
    """What a task, a method and a solver say of themselves under their settings. It depends on code
    and settings alone, whatever machine looks; the fields are those of
    :class:`metabench.contract.task.Task` unless another is named."""

    why_not: str | None
    """Why the theory does not allow them together
    (:func:`metabench.core.capabilities.why_not`)."""
    data: tuple[str, ...]
    source: str
    packages: tuple[str, ...]
    """Those of the task, then the method's and the solver's."""
    metrics: tuple[str, ...] | None
    evaluations: tuple[str, ...] | None
    readouts: tuple[str, ...]
    """What names of evaluations end in that the harness adds (:mod:`metabench.core.readouts`)."""
    protocol: str
    outer_on_validation: bool
    lacks_selection: str | None
    learns: bool
    """Whether the method needs something of a task: others learn nothing outside."""
    looks: bool
    """Whether the task has a ``missing`` of its own, which looks at the machine: it is asked
    whenever that matters."""


def declare(task: Any, method: Any, solver: Any, budget: Any) -> Declaration:
    """What they declare; of the budget only the readouts are."""
    return Declaration(
        why_not(task, method, solver),
        tuple(task.data),
        task.source,
        (*task.packages, *method.packages, *solver.packages),
        None if task.metrics is None else tuple(task.metrics),
        None if task.evaluations is None else tuple(task.evaluations),
        tuple(by_steps(method, budget)),
        task.protocol,
        task.outer_on_validation,
        task.lacks_selection,
        bool(method.needs),
        has_own(type(task), "missing"),
    )


def has_own(task: type, name: str) -> bool:
    """Whether a class of tasks replaces what ``metabench.Task`` has under a name."""
    there = next(c for c in task.__mro__ if name in vars(c))
    return (there.__module__, there.__qualname__) != ("metabench.contract.task", "Task")
