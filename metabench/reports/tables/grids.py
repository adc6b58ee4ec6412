"""The tables of a suite: the papers' numbers beside ours, and what the runs cost."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from typing import Literal, cast, get_args

from metabench.analysis import stats
from metabench.analysis.comparisons import Comparisons
from metabench.analysis.estimates import EQUIVALENTS, Entry, column_entries, costs, floor
from metabench.analysis.paper_claims import reach_comparisons
from metabench.analysis.results import Hole, Results, TableCell
from metabench.core.errors import UnknownName
from metabench.core.text import counted, human, listed, with_pm
from metabench.reports.footnotes.costs import price_footnotes
from metabench.reports.footnotes.general import (
    Entries,
    Floors,
    command_footnotes,
    general_footnotes,
    hole_footnotes,
    label_footnotes,
    reconstruction_footnotes,
)
from metabench.reports.footnotes.marks import FootnoteMarks
from metabench.reports.footnotes.references import reference_footnotes
from metabench.reports.footnotes.unverified import unverified_footnotes
from metabench.reports.tables import csv_export, latex, renderers
from metabench.reports.tables.overfitting import gap_grid
from metabench.reports.tables.renderers import WORSE, Footnote, Grid, Item
from metabench.suites.schema import NOT_THE_PAPERS, PaperRow, Published, Row
from metabench.suites.suite import Suite

Format = Literal["markdown", "latex", "csv", "html", "text", "rich"]
FORMATS: tuple[str, ...] = get_args(Format)
HOLE = "—"


def table(results: Results, fmt: Format = "markdown", width: int | None = None) -> str:
    """The main table: rows are methods, columns are tasks, the paper's number | ours.

    "csv" has a line for each row, column and published number, in the table's unit. "rich" is text
    with colour codes for a terminal. "text" and "rich" fit into ``width`` characters (None: text
    lines of any length; as wide as the terminal). Raises UnknownName for an unknown format.
    """
    if fmt == "csv":
        return csv_export.main_csv(results)
    return "\n".join(render(grid, fmt, width) for grid in grids(results))


def grids(results: Results) -> list[Grid]:
    """The main table, that of the costs to reach a level where the suite has one, and that of the
    outer level's over-fitting where it learns on the validation split."""
    gap = gap_grid(results)
    return [
        main_grid(results),
        *([reach_grid(results)] if results.suite.reach else []),
        *([gap] if gap else []),
    ]


def cost_table(results: Results, fmt: Format = "markdown", width: int | None = None) -> str:
    """What a run cost, mean over finished seeds: counts, seconds, peak memory. As :func:`table`."""
    if fmt == "csv":
        return csv_export.cost_csv(results)
    return render(cost_grid(results), fmt, width)


def draw(results: Results, fmt: str, *, cost: bool = False, width: int | None = None) -> str:
    """:func:`table` or :func:`cost_table` in a format that a user has named."""
    return (cost_table if cost else table)(results, cast("Format", fmt), width)


def render(grid: Grid, fmt: str, width: int | None = None) -> str:
    """A grid as text in one of ``FORMATS``, csv excepted; ``width`` as in :func:`table`."""
    if fmt == "rich":
        from rich.console import Console

        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=width)
        console.print(renderers.rich(grid, console.width))
        return file.getvalue()
    if fmt == "text":
        return renderers.text(grid, width)
    plain: dict[str, Callable[[Grid], str]] = {
        "markdown": renderers.markdown,
        "latex": latex.latex,
        "html": renderers.html,
    }
    if fmt not in plain:
        raise UnknownName("table format", fmt, FORMATS)
    return plain[fmt](grid)


