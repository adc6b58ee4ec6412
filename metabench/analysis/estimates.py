"""The numbers of a table before any layout: means with intervals, floors, and which are best.

What +- means here: with several seeds, the 95 % t-interval over seeds of the per-seed means, which
holds the luck of training and of the drawn data; with one seed, the 95 % t-interval over the
test episodes of that one run, which holds neither.

Which are bold: the best mean of a column, and every method that is not significantly worse at 5 %.
Methods are paired by seed, since a seed fixes the data split, the first values and the test
episodes for all of them. The test is the paired t-test over seeds with Holm's correction
within the column, on logarithms where the suite says so. Wilcoxon's signed-rank test would
assume less, but with n seeds its p is never below 2^(1 - n): with fewer than six it can tell
nothing apart. Where two methods share fewer than three seeds, the paired test has next to no
power, and unfinished rows would all be bold; Welch's unpaired t-test over the test episodes of the
common seeds stands in. It leaves out that the episodes are the same (so it is cautious) and says
nothing of other seeds. A method that
cannot be tested against the best (one episode, or no common seed) is bold only where its mean is
the best one to four digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from metabench.analysis import stats
from metabench.analysis.results import Results, TableCell
from metabench.store.record import Estimate

ALPHA = 0.05
FEWEST = 3
"""Common seeds from which on methods are paired by seed."""
Over = Literal["seeds", "episodes", "nothing"]
Test = Literal["paired", "paired logs", "welch", "none"]


@dataclass(frozen=True)
class Entry:
    """One number of ours. ``over`` says what ``pm`` is an interval over; ``p`` is Holm's, against
    the best of the column (None: not tested, or itself the best)."""

    mean: float
    pm: float | None
    over: Over
    std: float | None
    seeds: tuple[int, ...]
    episodes: tuple[int, int]
    """Least and largest number of episodes of a seed."""
    best: bool = False
    p: float | None = None
    test: Test = "none"


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
    """Row to number of ours in one column, the best marked; rows that are holes are left out."""
    estimates = {
        row.id: results.table_cells[row.id, column].estimates(*results.metric)
        for row in results.rows
    }
    found = {row: made for row, known in estimates.items() if (made := entry(known))}
    if not found:
        return {}
    sign = 1 if results.suite.goal == "max" else -1
    best = max(found, key=lambda row: sign * found[row].mean)
    tested = {
        row: compare(estimates[best], estimates[row], logs=results.suite.logs)
        for row in found
        if row != best
    }
    with_p = [row for row, (p, _) in tested.items() if p is not None]
    corrected = dict(
        zip(with_p, stats.holm([tested[row][0] or 0.0 for row in with_p]), strict=True)
    )
    out = {}
    for row, made in found.items():
        p = corrected.get(row)
        equal = row == best or math.isclose(made.mean, found[best].mean, rel_tol=5e-5)
        out[row] = replace(
            made,
            best=equal if p is None else p >= ALPHA,
            p=p,
            test=tested[row][1] if row in tested else "none",
        )
    return out


def compare(
    a: Mapping[int, Estimate], b: Mapping[int, Estimate], *, logs: bool = False
) -> tuple[float | None, Test]:
    """Two-sided p that two methods differ, from per-seed estimates, and the test that gave it.

    With ``logs`` methods are paired by the logarithms of their numbers, where all are positive.
    """
    common = [seed for seed in a if seed in b]
    if len(common) >= FEWEST:
        one, two = [a[s].mean for s in common], [b[s].mean for s in common]
        if logs and min(one + two) > 0:
            return stats.paired_t([*map(math.log, one)], [*map(math.log, two)]), "paired logs"
        return stats.paired_t(one, two), "paired"
    if not common:
        return None, "none"
    p = stats.welch(pooled([a[s] for s in common]), pooled([b[s] for s in common]))
    return p, "none" if p is None else "welch"


def pooled(estimates: Sequence[Estimate]) -> tuple[float, float | None, int]:
    """(mean, standard deviation, n) of all episodes of several runs as one sample."""
    n = sum(e.n for e in estimates)
    mean = math.fsum(e.n * e.mean for e in estimates) / n
    if n == 1:
        return mean, None, n
    squares = [(e.n - 1) * (e.std or 0.0) ** 2 + e.n * (e.mean - mean) ** 2 for e in estimates]
    return mean, math.sqrt(math.fsum(squares) / (n - 1)), n


def floor(results: Results, column: str) -> tuple[Entry | None, list[str]]:
    """The suite's floor metric in a column, measured on the methods' own test episodes, and the
    rows whose episodes gave another number than the first row's did."""
    chosen: dict[int, Estimate] = {}
    others = []
    for row in results.rows:
        known = results.table_cells[row.id, column].estimates(
            results.suite.evaluation, results.suite.floor
        )
        for seed, found in known.items():
            first = chosen.setdefault(seed, found)
            same = math.isclose(first.mean, found.mean, rel_tol=1e-6, abs_tol=1e-9)
            if not (same and first.n == found.n) and row.id not in others:
                others.append(row.id)
    return entry(dict(sorted(chosen.items()))), others


def costs(table_cell: TableCell) -> dict[str, float]:
    """Mean of each cost over finished cells, with ``steps``; empty where none has finished."""
    done = table_cell.done
    names = sorted({name for record in done for name in record.cost})
    out = {"steps": stats.mean([float(r.steps) for r in done])} if done else {}
    for name in names:
        known = [r.cost[name] for r in done if name in r.cost]
        out[name] = stats.mean(known)
    return out
