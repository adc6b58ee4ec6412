"""What the published runs took, cell by cell, for plans on machines that have run nothing yet.

``published_costs.json`` is written by ``python -m benchmarks.from_results.published_costs`` from
the committed records of the suites at laptop budget. Cells are found by their task, method, solver
and settings; another budget scales what they took by the work planned.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from metabench.core.cell import Cell, canonical
from metabench.suites.durations import Work, scaled, settings
from metabench.suites.listing import COSTS

CLOCKS = ("seconds", "evaluation_seconds")
"""Of a cell's costs, those that make up its time."""


@dataclass(frozen=True)
class Place:
    """What the cells of a row and column took: means over their seeds. ``settings``: the
    beginning of the hash of all but seed and budget; ``budget``: a number in the table's list."""

    row: str
    column: str
    settings: str
    budget: int
    steps: float
    cost: dict[str, float]


@dataclass(frozen=True)
class PublishedSuite:
    """The published run of a suite: its machine, its cells, and their seconds together, training
    and evaluation, one after another."""

    machine: str
    cells: int
    seconds: float
    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """The whole file."""

    command: str
    budgets: list[dict[str, Any]]
    suites: dict[str, PublishedSuite]

    @functools.cached_property
    def _places(self) -> dict[str, list[tuple[Place, str]]]:
        out: dict[str, list[tuple[Place, str]]] = {}
        for suite in self.suites.values():
            for place in suite.places:
                out.setdefault(place.settings, []).append((place, suite.machine))
        return out

    def of(self, cell: Cell) -> tuple[float, str] | None:
        """Seconds of a cell on the machine of the published run, and that machine; None where
        nothing with these settings was published, or where the budget is set in what it did not
        use. What it took under the same budget counts as it is, before what is scaled."""
        places = self._places.get(settings_key(cell), [])
        for place, machine in places:
            if self.budgets[place.budget] == cell.budget:
                return sum(place.cost[clock] for clock in CLOCKS), machine
        for place, machine in places:
            work = Work(place.steps, place.cost, self.budgets[place.budget])
            if (seconds := scaled(work, cell)) is not None:
                return seconds, machine
        return None


def settings_key(cell: Cell) -> str:
    """Of all that a cell is but its seed and its budget: 12 digits of a sha256."""
    return hashlib.sha256(canonical(settings(cell)).encode()).hexdigest()[:12]


@functools.cache
def table() -> Table:
    """What the package ships."""
    return TypeAdapter(Table).validate_json(COSTS.read_bytes())
