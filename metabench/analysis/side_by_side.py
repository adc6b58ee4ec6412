"""Two sets of runs side by side: cells that both have, paired, and what may explain a difference.

Cells are paired where they are equal (one key), else where they stand in the same row and column
with the same seed, else where they differ in the budget alone, else where task, method, solver and
seed are the same and neither side has another such cell. The difference is B minus A, seed by
seed; its test is the paired t-test of :mod:`metabench.analysis.comparisons`, with Holm's correction
over all lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metabench.analysis import stats
from metabench.analysis.comparisons import ALPHA, POWER, Pair, paired, resolved
from metabench.core.cell import Cell, canonical
from metabench.store.record import Curve, Record, curve_outcome

GROUPS = ("task_settings", "method_settings", "solver_settings", "budget")
UNSET = "not set"
MACHINE = ("processor", "cores", "usable_cores", "system")
HOW = ("device", "engine", "adapted_at_once", "threads", "ranks")


@dataclass(frozen=True)
class View:
    """The number that runs are compared by: a metric of an evaluation, and which is better.

    ``percent``: it is shown times 100; ``logs``: logarithms are compared, where all are positive;
    numbers below ``resolution`` are equal.
    """

    evaluation: str
    metric: str
    goal: stats.Goal
    percent: bool = False
    logs: bool = False
    resolution: float = 0.0

    def of(self, record: Record) -> float | None:
        """The number of a run; None where it has none."""
        found = record.metrics.get(self.evaluation, {}).get(self.metric)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Run:
    """A record, what reads its learning curve, and its place where a suite gives it one."""

    record: Record
    curve: Callable[[Record], Curve]
    row: str = ""
    column: str = ""

    @property
    def place(self) -> str:
        """ROW/COLUMN; "" without a suite."""
        return f"{self.row}/{self.column}" if self.row else ""

    @property
    def cell(self) -> Cell:
        """The cell that was run."""
        return self.record.cell


@dataclass(frozen=True)
class Side:
    """One of the two: what it is called, every run of it, whatever came of them, and the files
    that cannot be trusted, in words: what they hold is missing in ``runs``."""

    name: str
    runs: tuple[Run, ...]
    bad_files: tuple[str, ...] = ()

    @property
    def done(self) -> list[Run]:
        """The runs that have numbers."""
        return [run for run in self.runs if run.record.status == "done"]


@dataclass(frozen=True)
class Line:
    """Paired cells that differ in the seed alone.

    ``pair``: B minus A (None where a metric is missing; of logarithms where ``logs``), with p by
    Holm; ``identical``: the seeds of which all bits are equal; ``settings``: name to the values of
    A and of B, where they differ; ``lost``: "A", "B", whose other runs ended without a number: its
    survivors flatter it, and it is never shown to be better.
    """

    label: str
    view: View
    seeds: tuple[int, ...]
    a: float | None
    b: float | None
    pair: Pair | None
    detectable: float | None
    identical: tuple[int, ...]
    settings: Mapping[str, tuple[str, str]]
    logs: bool = False
    lost: tuple[str, ...] = ()

    @property
    def all_identical(self) -> bool:
        """Whether nothing differs, in no seed."""
        return len(self.identical) == len(self.seeds)

    @property
    def verdict(self) -> str:
        """What the line shows, in words."""
        if self.all_identical:
            return "identical"
        if self.pair is None:
            return "no common metric"
        some = f" ({len(self.identical)} identical)" if self.identical else ""
        if self.pair.p is None:
            return f"not tested{some}"
        if not self.pair.shown:
            return f"not told apart{some}"
        better = "B" if (self.pair.gain > 0) == (self.view.goal == "max") else "A"
        return f"not shown: {better} lost runs" if better in self.lost else f"{better} better{some}"


@dataclass(frozen=True)
class Only:
    """Cells that one side alone has numbers of; ``why`` says what the other has in their place."""

    side: str
    label: str
    seeds: tuple[int, ...]
    why: str = ""


@dataclass(frozen=True)
class Difference:
    """Something other than results in which the paired runs of the two sides differ."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class SideBySide:
    """All of a comparison."""

    a: str
    b: str
    lines: tuple[Line, ...]
    only: tuple[Only, ...]
    made_with: tuple[Difference, ...]
    """Versions, machines and ways of running."""
    settings: tuple[Difference, ...]
    """Settings in which every line differs alike."""
    bad_files: tuple[tuple[str, str], ...] = ()
    """"A" or "B", and a file of that side that cannot be trusted: what it holds is left out."""

    @property
    def identical(self) -> bool:
        """Whether both sides have the same cells and all bits of their results are equal; no,
        where a side has files that cannot be trusted."""
        whole = not self.only and not self.bad_files
        return whole and all(line.all_identical for line in self.lines)

    @property
    def tests(self) -> int:
        """Over how many lines Holm's correction goes."""
        return sum(line.pair is not None and line.pair.p is not None for line in self.lines)


