"""The numbers of a table before any layout: means with intervals, floors, and their marks.

What +- means here: with several seeds, the 95 % t-interval over seeds of the per-seed means, which
holds the luck of training and of the drawn data; with one seed, the 95 % t-interval over the
test episodes of that one run, which holds neither.

Bold is the best mean of a column alone; where all are equal none is. A dagger is a row that some
other is shown to be better than (:mod:`metabench.analysis.comparisons`). A number without either
has not been told apart, and none has both: where the best mean is shown to be worse, as by its
logarithms or over the seeds that both rows have, none is bold. Of a row with lost runs the mean is
that of the survivors, which flatters it: it is never bold, and never shown to be better than
another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.comparisons import ROUND_OFF, Comparisons, compare, resolved
from metabench.analysis.results import Results
from metabench.store.prices import of_cell
from metabench.store.record import Estimate, Record
from metabench.suites.schema import DERIVATIVES

Over = Literal["seeds", "episodes", "nothing"]


@dataclass(frozen=True)
class Entry:
    """One number of ours. ``over`` says what ``pm`` is an interval over; ``p`` is Holm's, against
    the best mean of the column (None: not tested, or itself the best); ``worse``: some row of the
    column is shown to be better."""

    mean: float
    pm: float | None
    over: Over
    std: float | None
    seeds: tuple[int, ...]
    episodes: tuple[int, int]
    """Least and largest number of episodes of a seed."""
    best: bool = False
    p: float | None = None
    worse: bool = False
    contested: bool = False
    """Whether the best mean of the column is shown to be worse all the same."""


def entry(estimates: Mapping[int, Estimate]) -> Entry | None:
    """The number that per-seed estimates come to; None where there are none."""
    if not estimates:
        return None
    means = [e.mean for e in estimates.values()]
    counts = [e.n for e in estimates.values()]
    pm, over = stats.half_width(means), "seeds"
    if pm is None:
        pm, over = next(iter(estimates.values())).ci95, "episodes"
    return Entry(
        stats.mean(means),
        pm,
        over if pm is not None else "nothing",  # type: ignore[arg-type]
        stats.std(means),
        tuple(estimates),
        (min(counts), max(counts)),
    )


def column_entries(results: Results, column: str) -> dict[str, Entry]:
    """Row to number of ours in one column, marked; rows that are holes are left out."""
    estimates = {
        row.id: results.table_cells[row.id, column].estimates(*results.metric)
        for row in results.rows
    }
    found = {row: made for row, known in estimates.items() if (made := entry(known))}
    if not found:
        return {}
    sign = 1 if results.suite.goal == "max" else -1
    means = {row: as_compared(results, estimates[row]) for row in found}
    incomplete = lost(results, column)
    # Of survivors alone no mean is the best, unless there is nothing else.
    whole = [row for row in found if row not in incomplete] or [*found]
    best = max(whole, key=lambda row: sign * means[row])
    tested = comparisons(results, column)
    worse = tested.worse
    tied = [row for row in found if _same(means[row], means[best])]
    # Of equal numbers none is the best, nor is one alone; of a signed difference neither end is.
    nothing = results.suite.gap or len(tied) == len(found)
    out = {}
    for row, made in found.items():
        pair = None if row == best else tested.of(best, row)
        leads = row in tied and row not in incomplete and not nothing
        out[row] = replace(
            made,
            best=leads and row not in worse,
            p=pair.p if pair else None,
            worse=row in worse,
            contested=leads and row in worse,
        )
    return out


def as_compared(results: Results, estimates: Mapping[int, Estimate]) -> float:
    """The mean of per-seed estimates, each counted as it is where rows are compared."""
    return stats.mean([resolved(e.mean, results.suite.resolution) for e in estimates.values()])


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=ROUND_OFF)


def lost(results: Results, column: str) -> set[str]:
    """The rows of a column with runs that ended without a number, and others that have one."""
    cells = {row.id: results.table_cells[row.id, column] for row in results.rows}
    return {row for row, cell in cells.items() if cell.lost and cell.done}


def comparisons(results: Results, column: str) -> Comparisons:
    """Every pair of rows of a column, tested by the table's metric; no row with lost runs is shown
    to be better."""
    values = {
        row.id: {
            seed: e.mean
            for seed, e in results.table_cells[row.id, column].estimates(*results.metric).items()
        }
        for row in results.rows
    }
    suite = results.suite
    tested = compare(values, suite.goal, logs=suite.logs, resolution=suite.resolution)
    return tested.never_better(lost(results, column))


def floor(results: Results, column: str) -> tuple[Entry | None, list[str]]:
    """The suite's floor metric in a column, measured on the methods' own test episodes, and the
    labels of the rows whose episodes gave another number than the first row's did."""
    chosen: dict[int, Estimate] = {}
    others = []
    for row in results.rows:
        known = results.table_cells[row.id, column].estimates(
            results.suite.evaluation, results.suite.floor
        )
        for seed, found in known.items():
            first = chosen.setdefault(seed, found)
            same = math.isclose(first.mean, found.mean, rel_tol=1e-6, abs_tol=1e-9)
            label = row.label or row.id
            if not (same and first.n == found.n) and label not in others:
                others.append(label)
    return entry(dict(sorted(chosen.items()))), others


def costs(results: Results, row: str, column: str) -> dict[str, float]:
    """Mean of each cost over finished cells, with ``steps``, and ``equivalents`` where the prices
    of the problem are known; empty where none has finished."""
    done = results.table_cells[row, column].done
    names = sorted({name for record in done for name in record.cost})
    out = {"steps": stats.mean([float(r.steps) for r in done])} if done else {}
    for name in names:
        known = [r.cost[name] for r in done if name in r.cost]
        out[name] = stats.mean(known)
    priced = [equivalents(results, record) for record in done]
    if priced and None not in priced:
        out[EQUIVALENTS] = stats.mean([p for p in priced if p is not None])
    return out


EQUIVALENTS = "equivalents"
"""The cost of a run in inner gradients of its problem, at measured prices."""


def equivalents(results: Results, record: Record) -> float | None:
    """What a run's counts come to in inner gradients; None where a price is not known."""
    prices = of_cell(results.prices, record.cell)
    return None if prices is None else prices.equivalents(record.cost)


def derivatives(results: Results, row: str, column: str) -> float | None:
    """Mean over finished cells of all gradients and products together; None where none has."""
    done = results.table_cells[row, column].done
    sums = [sum(r.cost.get(name, 0.0) for name in DERIVATIVES) for r in done]
    return stats.mean(sums) if sums else None