def main_grid(results: Results) -> Grid:
    """The main table as a grid with its footnotes."""
    suite = results.suite
    entries = {column.id: column_entries(results, column.id) for column in suite.columns}
    floors = {column.id: floor(results, column.id) for column in suite.columns}
    sources = FootnoteMarks("abcdefghijklmnopqrstuvwxyz")
    holes = FootnoteMarks("123456789")
    papers, paper_only = results.paper_columns, {row for row, _ in results.paper_only}
    rows = [_method_row(results, row, entries, sources, holes) for row in results.rows]
    heads = [head for c in suite.columns for head in [*_paper_heads(results, c.id), "ours"]]
    rules = set()
    if suite.floor:
        rules.add(len(rows))
        rows.append(_floor_row(results, floors))
    if paper_only:
        rules.add(len(rows))
        rows += [_paper_row(results, r, sources) for r in suite.paper_rows if r.id in paper_only]
    return Grid(
        f"{suite.title} (budget {results.budget})",
        [("", 1), *[(c.label or c.id, 1 + (c.id in papers)) for c in suite.columns]],
        [_metric_in_words(suite), *heads],
        rows,
        [
            *general_footnotes(results, entries, floors),
            *[Footnote(text, mark) for mark, text in sources.items()],
            *label_footnotes(results),
            *unverified_footnotes(results),
            *[Footnote(text, mark) for mark, text in holes.items()],
            *reference_footnotes(results),
            *command_footnotes(results),
        ],
        frozenset(rules),
        1,
        f"{suite.name}-{results.budget}",
    )


def _paper_heads(results: Results, column: str) -> list[str]:
    """The head of a column's published numbers where it has some: "reference" where no paper has
    one of them."""
    labels = {n.label.strip("[]") for n in results.published if n.column == column}
    return ["paper" if labels - NOT_THE_PAPERS else "reference"] if labels else []


def _metric_in_words(suite: Suite) -> str:
    unit = ", %" if suite.percent else ""
    goal = "higher" if suite.goal == "max" else "lower"
    return f"{suite.metric.replace('_', ' ')}{unit} ({goal} is better)"


def _method_row(
    results: Results, row: Row, entries: Entries, sources: FootnoteMarks, holes: FootnoteMarks
) -> list[Item]:
    line = [Item(row.label or row.id)]
    for column in results.columns:
        table_cell = results.table_cells[row.id, column.id]
        if column.id in results.paper_columns:
            line.append(_paper_item(table_cell.paper, sources))
        line.append(_our_item(results, table_cell, entries[column.id].get(row.id), holes))
    return line


def _floor_row(results: Results, floors: Floors) -> list[Item]:
    suite = results.suite
    line = [Item(suite.floor_label or suite.floor)]
    for column in suite.columns:
        found, _ = floors[column.id]
        text = with_pm(found.mean, found.pm, *_scale(suite)) if found else HOLE
        measured = (
            row.id
            for row in results.rows
            if results.table_cells[row.id, column.id].estimates(suite.evaluation, suite.floor)
        )
        place = (next(measured), column.id) if found else None
        line += [Item("")] * (column.id in results.paper_columns) + [Item(text, place=place)]
    return line


def _paper_row(results: Results, row: PaperRow, sources: FootnoteMarks) -> list[Item]:
    line = [Item(row.label)]
    for column in results.columns:
        numbers = results.paper_only.get((row.id, column.id), ())
        if column.id in results.paper_columns:
            line.append(_paper_item(numbers, sources))
        line.append(Item(""))
    return line


def _scale(suite: Suite) -> tuple[float, int | None]:
    """What a value is shown times, and its fewest decimals."""
    return (100.0, 1) if suite.percent else (1.0, None)


def _paper_item(numbers: tuple[Published, ...], sources: FootnoteMarks) -> Item:
    if not numbers:
        return Item("")
    marks = []
    for number in numbers:
        meaning = f"; ± is the {number.pm_meaning}" if number.pm is not None else ("; no ± given")
        marks.append(sources.mark(f"{number.source} [{number.label}]{meaning}."))
    return Item("; ".join(published_text(n) for n in numbers), marks=tuple(dict.fromkeys(marks)))


