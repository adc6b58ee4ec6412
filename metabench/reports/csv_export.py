"""The tables of a suite as CSV: long, machine-readable, numbers in the table's unit."""

from __future__ import annotations

import csv
import io

from metabench.analysis.estimates import Entry, column_entries, costs, floor
from metabench.analysis.results import Results
from metabench.suites.schema import Column, Published

FIELDS = (
    "suite",
    "budget",
    "kind",
    "row",
    "row_label",
    "column",
    "column_label",
    "evaluation",
    "metric",
    "goal",
    "unit",
    "ours_mean",
    "ours_pm",
    "ours_pm_over",
    "ours_std_over_seeds",
    "seeds_done",
    "seeds_planned",
    "episodes_least",
    "episodes_most",
    "best",
    "p_holm",
    "test",
    "holes",
    "paper_value",
    "paper_pm",
    "paper_pm_meaning",
    "paper_source",
    "paper_label",
    "keys",
)
"""Columns of the CSV table; ``kind`` is method, floor or paper; ``keys`` are of every planned
cell; numbers are in the table's unit."""


def main_csv(results: Results) -> str:
    """One line a crossing, or one a published number where a crossing has several; then floors and
    rows that only papers have."""
    suite = results.suite
    scale = 100.0 if suite.percent else 1.0
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()

    def ours(found: Entry | None) -> dict[str, object]:
        if found is None:
            return {}
        return {
            "ours_mean": found.mean * scale,
            "ours_pm_over": found.over,
            "ours_pm": "" if found.pm is None else found.pm * scale,
            "ours_std_over_seeds": "" if found.std is None else found.std * scale,
            "episodes_least": found.episodes[0],
            "episodes_most": found.episodes[1],
            "seeds_done": len(found.seeds),
        }

    def write(
        kind: str,
        row: str,
        label: str,
        column: Column,
        more: dict[str, object],
        papers: tuple[Published, ...] = (),
    ) -> None:
        line = {
            "suite": suite.name,
            "budget": results.budget,
            "kind": kind,
            "row": row,
            "row_label": label,
            "column": column.id,
            "column_label": column.label or column.id,
            "evaluation": suite.evaluation,
            "metric": suite.metric,
            "goal": suite.goal,
            "unit": "%" if suite.percent else "",
            **more,
        }
        for paper in papers or (None,):
            if paper is not None:
                line |= {
                    "paper_value": paper.value,
                    "paper_pm": "" if paper.pm is None else paper.pm,
                    "paper_pm_meaning": paper.pm_meaning,
                    "paper_source": paper.source,
                    "paper_label": paper.label.strip("[]"),
                }
            writer.writerow(line)

    for column in suite.columns:
        entries = column_entries(results, column.id)
        for row in suite.rows:
            crossing = results.table_cells[row.id, column.id]
            found = entries.get(row.id)
            more: dict[str, object] = {
                "seeds_done": 0,
                "seeds_planned": len(crossing.runs),
                **ours(found),
                "best": int(found.best) if found else "",
                "test": found.test if found else "",
                "p_holm": "" if found is None or found.p is None else found.p,
                "holes": "; ".join(
                    f"{len(seeds)} {state}: {reason}" if reason else f"{len(seeds)} {state}"
                    for state, reason, seeds in crossing.holes(*results.metric)
                ),
                "keys": " ".join(run.cell.key for run in crossing.runs),
            }
            write("method", row.id, row.label or row.id, column, more, crossing.paper)
        if suite.floor:
            more = {"metric": suite.floor, **ours(floor(results, column.id)[0])}
            write("floor", suite.floor, suite.floor_label or suite.floor, column, more)
        for extra in suite.paper_rows:
            numbers = results.paper_only.get((extra.id, column.id), ())
            if numbers:
                write("paper", extra.id, extra.label, column, {}, numbers)
    return file.getvalue()


def cost_csv(results: Results) -> str:
    """One line a crossing: mean over finished seeds of every cost."""
    found = {at: costs(crossing) for at, crossing in results.table_cells.items()}
    names = sorted({name for known in found.values() for name in known})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["suite", "budget", "row", "column", "seeds_done", "seeds_planned", *names])
    for (row, column), known in found.items():
        crossing = results.table_cells[row, column]
        writer.writerow(
            [
                results.suite.name,
                results.budget,
                row,
                column,
                len(crossing.done),
                len(crossing.runs),
                *[known.get(name, "") for name in names],
            ]
        )
    return file.getvalue()