def side_by_side(a: Side, b: Side, view: Callable[[Run, Run], View]) -> SideBySide:
    """Compare two sides; ``view`` says by which number a pair is compared. Raises StoreError where
    a learning curve that is needed cannot be read."""
    pairs = pair_up(a.done, b.done)
    groups: dict[tuple[str, str], list[tuple[Run, Run]]] = {}
    for one, two in pairs:
        groups.setdefault((_group(one), _group(two)), []).append((one, two))
    labels = _labels([pairs[0] for pairs in groups.values()])
    gone = [{_group(r) for r in side.runs if r.record.status != "done"} for side in (a, b)]
    lines: list[Line] = []
    raw: dict[int, float] = {}
    for label, (names, found) in zip(labels, groups.items(), strict=True):
        line, p = _line(label, sorted(found, key=lambda pair: pair[0].cell.seed), view)
        lost = [s for s, name, of in zip("AB", names, gone, strict=True) if name in of]
        line = replace(line, lost=tuple(lost))
        if p is not None:
            raw[len(lines)] = p
        lines.append(line)
    for at, p in zip(raw, stats.holm([*raw.values()]), strict=True):
        pair = lines[at].pair
        assert pair is not None
        size = stats.detectable(pair.spread or 0.0, pair.seeds, ALPHA / len(raw), POWER)
        lines[at] = replace(lines[at], pair=replace(pair, p=p), detectable=size)
    shared = _shared(lines)
    lines = [replace(x, settings=_without(x.settings, shared)) for x in lines]
    return SideBySide(
        a.name,
        b.name,
        tuple(lines),
        (*_only("A", a, b, pairs, 0), *_only("B", b, a, pairs, 1)),
        tuple(_made_with(pairs)),
        tuple(Difference(name, *values) for name, values in shared.items()),
        tuple((letter, bad) for letter, side in (("A", a), ("B", b)) for bad in side.bad_files),
    )


def pair_up(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[Run, Run]]:
    """The runs that belong together, in the order of ``a``. Two sides of one run each are a pair,
    whatever they are."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for name_of, alone in _LEVELS:
        of_a, of_b = _named(a, name_of), _named(b, name_of)
        for name, mine in of_a.items():
            others = of_b.get(name, [])
            if alone and not len(mine) == len(others) == 1:
                continue
            left = [i for i in mine if i not in partner]
            right = [j for j in others if j not in taken]
            # More than one of a name: which belongs to which is not known, unless all are one cell.
            if left and right and _one_cell(a, left) and _one_cell(b, right):
                for i, j in zip(left, right, strict=False):
                    partner[i] = j
                    taken.add(j)
    return [(a[i], b[partner[i]]) for i in sorted(partner)]


def _named(runs: Sequence[Run], name_of: Callable[[Run], Hashable]) -> dict[Hashable, list[int]]:
    out: dict[Hashable, list[int]] = {}
    for number, run in enumerate(runs):
        if (name := name_of(run)) is not None:
            out.setdefault(name, []).append(number)
    return out


def _one_cell(runs: Sequence[Run], numbers: Sequence[int]) -> bool:
    return len({runs[i].cell.key for i in numbers}) == 1


def _problem(cell: Cell) -> str:
    """Everything of a cell but its budget and its seed."""
    groups = (cell.task_settings, cell.method_settings, cell.solver_settings)
    return canonical([cell.task, cell.method, cell.solver, *groups])


_LEVELS: tuple[tuple[Callable[[Run], Hashable], bool], ...] = (
    (lambda run: (run.cell.key, run.place), False),
    (lambda run: run.cell.key, False),
    (lambda run: (run.place, run.cell.seed) if run.place else None, False),
    (lambda run: (_problem(run.cell), run.cell.seed), False),
    (lambda run: (run.cell.task, run.cell.method, run.cell.solver, run.cell.seed), True),
)
"""What two runs of a pair share, the strictest first; True: each side must have one such run in
all, and not only one that is left over."""


def _group(run: Run) -> str:
    """What runs of one line share."""
    return run.place or canonical([_problem(run.cell), run.cell.budget])


def _labels(firsts: Sequence[tuple[Run, Run]]) -> list[str]:
    """What the lines are called: places where there are any, else tasks and methods, with the
    beginning of a key where that is said of several."""
    labels = []
    for one, two in firsts:
        places = list(dict.fromkeys(p for p in (one.place, two.place) if p))
        labels.append(" | ".join(places) or _names(one, two))
    return [
        f"{label} [{one.cell.key[:6]}]" if labels.count(label) > 1 else label
        for label, (one, _) in zip(labels, firsts, strict=True)
    ]


def _names(*runs: Run) -> str:
    return " | ".join(dict.fromkeys(f"{r.cell.method} on {r.cell.task}" for r in runs))


def _line(
    label: str, found: Sequence[tuple[Run, Run]], view: Callable[[Run, Run], View]
) -> tuple[Line, float | None]:
    """A line without Holm's correction, and its own p."""
    seen = view(*found[0])
    one = [seen.of(a.record) for a, _ in found]
    two = [seen.of(b.record) for _, b in found]
    both = [(x, y) for x, y in zip(one, two, strict=True) if x is not None and y is not None]
    pair = p = a = b = None
    logs = False
    if both:
        ours, theirs = [x for x, _ in both], [y for _, y in both]
        a, b = stats.mean(ours), stats.mean(theirs)
        ours, theirs = ([resolved(v, seen.resolution) for v in of] for of in (ours, theirs))
        logs = seen.logs and all(v > 0 for v in (*ours, *theirs))
        if logs:
            ours, theirs = [*map(math.log, ours)], [*map(math.log, theirs)]
        pair, p = paired(theirs, ours, logs=logs)
    same = tuple(x.cell.seed for x, y in found if same_bits(x, y))
    seeds = tuple(x.cell.seed for x, _ in found)
    settings = differing_settings(found[0][0].cell, found[0][1].cell)
    return Line(label, seen, seeds, a, b, pair, None, same, settings, logs), p


