"""Measuring what counts cost on the problems of a suite or an arena, for costs in one unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metabench.api.arguments import DEFAULT_BUDGET, load, once, open_store
from metabench.core.errors import DataMissing, NotApplicable
from metabench.store import prices as kept
from metabench.store.prices import Prices
from metabench.store.store import Store
from metabench.suites.arena import definition as arenas
from metabench.suites.arena.definition import Arena
from metabench.suites.suite import Suite


@dataclass(frozen=True)
class Calibration:
    """The prices of a suite's problems, new and known ones, and why some have none, in words."""

    prices: list[Prices] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def calibrate(
    suite: str | Path | Suite,
    *,
    budget: str = DEFAULT_BUDGET,
    store: str | Path | Store | None = None,
    again: bool = False,
    listener: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure what each count costs on every problem of the suite under this budget, and keep it in
    the store, whose tables of costs then have inner-gradient equivalents. What is known is measured
    only ``again``. Each problem is kept as soon as it is measured; ``listener`` is told of it.

    The machine should have nothing else to do. Raises StoreError for a damaged file of prices.
    """
    from metabench.run.costs.prices import measure

    suite, store = load(suite), open_store(store)
    path = store.root / kept.FILE
    known = kept.read(path)
    found: dict[str, Prices] = {}
    without: dict[str, None] = {}
    for place in suite.cells(budget):
        key = kept.problem_key(place.cell.task, place.cell.task_settings)
        if place.skip is not None or key in found:
            continue
        if key in known and not again:
            found[key] = known[key]
            continue
        try:
            found[key] = measure(place.parts[0])
        except (NotApplicable, DataMissing) as error:
            without[f"{place.column}: {error}"] = None
            continue
        kept.keep(path, [found[key]])
        listener(f"{place.column} ({place.cell.task})")
    return Calibration([*found.values()], [*without])


@dataclass(frozen=True)
class ProblemCalibration:
    """What the file of an arena says of a problem: prices of counts, and the smoothness L, the
    largest over the seeds that were asked for; None where a task has no second derivatives."""

    problem: str
    prices: Prices
    smoothness: float | None


def calibrate_arena(
    arena: str | Path | Arena,
    *,
    budget: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    listener: Callable[[ProblemCalibration], None] = lambda _: None,
) -> list[ProblemCalibration]:
    """Measure prices and smoothness of every problem of an arena, or of those that are played under
    ``budget``; nothing is kept, as both stand in its file. ``listener`` is told of each as it is
    found.

    The machine should have nothing else to do. Raises SuiteError, UnknownName, SettingError,
    DataMissing, and NotApplicable for a problem without gradients.
    """
    from metabench.core import settings
    from metabench.core.registry import tasks
    from metabench.run.costs.prices import measure, smoothness

    seeds = once(seeds)
    known = arena if isinstance(arena, Arena) else arenas.load(Path(arena))
    played = None if budget is None else {problem.id for _, problem in known.pairs(budget)}
    found = []
    for problem in known.problems:
        if played is not None and problem.id not in played:
            continue
        task: Any = settings.build(
            tasks.get(problem.task), problem.set.get("task", {}), problem.task
        )
        try:
            largest = max(smoothness(task, seed=seed) for seed in seeds)
        except NotApplicable:
            largest = None
        found.append(ProblemCalibration(problem.id, measure(task), largest))
        listener(found[-1])
    return found