def published_text(number: Published) -> str:
    """A published value with its ±, in as many decimals as the paper gives; "?" after one from
    memory."""
    doubt = "" if number.verified else "?"
    parts = [number.value] if number.pm is None else [number.value, number.pm]
    decimals = max(len(str(float(x)).partition(".")[2]) for x in parts)
    if any("e" in str(float(x)) for x in parts):
        return " ± ".join(f"{x:g}" for x in parts) + doubt
    return " ± ".join(f"{x:.{decimals}f}" for x in parts) + doubt


def _our_item(
    results: Results, table_cell: TableCell, found: Entry | None, holes: FootnoteMarks
) -> Item:
    missing = table_cell.holes(*results.metric)
    marks = tuple(holes.mark(note) for note in hole_footnotes(table_cell, missing))
    place = (table_cell.row, table_cell.column)
    if found is None:
        kinds = {state for state, _, _ in missing}
        if kinds == {"not applicable"}:
            return Item("n/a", marks=marks, place=place)
        if kinds == {"skipped"}:
            return Item("not run", marks=marks, place=place)
        counted = ", ".join(f"{n} {state}" for state, n in _by_state(missing).items())
        return Item(f"{HOLE} ({counted})", marks=marks, place=place)
    text = with_pm(found.mean, found.pm, *_scale(results.suite))
    if missing:
        text += f" (n={len(found.seeds)} of {len(table_cell.runs)})"
    return Item(text, found.best, found.worse, marks, place)


def _by_state(missing: list[Hole]) -> dict[str, int]:
    out: dict[str, int] = {}
    for state, _, seeds in missing:
        out[state] = out.get(state, 0) + len(seeds)
    return out


COSTS = {
    "steps": "outer steps",
    EQUIVALENTS: "inner-gradient equivalents",
    "inner_gradients": "inner gradients",
    "outer_gradients": "outer gradients",
    "hvps": "Hessian products",
    "mixed_products": "mixed products",
    "function_evaluations": "function evaluations",
    "trainings": "trainings",
    "seconds": "training time",
    "evaluation_seconds": "evaluation time",
    "peak_memory_bytes": "peak memory",
    "peak_device_memory_bytes": "peak device memory",
    "peak_tensor_bytes": "tensors held at once",
    "derivatives": "gradients and products in all",
}
"""Costs that the harness knows, in the table's order, in words."""
SELDOM = ("steps", EQUIVALENTS, "peak_device_memory_bytes", "peak_tensor_bytes", "derivatives")
"""Costs that not every run has: a table does not list them as zero."""


def reach_grid(results: Results) -> Grid:
    """What it costs each row to reach the suite's level, as a grid."""
    reach = results.suite.reach
    assert reach is not None
    rows = []
    families = {column.id: reach_comparisons(results, column.id) for column in results.columns}
    for row in results.rows:
        line = [Item(row.label or row.id)]
        for column in results.columns:
            at = row.id, column.id
            found = [*results.reached.get(at, {}).values()]
            costs = [r.cost for r in found if r.reached]
            text = with_pm(stats.mean(costs), stats.half_width(costs), 1.0, None) if costs else HOLE
            if len(costs) < len(found):
                text += f" ({len(costs)} of {counted(len(found), 'seed')})"
            line.append(Item(text, worse=row.id in families[column.id].worse, place=at))
        rows.append(line)
    goal = "at least" if (reach.goal or results.suite.goal) == "max" else "at most"
    if reach.level is not None:
        level = f"is {goal} {reach.level:g}"
    else:
        level = f"is within {reach.within:g} (relative) of the best that any row has in that seed"
    cost = COSTS.get(reach.cost, reach.cost)
    return Grid(
        f"Cost to reach a level: {results.suite.title} (budget {results.budget})",
        [("", 1), *[(column.label or column.id, 1) for column in results.columns]],
        [f"{cost} (fewer is better)", *["ours"] * len(results.columns)],
        rows,
        [
            Footnote(
                f"{cost.capitalize()} until the learning curve's validation {reach.metric} {level}:"
                " mean over the seeds that reach it, in brackets how many do where not all; ± is "
                "the half-width of the 95 % t-interval. The curve has a point at every evaluation."
            ),
            *_reach_marks(families.values()),
            *_unknown_level(results, reach.metric),
        ],
        frozenset(),
        1,
        f"{results.suite.name}-{results.budget}-reach",
    )


