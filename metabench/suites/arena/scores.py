"""What an arena ships of its trials and finals: the scores, in a seventh of what records take.

A file of sealed lines (:mod:`metabench.store.lines`), written by
:mod:`metabench.suites.arena.publishing`. The first is the head: ``form``, ``schema``, ``contract``,
the arena and the budget, what was ``left_out``, and ``made``: what the runs were made with (commit,
versions, machine), each once, with how many runs there are of it and their first and last day.
Every other line is a method on a problem: its ``trials``, trial by trial and seed by seed, and its
``finals``, first those of the trial that was ``chosen``, then as shipped where that is another one.
Settings and keys are not in the file: they follow from the arena, and ``cells`` is a hash of the
keys. Where the arena's cells are others by now, the line does not count.

Kept to the last bit: statuses, reasons, the scored metric on every split that it is read on
(trials: the one that chooses, and test), counts, steps, and of the finals the learning curve of the
split that chooses. Seconds have three digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, with_config

from metabench.core.cell import CONTRACT, Cell, canonical
from metabench.core.errors import StoreError, WrongPath
from metabench.core.settings import strictly
from metabench.core.text import counted
from metabench.store import lines
from metabench.store.files import BadFile
from metabench.store.published import SCORES
from metabench.store.record import (
    Count,
    Curve,
    Environment,
    Estimate,
    Record,
    ScoresOnly,
    Status,
)
from metabench.suites.arena.definition import Arena, ArenaMethod, ArenaProblem
from metabench.suites.arena.recalled import recall
from metabench.suites.schema import strict

FILE = "scores.jsonl.gz"
SCHEMA = 1
CLOCKS = ("seconds", "evaluation_seconds")
Place = Annotated[int, Field(ge=0)]
Value = FiniteFloat | None


@with_config(strict)
@dataclass(frozen=True)
class Made:
    """What ``cells`` runs were made with, and the first and the last day that one of them ended."""

    environment: Environment
    cells: Count
    first: str
    last: str


@with_config(strict)
@dataclass(frozen=True)
class Head:
    """The first line; ``pairs``: how many there are besides."""

    form: str
    schema: int
    contract: int
    arena: str
    budget: str
    pairs: Count
    made: list[Made]
    left_out: str


@with_config(strict)
@dataclass(frozen=True)
class Course:
    """What runs of one setting have in common whatever their seed: steps, counts, episodes of each
    split, and the steps and counts at the looks."""

    steps: Count
    cost: dict[str, FiniteFloat]
    episodes: dict[str, Count]
    curve: dict[str, list[Value]] = field(default_factory=dict)


@with_config(strict)
@dataclass(frozen=True)
class Runs:
    """Runs in the order of their cells, a column each; None where a cell has no record. ``made``
    and ``course`` are places in the lists of these; ``scores``: split to the metric; ``curve``: the
    metric at the looks on the split that chooses; ``reasons``: place of a run to why it has no
    numbers."""

    status: list[Status | None]
    made: list[Place | None]
    course: list[Place | None]
    selected_step: list[Count | None]
    seconds: list[Value]
    evaluation_seconds: list[Value]
    scores: dict[str, list[Value]]
    courses: list[Course]
    curve: list[list[Value]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def lengths(self) -> dict[str, int]:
        """Column to its length; those that may be empty only where they are not."""
        fixed = ("status", "made", "course", "selected_step", *CLOCKS)
        found = {name: len(getattr(self, name)) for name in fixed}
        found |= {f"scores.{name}": len(column) for name, column in self.scores.items()}
        return found | ({"curve": len(self.curve)} if self.curve else {})


@with_config(strict)
@dataclass(frozen=True)
class Pair:
    """A line: a method on a problem. ``chosen``: the number of the trial that plays the finals,
    None as long as nobody is chosen."""

    method: str
    problem: str
    metric: str
    cells: str
    trials: Runs
    chosen: Count | None
    finals: Runs


_top, _pair = TypeAdapter(Head), TypeAdapter(Pair)


def is_one(path: Path) -> bool:
    """Whether a file says on its first line that it has the scores of an arena."""
    return lines.first(path).get("form") == SCORES


class ArenaScores:
    """The runs of an arena in a file of scores, which reads as a store does.

    Raises StoreError where the file cannot be opened, or is not of this arena and budget. Lines
    that cannot be trusted are left out and told by :meth:`problems`; those of other cells than the
    arena has now by :meth:`outdated`.
    """

    def __init__(self, path: str | Path, arena: Arena, budget: str) -> None:
        self.root, self.arena, self.budget = Path(path), arena, budget
        recall(arena, budget)
        self._heads: list[Head] = []
        self._pairs = {(m.id, p.id): (m, p) for m, p in arena.pairs(budget)}
        self._records: dict[str, Record] = {}
        self._curves: dict[str, Curve] = {}
        self._current: dict[tuple[str, str], Pair] = {}
        self._outdated: list[str] = []
        self._seen: set[tuple[str, str]] = set()
        self._taken = 0
        self._bad = lines.read(self.root, self._take)
        if not self._heads:
            raise StoreError(str(self._bad[0]))
        if not self._bad and self._taken != self.head.pairs:
            told = f"has {counted(self._taken, 'line')} after the first and says {self.head.pairs}"
            self._bad.append(BadFile(self.root, told))

    @property
    def head(self) -> Head:
        """What the first line says."""
        return self._heads[0]

    def get(self, key: str) -> Record | None:
        """The scores of a cell, or None."""
        return self._records.get(key)

    def records(self) -> list[Record]:
        """All that can be trusted, in the order of the file."""
        return list(self._records.values())

    def curve(self, record: Record) -> Curve:
        """Of a final: steps, counts, and the scored metric on the split that chooses."""
        return self._curves.get(record.key, {})

    def pair(self, method: str, problem: str) -> Pair | None:
        """The line of a method on a problem; None where there is none, or of other cells than the
        arena has now."""
        return self._current.get((method, problem))

    def problems(self) -> list[BadFile]:
        """What cannot be trusted, each reason once with its lines."""
        return self._bad

    def outdated(self) -> list[str]:
        """Methods and problems whose cells in the file are others than the arena's, in words."""
        return self._outdated

    def _take(self, line: bytes) -> None:
        if not self._heads:
            self._heads.append(self._head(line))
            return
        self._taken += 1
        pair: Pair = _checked(_pair, lines.opened(line))
        at = pair.method, pair.problem
        if at in self._seen:
            raise ValueError(f"another line has {pair.method} on {pair.problem}")
        self._seen.add(at)
        if at not in self._pairs:
            self._left(pair, f"{self.arena.name} has no such pair")
            return
        method, problem = self._pairs[at]
        trials, finals = cells_of(self.arena, self.budget, method, problem, pair.chosen)
        if hash_of(self.arena.metrics[problem.id], trials + finals) != pair.cells:
            self._left(pair, "settings, problem or metric have changed since the file was written")
            return
        self._current[at] = pair
        column, made = f"{split_of(problem)}/{pair.metric}", self.head.made
        found = _records("trials", trials, pair.trials, pair.metric, made, column)
        found += _records("finals", finals, pair.finals, pair.metric, made, column)
        for record, curve in found:
            self._records[record.key], self._curves[record.key] = record, curve

    def _left(self, pair: Pair, why: str) -> None:
        self._outdated.append(f"{self.root}: {pair.method} on {pair.problem} does not count: {why}")

    def _head(self, line: bytes) -> Head:
        """Raises StoreError: without the head no other line says anything."""
        try:
            data = lines.opened(line)
            known = {"form": SCORES, "schema": SCHEMA, "contract": CONTRACT}
            asked = {"arena": self.arena.name, "budget": self.budget}
            for name, value in (known | asked).items():
                if data.get(name) != value:
                    wanted = "is asked for" if name in asked else "can be read"
                    raise ValueError(f"{name} is {data.get(name)!r:.80}, and {value!r} {wanted}")
            head: Head = _checked(_top, data)
        except (ValueError, RecursionError) as error:
            first = str(error).partition("\n")[0]
            raise WrongPath(f"{self.root}: line 1: {first}") from None
        return head


