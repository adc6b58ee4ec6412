"""Which methods rank above which over the problems of a suite, and what that may mean.

A block is a problem: a column, or the columns that name the same ``problem``. Seeds of one problem
are repetitions, so their mean is ranked and not each of them: with a block a seed, methods that no
two problems agree about would be told apart in half of all tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metabench.analysis import stats
from metabench.analysis.estimates import lost
from metabench.analysis.results import Results
from metabench.core.text import counted, listed
from metabench.suites.schema import Column

FEWEST = 6
"""Problems from which on a ranking is tested."""


@dataclass(frozen=True)
class Ranked:
    """Rows in the ranking (``numbers``: their places in the suite), the rank of each in each
    problem [problem][row], 1 the best, ties shared, the tests of them (None below ``FEWEST``
    problems), and what a reader has to know."""

    rows: tuple[str, ...]
    numbers: tuple[int, ...]
    problems: tuple[str, ...]
    ranks: tuple[tuple[float, ...], ...]
    ranking: stats.Ranking | None
    footnotes: tuple[str, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """The mean rank of each row; none where nothing is ranked."""
        return tuple(stats.mean(of) for of in zip(*self.ranks, strict=True))


def ranked(results: Results) -> Ranked:
    """Ranks by problem, and from six problems on the Friedman test with Nemenyi's critical
    difference.

    Rows with the fewest problems are left out until six problems, or all that there are, have all
    rows that are left.
    """
    means = {row.id: _means(results, row.id) for row in results.rows}
    problems = _problems(results.columns)
    kept = [row for row in means if means[row]]

    def complete() -> list[str]:
        return [
            name
            for name, columns in problems.items()
            if kept and all(c in means[row] for row in kept for c in columns)
        ]

    while len(kept) > 3 and len(complete()) < min(FEWEST, len(problems)):
        kept.remove(min(kept, key=lambda row: len(means[row])))
    names = complete()
    numbers = tuple(i for i, row in enumerate(means) if row in kept)
    left_out = [results.row_label(row) for row in means if row not in kept]
    footnotes = [f"Left out, for lack of finished runs: {listed(left_out)}."] if left_out else []
    missing = [name for name in problems if name not in names]
    if names and missing:
        footnotes.append(f"Without {counted(len(missing), 'problem')} that some row lacks.")
    blocks = [_ranks(results, means, kept, problems[name]) for name in names]
    flattered = [
        row for row in kept if any(row in lost(results, c) for n in names for c in problems[n])
    ]
    if flattered:
        labels = listed([results.row_label(row) for row in flattered])
        footnotes.append(f"Where runs of a row are lost, it ranks after rows without ({labels}).")
    return judged(kept, numbers, names, blocks, footnotes)


def judged(
    rows: Sequence[str],
    numbers: Sequence[int],
    problems: Sequence[str],
    blocks: Sequence[tuple[float, ...]],
    footnotes: Sequence[str] = (),
) -> Ranked:
    """Ranks [problem][row] with their tests, from six problems and three rows on; what they mean in
    words before the ``footnotes``."""
    out = Ranked(tuple(rows), tuple(numbers), tuple(problems), tuple(blocks), None, ())
    if len(rows) < 3 or len(problems) < FEWEST:
        said = (
            f"Not tested: it would need 3 methods on {FEWEST} problems, and there are {len(rows)} "
            f"on {len(problems)}. Ranks describe these problems, and say nothing of others."
        )
        return _with(out, None, (said, *footnotes))
    found = stats.ranking(blocks, "min")
    said = (
        f"Friedman test over {counted(found.blocks, 'problem')} (means over seeds): "
        f"p = {found.p:.2g}. Methods joined by a bar do not differ at 5 % (Nemenyi)."
    )
    more = list(footnotes)
    if found.critical >= len(rows) - 1:
        more.append(
            f"Too few problems: a critical difference of {found.critical:.2f} is no less than the "
            f"largest possible one, {len(rows) - 1}; the order is a description only."
        )
    if not found.rejected:
        more.append("The Friedman test finds no difference among the methods at 5 %.")
    return _with(out, found, (said, *more))


def _with(found: Ranked, ranking: stats.Ranking | None, footnotes: tuple[str, ...]) -> Ranked:
    return Ranked(found.rows, found.numbers, found.problems, found.ranks, ranking, footnotes)


def _problems(columns: Sequence[Column]) -> dict[str, list[str]]:
    """Label of each problem to its columns."""
    out: dict[str, list[str]] = {}
    for column in columns:
        out.setdefault(column.problem or column.label or column.id, []).append(column.id)
    return out


def _means(results: Results, row: str) -> dict[str, float]:
    """Column to mean over seeds of the table's metric."""
    return {
        column.id: stats.mean([e.mean for e in known.values()])
        for column in results.columns
        if (known := results.table_cells[row, column.id].estimates(*results.metric))
    }


def _ranks(
    results: Results,
    means: Mapping[str, Mapping[str, float]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> tuple[float, ...]:
    """Of each row in one problem: the mean over its columns. In a column rows with lost runs come
    after the others."""
    by_column = []
    for column in columns:
        last = lost(results, column)
        of: dict[str, float] = {}
        for group in ([r for r in rows if r not in last], [r for r in rows if r in last]):
            ranks = stats.ranks([means[row][column] for row in group], results.suite.goal)
            of |= {row: len(of) + rank for row, rank in zip(group, ranks, strict=True)}
        by_column.append([of[row] for row in rows])
    return tuple(stats.mean(of) for of in zip(*by_column, strict=True))


@dataclass(frozen=True)
class Scores:
    """Normalised values of finished runs, row to a list a column, 0 no learning and 1 the bound;
    and why columns or all of them are left out, in words."""

    by_row: Mapping[str, Sequence[Sequence[float]]]
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def normalised(results: Results) -> Scores:
    """(value - no learning) / (bound - no learning), column by column: the only form in which
    values of several columns can be pooled. No learning is the mean of the suite's row for it, and
    the bound stands in the column; for a percentage that is to be large it is 100."""
    suite = results.suite
    start = suite.without_learning
    if start is None:
        return Scores({}, (), ("no row is known to learn nothing: set no_learning in the suite",))
    by_row: dict[str, list[list[float]]] = {row.id: [] for row in results.rows if row.id != start}
    kept, left_out = [], []
    for column in suite.columns:
        label, bound = column.label or column.id, suite.bound(column)
        zero = _means(results, start).get(column.id)
        if bound is None or zero is None:
            why = "no bound in the suite" if bound is None else "no finished run without learning"
            left_out.append(f"{label}: {why}")
            continue
        sign = 1 if suite.goal == "max" else -1
        if not sign * (bound - zero) > 0 or not math.isfinite(bound - zero):
            left_out.append(f"{label}: no learning is as good as the bound")
            continue
        kept.append(column.id)
        for row, groups in by_row.items():
            known = results.table_cells[row, column.id].estimates(*results.metric)
            if known:
                groups.append([(e.mean - zero) / (bound - zero) for e in known.values()])
    return Scores(
        {row: groups for row, groups in by_row.items() if groups}, tuple(kept), tuple(left_out)
    )
