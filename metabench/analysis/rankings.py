"""Which methods rank above which over the columns and seeds of a suite, and what that may mean."""

from __future__ import annotations

from dataclasses import dataclass

from metabench.analysis.results import Results
from metabench.analysis.stats import Ranking, ranking
from metabench.core.text import listed


@dataclass(frozen=True)
class Ranked:
    """Rows in the ranking (``numbers``: their places in the suite), the ranking or None where
    there is too little for one, and what a reader has to know."""

    rows: tuple[str, ...]
    numbers: tuple[int, ...]
    ranking: Ranking | None
    footnotes: tuple[str, ...]


def scores(results: Results, row: str) -> list[list[float]]:
    """Values of the table's metric of finished runs, a list a column that has any."""
    groups = [
        [e.mean for e in results.table_cells[row, column.id].estimates(*results.metric).values()]
        for column in results.columns
    ]
    return [group for group in groups if group]


def ranked(results: Results) -> Ranked:
    """The Friedman test with Nemenyi's critical difference, a block a (column, seed).

    Rows with the fewest values are left out until at least two blocks are complete. Seeds of one
    column are repetitions and not further tasks, which the footnotes say.
    """
    values = {
        row.id: {
            (column.id, seed): e.mean
            for column in results.columns
            for seed, e in results.table_cells[row.id, column.id].estimates(*results.metric).items()
        }
        for row in results.rows
    }
    kept = [row for row in values if values[row]]

    def complete() -> list[tuple[str, int]]:
        first = values[kept[0]] if kept else {}
        return [block for block in first if all(block in values[row] for row in kept)]

    while len(kept) > 3 and len(complete()) < 2:
        kept.remove(min(kept, key=lambda row: len(values[row])))
    blocks = complete()
    left_out = [results.row_label(row) for row in values if row not in kept]
    footnotes = [f"Left out, for lack of finished runs: {listed(left_out)}."] if left_out else []
    numbers = tuple(i for i, row in enumerate(values) if row in kept)
    if len(kept) < 3 or len(blocks) < 2:
        said = (
            f"No ranking: it needs 3 methods with finished runs in 2 common blocks (column, seed); "
            f"there are {len(kept)} methods and {len(blocks)} common blocks."
        )
        return Ranked(tuple(kept), numbers, None, (said, *footnotes))
    found = ranking([[values[row][block] for row in kept] for block in blocks], results.suite.goal)
    columns = list(dict.fromkeys(column for column, _ in blocks))
    said = (
        f"Friedman test over {len(blocks)} blocks ({len(columns)} "
        f"{'column' if len(columns) == 1 else 'columns'} × seeds): p = {found.p:.2g}. Methods "
        "joined by a bar do not differ at 5 % (Nemenyi)."
    )
    footnotes.insert(0, said)
    if found.critical >= len(kept) - 1:
        footnotes.append(
            f"Too few blocks: a critical difference of {found.critical:.2f} is no less than the "
            f"largest possible one, {len(kept) - 1}; the order is a description only."
        )
    if len(columns) < 5:
        footnotes.append(
            "Seeds of one column are repetitions, not further tasks: this says how stable the "
            "order is over seeds of these tasks, nothing of other tasks."
        )
    if found.p >= 0.05:
        footnotes.append("The Friedman test finds no difference among the methods at 5 %.")
    return Ranked(tuple(kept), numbers, found, tuple(footnotes))
