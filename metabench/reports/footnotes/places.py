"""Where something holds in a table, in words: rows and columns that share it are told together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from metabench.analysis.results import Results
from metabench.core.text import listed

Places = Mapping[tuple[str, str], Sequence[str]]
"""(row, column) to what is said of it; a place of which nothing is said may be left out."""
MANY = 6
"""Rows from which on a list of nearly all rows names those that are not in it."""


def places_in_words(results: Results, said: Places) -> list[tuple[str, tuple[str, ...]]]:
    """Each group of rows, with the columns where not all are meant, and all that is said of just
    these places; in the order of the table."""
    columns = {column.id: column.label or column.id for column in results.columns}
    where: dict[str, dict[str, list[str]]] = {}
    for row in results.rows:
        for column, label in columns.items():
            for word in said.get((row.id, column), ()):
                where.setdefault(word, {}).setdefault(row.id, []).append(label)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for word, rows in where.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for row_id, labels in rows.items():
            alike.setdefault(tuple(labels), []).append(row_id)
        for at, of_these in alike.items():
            place = "" if len(at) == len(columns) else f" in {listed(at)}"
            together.setdefault((place, tuple(of_these)), []).append(word)
    return [
        (f"{rows_in_words(results, rows)}{place}", tuple(words))
        for (place, rows), words in together.items()
    ]


def rows_in_words(results: Results, rows: Iterable[str]) -> str:
    """Labels of rows: "all rows", or all but a few, where that is shorter."""
    known = {*rows}
    every = [row.id for row in results.rows]
    rest = [row for row in every if row not in known]
    if not rest and len(every) > 1:
        return "all rows"
    named = [row for row in every if row in known]
    if len(named) >= MANY and 3 * len(rest) <= len(named):
        return f"all rows but {listed(map(results.row_label, rest))}"
    return listed(map(results.row_label, named))
