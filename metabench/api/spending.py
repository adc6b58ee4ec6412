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
class Left:
    """What is not run yet, by how its hours are known: from ``similar`` cells that have finished in
    this store, from a ``published`` run with the same settings on another machine, or not at all
    (``unknown``): the number of cells, and hours of one after another."""

    similar: int = 0
    similar_hours: float = 0.0
    published: int = 0
    published_hours: float = 0.0
    machines: tuple[str, ...] = ()
    """Of the published runs."""
    unknown: int = 0

    @property
    def cells(self) -> int:
        """All of them."""
        return self.similar + self.published + self.unknown


@dataclass(frozen=True)
class Cost:
    """Of some cells together; hours of training and evaluation by the clock, of each rank where
    several share a cell, by where they ran: on a GPU, or on CPUs alone."""

    name: str
    cells: int
    gpu_hours: float
    cpu_hours: float
    attempts: int
    left: Left = Left()
    """What is not run yet."""


def seconds(record: Record) -> float:
    """Training and evaluation, all attempts that a result was built on together."""
    return record.cost.get("seconds", 0.0) + record.cost.get("evaluation_seconds", 0.0)


def held(record: Record) -> float:
    """Seconds of all ranks together, those of waiting for each other included."""
    return seconds(record) * int(record.environment.get("ranks") or 1)


def on_gpu(record: Record) -> bool:
    """Whether a record was made on a GPU."""
    return str(record.environment.get("device", "")).startswith("cuda")


def _left(planned: Sequence[Planned]) -> Left:
    similar = [p.estimated_seconds for p in planned if p.estimated_seconds is not None]
    published = [p for p in planned if p.published_seconds is not None]
    return Left(
        len(similar),
        sum(similar) / 3600,
        len(published),
        sum(p.published_seconds or 0.0 for p in published) / 3600,
        tuple(dict.fromkeys(p.published_on for p in published)),
        len(planned) - len(similar) - len(published),
    )


def _cost(name: str, records: Sequence[Record], left: Sequence[Planned] = ()) -> Cost:
    return Cost(
        name,
        len(records),
        sum(held(r) for r in records if on_gpu(r)) / 3600,
        sum(held(r) for r in records if not on_gpu(r)) / 3600,
        sum(r.attempts for r in records),
        _left(left),
    )


def by_method(records: Iterable[Record]) -> list[Cost]:
    """Costs of a whole store, by method and task, the most expensive first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record.cell.method} on {record.cell.task}", []).append(record)
    found = [_cost(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda c: -(c.gpu_hours + c.cpu_hours))


def by_row(planned: Sequence[Planned], open_states: Iterable[str]) -> list[Cost]:
    """Costs of a suite by row, with what is left: the cells in ``open_states``, and the estimates
    that :func:`metabench.suites.planning.plan` has of them."""
    states = frozenset(open_states)
    rows: dict[str, list[Planned]] = {}
    for p in planned:
        rows.setdefault(p.row, []).append(p)
    out = []
    for row, group in rows.items():
        records = [p.record for p in group if p.record is not None]
        out.append(_cost(row, records, [p for p in group if p.state in states]))
    return out


def total(costs: Sequence[Cost]) -> Cost:
    """All together."""
    left = [c.left for c in costs]
    return Cost(
        "all",
        sum(c.cells for c in costs),
        sum(c.gpu_hours for c in costs),
        sum(c.cpu_hours for c in costs),
        sum(c.attempts for c in costs),
        Left(
            sum(x.similar for x in left),
            sum(x.similar_hours for x in left),
            sum(x.published for x in left),
            sum(x.published_hours for x in left),
            tuple(dict.fromkeys(machine for x in left for machine in x.machines)),
            sum(x.unknown for x in left),
        ),
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