def same_bits(a: Run, b: Run) -> bool:
    """Whether two runs have the same metrics, counts, lam and learning curve to the last bit.

    Raises StoreError where a curve cannot be read.
    """

    def found(run: Run) -> dict[str, Any]:
        data = run.record.outcome()
        return {k: v for k, v in data.items() if k not in ("key", "cell", "schema")}

    if canonical(found(a)) != canonical(found(b)):
        return False
    curves = (curve_outcome(run.curve(run.record)) for run in (a, b))
    return canonical(next(curves)) == canonical(next(curves))


def differing_settings(a: Cell, b: Cell) -> dict[str, tuple[str, str]]:
    """Name of a setting ("budget.outer_steps") to both values, where they differ."""
    out: dict[str, tuple[Any, Any]] = {
        name: (getattr(a, name), getattr(b, name))
        for name in ("task", "method", "solver", "contract")
    }
    for group in GROUPS:
        mine, others = getattr(a, group), getattr(b, group)
        for name in dict.fromkeys([*mine, *others]):
            where = f"{group.removesuffix('_settings')}.{name}"
            out[where] = mine.get(name, UNSET), others.get(name, UNSET)
    return {name: (_shown(x), _shown(y)) for name, (x, y) in out.items() if x != y}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def _shared(lines: Sequence[Line]) -> dict[str, tuple[str, str]]:
    """Differing settings that all lines have alike."""
    if not lines:
        return {}
    first, *others = [line.settings for line in lines]
    return {n: v for n, v in first.items() if all(other.get(n) == v for other in others)}


def _without(settings: Mapping[str, tuple[str, str]], shared: Mapping[str, object]) -> Any:
    return {name: values for name, values in settings.items() if name not in shared}


def _only(
    name: str, side: Side, other: Side, pairs: Sequence[tuple[Run, Run]], at: int
) -> Iterable[Only]:
    """The finished cells of a side that have no partner, by line."""
    paired_keys = {pair[at].cell.key for pair in pairs}
    left = [run for run in side.done if run.cell.key not in paired_keys]
    failed = {run.cell.key: run.record.status for run in other.runs}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in left:
        why = failed.get(run.cell.key, "")
        groups.setdefault((_group(run), why), []).append(run)
    for (_, why), runs in groups.items():
        label = runs[0].place or f"{_names(runs[0])} [{runs[0].cell.key[:6]}]"
        yield Only(name, label, tuple(sorted(run.cell.seed for run in runs)), why)


def _made_with(pairs: Sequence[tuple[Run, Run]]) -> Iterable[Difference]:
    """Facts of which the two sides have different values."""
    facts = [tuple(map(_facts, pair)) for pair in pairs]
    names = dict.fromkeys(name for pair in facts for fact in pair for name in fact)
    for name in names:
        sides = [{pair[i].get(name, UNSET) for pair in facts} for i in (0, 1)]
        if sides[0] != sides[1]:
            yield Difference(name, *(", ".join(sorted(side)) for side in sides))


def _facts(run: Run) -> dict[str, str]:
    """What of a run's environment may change its numbers or its speed."""
    found = run.record.environment
    machine, git = found.get("machine", {}), found.get("git", {})
    out = {f"version of {k}": str(v) for k, v in found.get("versions", {}).items()}
    out |= {f"version of {k}": str(v) for k, v in found.get("packages", {}).items()}
    if isinstance(git, dict) and "commit" in git:
        out["commit"] = str(git["commit"])[:10] + (" with changes" if git.get("dirty") else "")
    out |= {f"machine: {k.replace('_', ' ')}": str(machine[k]) for k in MACHINE if k in machine}
    return out | {k: str(found[k]) for k in HOW if k in found}