def _records(
    name: str, cells: Sequence[Cell], runs: Runs, metric: str, made: Sequence[Made], column: str
) -> list[tuple[Record, Curve]]:
    """The runs of these cells, each with its learning curve. Raises ValueError where columns do not
    fit."""
    for what, length in runs.lengths.items():
        if length != len(cells):
            raise ValueError(f"{name}.{what} has {length} entries for {len(cells)} cells")
    out: list[tuple[Record, Curve]] = []
    for i, cell in enumerate(cells):
        status = runs.status[i]
        if status is None:
            continue
        course: Course = _at(f"{name}.course.{i}", runs.courses, runs.course[i])
        environment = _at(f"{name}.made.{i}", made, runs.made[i]).environment
        metrics = {
            split: {metric: Estimate(mean, _at(f"{name}.courses", course.episodes, split))}
            for split, of in runs.scores.items()
            if (mean := of[i]) is not None
        }
        clocks = {n: s for n in CLOCKS if (s := getattr(runs, n)[i]) is not None}
        record = ScoresOnly(
            cell.key, cell, status, runs.reasons.get(str(i), ""), metrics=metrics,
            selected_step=runs.selected_step[i], steps=course.steps, cost={**course.cost, **clocks},
            environment=environment,
        )  # fmt: skip
        values = {column: runs.curve[i]} if runs.curve and runs.curve[i] else {}
        curve = {**course.curve, **values}
        if len({len(x) for x in curve.values()}) > 1:
            raise ValueError(f"{name}.curve.{i} has {len(runs.curve[i])} entries, its steps others")
        out.append((record, curve))
    return out


def _at(name: str, of: Any, place: Any) -> Any:
    """Raises ValueError where there is no such place."""
    try:
        return of[place]
    except (LookupError, TypeError):
        raise ValueError(f"{name} is {place!r}, and there are {len(of)}") from None


def cells_of(
    arena: Arena, budget: str, method: ArenaMethod, problem: ArenaProblem, chosen: int | None
) -> tuple[list[Cell], list[Cell]]:
    """A method's trials and finals on a problem, each cell once. Raises ValueError for a trial that
    there is not."""
    rules = arena.budget(budget)
    tried = rules.trials if method.space else 1
    if chosen is not None and chosen >= tried:
        raise ValueError(f"chosen is {chosen}, and there are {tried} trials")

    def cells(trials: Iterable[int], seeds: Iterable[int]) -> list[Cell]:
        each = (arena.cells(method, problem, n, rules, seeds, f"#{n}") for n in trials)
        return [item.cell for of in each for item in of]

    playing = () if chosen is None else dict.fromkeys((chosen, 0))
    return cells(range(tried), rules.tuning_seeds), cells(playing, rules.seeds)


def hash_of(metric: str, cells: Iterable[Cell]) -> str:
    """What tells whether a line is of these cells, scored by this metric: 16 digits."""
    text = canonical([metric, [cell.key for cell in cells]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(problem: ArenaProblem) -> str:
    """The split that chooses states and trials."""
    return "selection" if problem.select == "best_selection" else "valid"


def _checked(adapter: TypeAdapter[Any], data: dict[str, Any]) -> Any:
    """Raises ValueError that names the place and the value."""
    try:
        return strictly(adapter, data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].lower()}, not {first['input']!r:.80}") from None
