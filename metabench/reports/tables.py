"""The tables of a suite: the papers' numbers beside ours, and what each number cost."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from typing import Literal, cast, get_args

from metabench.analysis.estimates import ALPHA, FEWEST, Entry, column_entries, costs, floor
from metabench.analysis.results import Hole, Results, TableCell
from metabench.core.errors import UnknownName
from metabench.core.limits import RUNAWAY
from metabench.core.settings import typed
from metabench.core.text import human, listed, with_pm
from metabench.reports import csv_export, renderers
from metabench.reports.footnotes import (
    Marks,
    budget_notes,
    claim_notes,
    hole_notes,
    reconstruction_notes,
)
from metabench.reports.renderers import Grid, Item, Note
from metabench.suites.schema import LABELS, Published

Format = Literal["markdown", "latex", "csv", "html", "text", "rich"]
FORMATS: tuple[str, ...] = get_args(Format)
HOLE = "—"


def table(
    results: Results,
    fmt: Format = "markdown",
    *,
    link: Callable[[tuple[str, str]], str] | None = None,
) -> str:
    """The main table: rows are methods, columns are tasks, the paper's number | ours.

    "csv" is long: one line a crossing and published number, in the table's unit. "rich" is text
    with colour codes for a terminal. ``link`` (html): the address of a crossing's records. Raises
    UnknownName for a format that there is not.
    """
    if fmt == "csv":
        return csv_export.main_csv(results)
    return render(main_grid(results), fmt, link)


def cost_table(
    results: Results,
    fmt: Format = "markdown",
    *,
    link: Callable[[tuple[str, str]], str] | None = None,
) -> str:
    """What a run cost, mean over finished seeds: counts, seconds, peak memory. As :func:`table`."""
    if fmt == "csv":
        return csv_export.cost_csv(results)
    return render(cost_grid(results), fmt, link)


def draw(results: Results, fmt: str, *, cost: bool = False) -> str:
    """:func:`table` or :func:`cost_table` in a format that a user has named."""
    return (cost_table if cost else table)(results, cast("Format", fmt))


def render(grid: Grid, fmt: str, link: Callable[[tuple[str, str]], str] | None = None) -> str:
    """A grid as text in one of ``FORMATS`` but csv."""
    if fmt == "rich":
        from rich.console import Console

        file = io.StringIO()
        console = Console(file=file, force_terminal=True)
        console.print(renderers.rich(grid, console.width))
        return file.getvalue()
    if fmt == "html":
        return renderers.html(grid, link)
    plain = {"markdown": renderers.markdown, "latex": renderers.latex, "text": renderers.text}
    if fmt not in plain:
        raise UnknownName("table format", fmt, FORMATS)
    return plain[fmt](grid)


def main_grid(results: Results) -> Grid:
    """The main table as a grid with its notes."""
    suite = results.suite
    published = bool(suite.paper)
    scale, least = (100.0, 1) if suite.percent else (1.0, None)
    entries = {column.id: column_entries(results, column.id) for column in suite.columns}
    sources, holes = Marks("abcdefghijklmnopqrstuvwxyz"), Marks("123456789")
    rows: list[list[Item]] = []

    for row in suite.rows:
        line = [Item(row.label or row.id)]
        for column in suite.columns:
            crossing = results.table_cells[row.id, column.id]
            if published:
                line.append(_paper_item(crossing.paper, sources))
            line.append(_our_item(results, crossing, entries[column.id].get(row.id), holes))
        rows.append(line)
    rules, notes = set(), []
    if suite.floor:
        rules.add(len(rows))
        line = [Item(suite.floor_label or suite.floor)]
        for column in suite.columns:
            found, others = floor(results, column.id)
            text = with_pm(found.mean, found.pm, scale, least) if found else HOLE
            measured = (
                row.id
                for row in suite.rows
                if results.table_cells[row.id, column.id].estimates(suite.evaluation, suite.floor)
            )
            place = (next(measured), column.id) if found else None
            line += [Item("")] * published + [Item(text, place=place)]
            if others:
                notes.append(
                    Note(
                        f"{column.label or column.id}: {listed(others)} met other test episodes "
                        "than the first method (the floor differs): not strictly comparable."
                    )
                )
        rows.append(line)
        if any(column.values() for column in entries.values()):
            notes.append(
                Note(
                    f"{suite.floor_label or suite.floor}: learns nothing; measured on the methods' "
                    f"own {suite.evaluation} episodes."
                )
            )
    if suite.paper_rows:
        rules.add(len(rows))
        for extra in suite.paper_rows:
            line = [Item(extra.label)]
            for column in suite.columns:
                numbers = results.paper_only.get((extra.id, column.id), ())
                line += [_paper_item(numbers, sources), Item("")]
            rows.append(line)
    unit = ", %" if suite.percent else ""
    goal = "higher" if suite.goal == "max" else "lower"
    groups = [("", 1)]
    heads = [f"{suite.metric.replace('_', ' ')}{unit} ({goal} is better)"]
    for column in suite.columns:
        groups.append((column.label or column.id, 2 if published else 1))
        heads += ["paper", "ours"] if published else ["ours"]
    general = [
        *budget_notes(results),
        *_meaning(entries),
        *_tests(results, entries),
        *claim_notes(results),
        *notes,
        *reconstruction_notes(results),
        *_runaways(results, entries),
        *(() if published else (Note("No paper reports this table."),)),
    ]
    general += [Note(text, mark) for mark, text in sources.items()]
    labels = [f"[{name}] {LABELS[name]}" for name in _labels(results)]
    general += [Note(f"Labels: {'; '.join(labels)}.")] if labels else []
    general += [Note(text, mark) for mark, text in holes.items()]
    if suite.command:
        general.append(Note("Reproduce with:", code=_command(results)))
    return Grid(
        f"{suite.title} (budget {results.budget})",
        groups,
        heads,
        rows,
        general,
        frozenset(rules),
        1,
        f"{suite.name}-{results.budget}",
    )


def _paper_item(numbers: tuple[Published, ...], sources: Marks) -> Item:
    if not numbers:
        return Item("")
    marks = []
    for number in numbers:
        meaning = f"; ± is the {number.pm_meaning}" if number.pm is not None else ("; no ± given")
        marks.append(sources.mark(f"{number.source} [{number.label}]{meaning}."))
    return Item("; ".join(published_text(n) for n in numbers), marks=tuple(dict.fromkeys(marks)))


def published_text(number: Published) -> str:
    """A published value with its +-, in as many decimals as the paper has."""
    parts = [number.value] if number.pm is None else [number.value, number.pm]
    decimals = max(len(str(float(x)).partition(".")[2]) for x in parts)
    if any("e" in str(float(x)) for x in parts):
        return " ± ".join(f"{x:g}" for x in parts)
    return " ± ".join(f"{x:.{decimals}f}" for x in parts)


def _our_item(results: Results, crossing: TableCell, found: Entry | None, holes: Marks) -> Item:
    missing = crossing.holes(*results.metric)
    marks = tuple(holes.mark(note) for note in hole_notes(crossing, missing))
    place = (crossing.row, crossing.column)
    if found is None:
        kinds = {state for state, _, _ in missing}
        if kinds == {"not applicable"}:
            return Item("n/a", marks=marks, place=place)
        if kinds == {"skipped"}:
            return Item("not run", marks=marks, place=place)
        counted = ", ".join(f"{n} {state}" for state, n in _by_state(missing).items())
        return Item(f"{HOLE} ({counted})", marks=marks, place=place)
    scale, least = (100.0, 1) if results.suite.percent else (1.0, None)
    text = with_pm(found.mean, found.pm, scale, least)
    if missing:
        text += f" (n={len(found.seeds)} of {len(crossing.runs)})"
    return Item(text, found.best, marks, place)


def _by_state(missing: list[Hole]) -> dict[str, int]:
    out: dict[str, int] = {}
    for state, _, seeds in missing:
        out[state] = out.get(state, 0) + len(seeds)
    return out


def _meaning(entries: dict[str, dict[str, Entry]]) -> list[Note]:
    """What +- is an interval over, with the numbers of seeds and episodes."""
    found = [e for column in entries.values() for e in column.values()]
    if not found:
        return [Note("No cell has finished: there are no numbers of ours yet.")]
    episodes = _span([n for e in found for n in e.episodes])
    out = []
    over_seeds = [e for e in found if e.over == "seeds"]
    if over_seeds:
        counts = _span([len(e.seeds) for e in over_seeds])
        out.append(
            Note(
                "Ours: mean over seeds; ± is the half-width of the 95 % t-interval over seeds of "
                f"the per-seed means (n = {counts} seeds, {episodes} test episodes each)."
            )
        )
    one = [e for e in found if e.over == "episodes"]
    if one:
        which = "Numbers of one seed" if over_seeds else "Ours: one seed"
        out.append(
            Note(
                f"{which}: ± is the half-width of the 95 % t-interval over the {episodes} test "
                "episodes of that run; it says nothing of other seeds."
            )
        )
    if any(e.over == "nothing" for e in found):
        out.append(Note("A number without ± is one seed on one test episode."))
    return out


def _tests(results: Results, entries: dict[str, dict[str, Entry]]) -> list[Note]:
    """What bold means, and the tests that say so."""
    used = {e.test for column in entries.values() for e in column.values()}
    if not any(len(column) > 1 for column in entries.values()):
        return []
    level = f"{100 * ALPHA:.0f} %"
    out = "Bold: best of ours in the column"
    paired = bool(used & {"paired", "paired logs"})
    if paired or "welch" in used:
        out += f", and every method that is not significantly worse at {level}"
    tests = []
    if paired:
        kind = ""
        if "paired logs" in used:
            kind = " of logarithms" + (" where all are above 0" if "paired" in used else "")
        tests.append(
            f"paired t-test{kind} over common seeds (a seed fixes data, first values and test "
            "episodes; with fewer than 6 seeds a Wilcoxon test cannot reach 5 %)"
        )
    if "welch" in used:
        tests.append(
            f"with fewer than {FEWEST} common seeds Welch's unpaired t-test over their test "
            "episodes, which says nothing of other seeds"
        )
    if tests:
        out += "; test against the best: " + "; ".join(tests) + "; Holm's correction by column"
    # The best of a column is not tested either.
    if any(sum(e.test == "none" for e in column.values()) > 1 for column in entries.values()):
        out += (
            ". Where there is but one episode, or no common seed, no test is possible; then only "
            "means that are the best to four digits are bold"
        )
    few = [len(e.seeds) for column in entries.values() for e in column.values()]
    if paired and max(few) < 5:
        out += f". With {max(few)} seeds only large differences are significant"
    return [Note(out + ".")]


def _runaways(results: Results, entries: dict[str, dict[str, Entry]]) -> list[Note]:
    """Numbers that are finite and no results."""
    found = [
        f"{results.row_label(row)} ({column.label or column.id})"
        for column in results.columns
        for row, e in entries[column.id].items()
        if abs(e.mean) >= RUNAWAY
    ]
    if not found:
        return []
    return [
        Note(
            f"{listed(found)}: finite, but so large that the inner training must have run away; "
            "a smaller inner step size may mend it."
        )
    ]


def _span(counts: list[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}–{max(counts):,}"


def _labels(results: Results) -> list[str]:
    used = {number.label.strip("[]") for number in results.suite.paper}
    return [name for name in LABELS if name in used]


def _command(results: Results) -> str:
    command = results.suite.command
    if "--budget" not in command:
        command += f" --budget {results.budget}"
    for override in results.overrides:
        setting = f"{override.scope}.{override.name}={typed(override.value)}"
        command += f" --set {shlex.quote(setting)}"
    if results.seeds is not None:
        command += f" --seeds {','.join(map(str, results.seeds))}"
    return command


COSTS = {
    "steps": "outer steps",
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
}
"""Costs that the harness knows, in the table's order, in words."""
SELDOM = ("steps", "peak_device_memory_bytes", "peak_tensor_bytes")
"""Costs that not every run has, of whose absence a table says nothing."""


