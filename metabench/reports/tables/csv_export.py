"""The tables of a suite as CSV: long, machine-readable, numbers in the table's unit."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from metabench.analysis import stats
from metabench.analysis.estimates import Entry, column_entries, costs, floor
from metabench.analysis.overfitting import gaps
from metabench.analysis.results import Results
from metabench.core.text import printable
from metabench.reports.footnotes.chosen import how_in_words
from metabench.suites.schema import Column, Published

Line = dict[str, object]
_FORMULA = re.compile(r"\s*[=+\-@]")

FIELDS = (
    "suite", "budget", "kind", "row", "row_label", "column", "column_label",
    "evaluation", "metric", "goal", "unit",
    "ours_mean", "ours_pm", "ours_pm_over", "ours_std_over_seeds",
    "seeds_done", "seeds_planned", "episodes_least", "episodes_most",
    "best", "shown_worse", "p_holm", "validation_minus_test",
    "holes",
    "paper_value", "paper_pm", "paper_pm_meaning", "paper_source", "paper_label", "keys",
    "chosen",
)  # fmt: skip
"""Columns of the CSV table; ``kind`` is method, floor or paper; ``keys`` are of every planned
cell; ``chosen`` says how the row's settings were; numbers are in the table's unit."""


def main_csv(results: Results) -> str:
    """A line for each row and column, or for each published number where there are several; then
    the floor, and rows that only papers have."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for column in results.columns:
        always = _of_column(results, column)
        for line in (
            *_method_lines(results, column),
            *_floor_lines(results, column),
            *_paper_lines(results, column),
        ):
            writer.writerow({name: field(value) for name, value in (always | line).items()})
    return file.getvalue()


def field(value: object) -> object:
    """A field that a spreadsheet shows and does not compute: text that it would take for a formula
    begins with an apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{printable(value)}" if _FORMULA.match(value) else printable(value)
    return value


def _of_column(results: Results, column: Column) -> Line:
    """The fields that all lines of a column share."""
    suite = results.suite
    return {
        "suite": suite.name,
        "budget": results.budget,
        "column": column.id,
        "column_label": column.label or column.id,
        "evaluation": suite.evaluation,
        "metric": suite.metric,
        "goal": suite.goal,
        "unit": "%" if suite.percent else "",
    }


def _method_lines(results: Results, column: Column) -> Iterator[Line]:
    entries = column_entries(results, column.id)
    fitted = gaps(results)
    scale = 100.0 if results.suite.percent else 1.0
    for row in results.rows:
        table_cell = results.table_cells[row.id, column.id]
        found = entries.get(row.id)
        seeds = {run.cell.seed for run in table_cell.runs}
        line = {
            "kind": "method",
            "row": row.id,
            "row_label": row.label or row.id,
            "seeds_done": 0,
            "seeds_planned": len(table_cell.runs),
            **_ours(results, found),
            "best": int(found.best) if found else "",
            "validation_minus_test": (
                stats.mean(over) * scale if (over := fitted.get((row.id, column.id))) else ""
            ),
            "shown_worse": int(found.worse) if found else "",
            "p_holm": "" if found is None or found.p is None else found.p,
            "holes": "; ".join(
                f"{len(seeds)} {state}: {reason}" if reason else f"{len(seeds)} {state}"
                for state, reason, seeds in table_cell.holes(*results.metric)
            ),
            "chosen": how_in_words(row.how(results.budget), seeds),
            "keys": " ".join(run.cell.key for run in table_cell.runs),
        }
        yield from (line | _published(number) for number in table_cell.paper)
        if not table_cell.paper:
            yield line


def _floor_lines(results: Results, column: Column) -> Iterator[Line]:
    suite = results.suite
    if suite.floor:
        label = suite.floor_label or suite.floor
        line = {"kind": "floor", "row": suite.floor, "row_label": label, "metric": suite.floor}
        yield line | _ours(results, floor(results, column.id)[0])


def _paper_lines(results: Results, column: Column) -> Iterator[Line]:
    for extra in results.suite.paper_rows:
        for number in results.paper_only.get((extra.id, column.id), ()):
            line = {"kind": "paper", "row": extra.id, "row_label": extra.label}
            yield line | _published(number)


def _ours(results: Results, found: Entry | None) -> Line:
    """What was measured, in the table's unit; empty where nothing was."""
    if found is None:
        return {}
    scale = 100.0 if results.suite.percent else 1.0
    return {
        "ours_mean": found.mean * scale,
        "ours_pm_over": found.over,
        "ours_pm": "" if found.pm is None else found.pm * scale,
        "ours_std_over_seeds": "" if found.std is None else found.std * scale,
        "episodes_least": found.episodes[0],
        "episodes_most": found.episodes[1],
        "seeds_done": len(found.seeds),
    }


def _published(number: Published) -> Line:
    return {
        "paper_value": number.value,
        "paper_pm": "" if number.pm is None else number.pm,
        "paper_pm_meaning": number.pm_meaning,
        "paper_source": number.source,
        "paper_label": number.label.strip("[]"),
    }


def cost_csv(results: Results) -> str:
    """A line for each row and column: every cost, as the mean over finished seeds."""
    found = {at: costs(results, *at) for at in results.table_cells}
    names = sorted({name for known in found.values() for name in known})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["suite", "budget", "row", "column", "seeds_done", "seeds_planned", *map(field, names)]
    )
    for (row, column), known in found.items():
        table_cell = results.table_cells[row, column]
        writer.writerow(
            [
                results.suite.name,
                results.budget,
                field(row),
                field(column),
                len(table_cell.done),
                len(table_cell.runs),
                *[known.get(name, "") for name in names],
            ]
        )
    return file.getvalue()
