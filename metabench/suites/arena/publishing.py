"""Writes what an arena ships: :mod:`metabench.suites.arena.scores` says what is in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from metabench.core.cell import CONTRACT, canonical
from metabench.core.costs import COUNT_NAMES
from metabench.store import lines
from metabench.store.published import SCORES, private
from metabench.store.record import RETRAINED, Curve, Record
from metabench.suites.arena.definition import Arena, Chosen
from metabench.suites.arena.scores import (
    SCHEMA,
    ArenaScores,
    Course,
    Head,
    Made,
    Pair,
    Runs,
    cells_of,
    hash_of,
    split_of,
)

LEFT_OUT = (
    "metrics that nothing is scored by, deviations over episodes, lam, notes, tracebacks, memory, "
    "seeds of the streams, times of single runs, learning curves of the trials; whole records are "
    "in the store that this was published from"
)
DIGITS = 3
"""Significant digits of seconds."""
MADE = frozenset(
    {
        "adapted_at_once",
        "device",
        "engine",
        "git",
        "machine",
        "packages",
        "ranks",
        "threads",
        "versions",
        "workers",
    }
)
"""Entries of an environment that many runs share."""
OWN = frozenset({"affinity"})
"""Entries of a machine that differ from process to process."""


def write(
    path: str | Path,
    arena: Arena,
    budget: str,
    chosen: Chosen,
    records: Mapping[str, Record],
    curve: Callable[[Record], Curve],
    came: ArenaScores | None = None,
) -> Path:
    """Write the scores of these records (by key) to ``path``, without what names a person or a
    machine. Equal records give equal bytes. ``came``: scores that are there already; a line of
    theirs stays as long as not every run of it is among the records.

    Raises StoreError where a record is not whole, a curve cannot be read, or the disk refuses.
    """
    made, out = _Groups(), []
    for method, problem in arena.pairs(budget):
        number = chosen.get((method.id, problem.id))
        cells = cells_of(arena, budget, method, problem, number)
        trials, finals = ([records.get(cell.key) for cell in each] for each in cells)
        there = came.pair(method.id, problem.id) if came is not None else None
        if came is not None and there is not None and not all(trials + finals):
            out.append(lines.sealed(asdict(made.moved(there, came.head.made))))
            continue
        if not any(trials + finals):
            continue
        metric, split = arena.metrics[problem.id], split_of(problem)
        readouts = [*dict.fromkeys(("test", "valid", split, "test" + RETRAINED))]
        curves = [{} if r is None else curve(r) for r in finals]
        pair = Pair(
            method=method.id,
            problem=problem.id,
            metric=metric,
            cells=hash_of(metric, cells[0] + cells[1]),
            trials=_runs(trials, metric, ["test", split], made),
            chosen=number,
            finals=_runs(finals, metric, readouts, made, curves, f"{split}/{metric}"),
        )
        out.append(lines.sealed(asdict(pair)))
    head = Head(SCORES, SCHEMA, CONTRACT, arena.name, budget, len(out), made.found, LEFT_OUT)
    lines.write(Path(path), [lines.sealed(asdict(head)), *out])
    return Path(path)


class _Groups:
    """What runs were made with, each once."""

    def __init__(self) -> None:
        self.found: list[Made] = []
        self._places: dict[str, int] = {}

    def add(self, record: Record) -> int:
        """The place of what a record was made with."""
        environment = {k: v for k, v in record.environment.items() if k in MADE}
        if "machine" in environment:
            machine = environment["machine"]
            environment["machine"] = {k: v for k, v in machine.items() if k not in OWN}
        day = record.ended[:10]
        return self._one_more(Made(environment, 1, day, day))

    def moved(self, pair: Pair, made: Sequence[Made]) -> Pair:
        """A line of another file, whose runs were made with these, as a line of this one."""

        def here(runs: Runs) -> Runs:
            return replace(
                runs, made=[None if i is None else self._one_more(made[i]) for i in runs.made]
            )

        return replace(pair, trials=here(pair.trials), finals=here(pair.finals))

    def _one_more(self, of: Made) -> int:
        """The place of what one more run was made with, on a day between these."""
        at = self._places.setdefault(canonical(of.environment), len(self.found))
        if at == len(self.found):
            self.found.append(replace(of, cells=1))
        else:
            was = self.found[at]
            days = sorted(d for d in (was.first, was.last, of.first, of.last) if d) or [""]
            self.found[at] = Made(of.environment, was.cells + 1, days[0], days[-1])
        return at


def _runs(
    whole: Sequence[Record | None],
    metric: str,
    splits: Sequence[str],
    made: _Groups,
    curves: Sequence[Curve] = (),
    column: str = "",
) -> Runs:
    """The columns of these runs. ``curves``: their learning curves, with ``column`` the metric;
    empty where none are kept."""
    records = [None if r is None else private(r.whole()) for r in whole]
    courses: list[Course] = []
    places: list[int | None] = []
    for i, record in enumerate(records):
        if record is None:
            places.append(None)
            continue
        course = _course(record, metric, splits, curves[i] if curves else {})
        if course not in courses:
            courses.append(course)
        places.append(courses.index(course))

    def means(split: str) -> list[float | None]:
        found = [None if r is None else r.metrics.get(split, {}).get(metric) for r in records]
        return [None if estimate is None else estimate.mean for estimate in found]

    scores = {split: means(split) for split in splits}

    def seconds(clock: str) -> list[float | None]:
        found = [None if r is None else r.cost.get(clock) for r in records]
        return [None if s is None else float(f"{s:.{DIGITS}g}") for s in found]

    return Runs(
        status=[None if r is None else r.status for r in records],
        made=[None if r is None else made.add(r) for r in records],
        course=places,
        selected_step=[None if r is None else r.selected_step for r in records],
        seconds=seconds("seconds"),
        evaluation_seconds=seconds("evaluation_seconds"),
        scores={s: of for s, of in scores.items() if any(mean is not None for mean in of)},
        courses=courses,
        curve=[curve.get(column, []) for curve in curves],
        reasons={str(i): r.reason for i, r in enumerate(records) if r is not None and r.reason},
    )


def _course(record: Record, metric: str, splits: Sequence[str], curve: Curve) -> Course:
    kept = ("step", *(f"cost/{name}" for name in COUNT_NAMES))
    return Course(
        steps=record.steps,
        cost={name: record.cost[name] for name in COUNT_NAMES if name in record.cost},
        episodes={s: of[metric].n for s in splits if metric in (of := record.metrics.get(s, {}))},
        curve={name: curve[name] for name in kept if name in curve},
    )