def cost_grid(results: Results) -> Grid:
    """Costs by task and method, with costs that are zero everywhere left out."""
    found = {at: costs(crossing) for at, crossing in results.table_cells.items()}
    seen = {name for known in found.values() for name, value in known.items() if value}
    names = [n for n in COSTS if n in seen] + sorted(seen - COSTS.keys())
    rows: list[list[Item]] = []
    rules = set()
    for column in results.columns:
        rules.add(len(rows))
        for row in results.rows:
            known = found[row.id, column.id]
            crossing = results.table_cells[row.id, column.id]
            n = len(crossing.done)
            seeds = f"{n} of {len(crossing.runs)}"
            line = [Item(column.label or column.id), Item(row.label or row.id), Item(seeds)]
            line += [
                Item(
                    human(name, known[name]) if name in known else HOLE,
                    place=(row.id, column.id) if name in known else None,
                )
                for name in names
            ]
            rows.append(line)
    zero = [w for n, w in COSTS.items() if n not in seen and n not in SELDOM]
    notes = [
        Note(
            "Mean over finished seeds. Counts are for one episode's batch each; evaluation is not "
            "counted. Times are on the machine that ran it; memory is the process's peak."
        )
    ]
    if zero and seen:
        notes.append(Note(f"Zero everywhere: {listed(zero)}."))
    notes += reconstruction_notes(results)
    return Grid(
        f"Cost of a run: {results.suite.title} (budget {results.budget})",
        [("", 3 + len(names))],
        ["task", "method", "seeds", *[COSTS.get(n, n) for n in names]],
        rows,
        notes,
        frozenset(rules),
        2,
        f"{results.suite.name}-{results.budget}-cost",
    )
