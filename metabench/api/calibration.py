"""Measuring what counts cost on the problems of a suite, for tables of costs in one unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from metabench.api.verbs import DEFAULT_BUDGET, load, open_store
from metabench.core.errors import DataMissing, NotApplicable
from metabench.store import prices as kept
from metabench.store.prices import Prices
from metabench.store.store import Store
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
    from metabench.run.prices import measure

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
