"""What runs have cost, by method and suite, and how good past estimates were."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metabench.cluster import submission as folders
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites.planning import Planned


@dataclass(frozen=True)
class Cost:
    """Of some cells together; hours of training and evaluation, of each rank where several share a
    cell."""

    name: str
    cells: int
    gpu_hours: float
    cpu_hours: float
    attempts: int
    left_hours: float | None = None
    """Estimated for what is not run yet; None where nothing is known."""
    left_cells: int = 0


def seconds(record: Record) -> float:
    """Training and evaluation, all attempts that a result was built on together."""
    return record.cost.get("seconds", 0.0) + record.cost.get("evaluation_seconds", 0.0)


def held(record: Record) -> float:
    """Seconds of all ranks together, those of waiting for each other included."""
    return seconds(record) * int(record.environment.get("ranks") or 1)


def on_gpu(record: Record) -> bool:
    """Whether a record was made on a GPU."""
    return str(record.environment.get("device", "")).startswith("cuda")


def _cost(name: str, records: Sequence[Record], left: Sequence[Planned] = ()) -> Cost:
    known = [p.estimated_seconds for p in left if p.estimated_seconds is not None]
    return Cost(
        name,
        len(records),
        sum(held(r) for r in records if on_gpu(r)) / 3600,
        sum(held(r) for r in records if not on_gpu(r)) / 3600,
        sum(r.attempts for r in records),
        sum(known) / 3600 if known else None,
        len(left),
    )


def by_method(records: Iterable[Record]) -> list[Cost]:
    """Costs of a whole store, by method and task, the most expensive first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record.cell.method} on {record.cell.task}", []).append(record)
    found = [_cost(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda c: -(c.gpu_hours + c.cpu_hours))


def by_row(planned: Sequence[Planned], store: Store, open_states: Iterable[str]) -> list[Cost]:
    """Costs of a suite by row, with an estimate of what is left."""
    states = frozenset(open_states)
    rows: dict[str, list[Planned]] = {}
    for p in planned:
        rows.setdefault(p.row, []).append(p)
    out = []
    for row, group in rows.items():
        records = [r for p in group if (r := store.get(p.cell.key)) is not None]
        out.append(_cost(row, records, [p for p in group if p.state in states]))
    return out


def total(costs: Sequence[Cost]) -> Cost:
    """All together."""
    left = [c.left_hours for c in costs if c.left_hours is not None]
    return Cost(
        "all",
        sum(c.cells for c in costs),
        sum(c.gpu_hours for c in costs),
        sum(c.cpu_hours for c in costs),
        sum(c.attempts for c in costs),
        sum(left) if left else None,
        sum(c.left_cells for c in costs),
    )


@dataclass(frozen=True)
class Estimated:
    """How the estimates of one submission came out: measured seconds over estimated ones."""

    submission: str
    cells: int
    median: float
    low: float
    high: float
    """The tenth and the ninetieth percentile (all of it for fewer than ten cells)."""


def estimates(store: Store) -> list[Estimated]:
    """Past estimates against what their cells took, oldest first."""
    out = []
    for submission in folders.submissions(store):
        ratios = []
        for group in folders.groups(submission):
            for m in group.members:
                record = store.get(m.cell.key) if m.estimated_seconds else None
                if record is not None and record.status == "done" and m.estimated_seconds:
                    ratios.append(seconds(record) / m.estimated_seconds)
        if ratios:
            ratios.sort()
            tenth = len(ratios) // 10
            out.append(
                Estimated(
                    submission.name,
                    len(ratios),
                    statistics.median(ratios),
                    ratios[tenth],
                    ratios[-1 - tenth],
                )
            )
    return out