def _reach_marks(families: Collection[Comparisons]) -> list[Footnote]:
    """What the dagger of a table of costs means, or that nothing has one; nothing where no two rows
    are tested."""
    if any(family.worse for family in families):
        text = (
            f"{WORSE}: shown to cost more than some other row of the column, tested as in the "
            "table above; a row with a seed that does not reach the level is never shown to cost "
            "less."
        )
    elif any(family.tests for family in families):
        text = (
            "No row is shown to cost more than another of its column, tested as in the table above."
        )
    else:
        return []
    return [Footnote(text)]


def _unknown_level(results: Results, metric: str) -> list[Footnote]:
    """The columns whose finished runs have other validation metrics than the level's."""
    columns: dict[str, list[str]] = {}
    for column in results.columns:
        cells = [results.table_cells[row.id, column.id] for row in results.rows]
        known = {name for cell in cells for r in cell.done for name in r.metrics.get("valid", {})}
        if known and metric not in known:
            said = str(UnknownName("validation metric", metric, known))
            columns.setdefault(said, []).append(column.label or column.id)
    return [Footnote(f"Without a level ({listed(at)}): {said}.") for said, at in columns.items()]


def cost_grid(results: Results) -> Grid:
    """Costs by task and method, with costs that are zero everywhere left out."""
    found = {at: costs(results, *at) for at in results.table_cells}
    seen = {name for known in found.values() for name, value in known.items() if value}
    names = [n for n in COSTS if n in seen] + sorted(seen - COSTS.keys())
    rows: list[list[Item]] = []
    rules = set()
    for column in results.columns:
        rules.add(len(rows))
        for row in results.rows:
            at = row.id, column.id
            table_cell, known = results.table_cells[at], found[at]
            rows.append(
                [
                    Item(column.label or column.id),
                    Item(row.label or row.id),
                    Item(f"{len(table_cell.done)} of {len(table_cell.runs)}"),
                    *[
                        Item(human(n, known[n]), place=at) if n in known else Item(HOLE)
                        for n in names
                    ],
                ]
            )
    return Grid(
        f"Cost of a run: {results.suite.title} (budget {results.budget})",
        [("", 3 + len(names))],
        ["task", "method", "seeds", *[COSTS.get(n, n) for n in names]],
        rows,
        [
            *_cost_footnotes(results, seen),
            *price_footnotes(results),
            *reconstruction_footnotes(results),
        ],
        frozenset(rules),
        2,
        f"{results.suite.name}-{results.budget}-cost",
    )


def _cost_footnotes(results: Results, seen: set[str]) -> list[Footnote]:
    out = [
        Footnote(
            "Mean over finished seeds. Counts are for one episode's batch each; evaluation is not "
            "counted. Times are on the machine that ran it; memory is the process's peak."
        )
    ]
    if "seconds" in seen:
        out.append(Footnote(_timed(results)))
    zero = [words for n, words in COSTS.items() if n not in seen and n not in SELDOM]
    if zero and seen:
        out.append(Footnote(f"Zero everywhere: {listed(zero)}."))
    return out


def _timed(results: Results) -> str:
    """What training time has in it."""
    runs = [r for cell in results.table_cells.values() for r in cell.done if r.steps]
    cold = [r for r in runs if "warm_up_seconds" not in r.environment]
    text = (
        "Training time is that of outer steps and of drawing their episodes; imports, reading data "
        "and building the problem are not in it, nor is a first step that is thrown away to warm up"
    )
    if cold:
        text += (
            f" (the warm-up of {len(cold)} of {counted(len(runs), 'run')} is in their time: "
            "several processes shared the cell, or an earlier version ran it)"
        )
    return text + "."
