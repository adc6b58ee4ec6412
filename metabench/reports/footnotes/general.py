"""The footnotes of a table: budgets in words, what ± and bold mean, holes and their reasons."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from metabench.analysis.comparisons import ALPHA, FEWEST, Comparisons
from metabench.analysis.estimates import Entry, comparisons, lost
from metabench.analysis.results import Hole, Results, TableCell
from metabench.core.costs import CUT_STEP
from metabench.core.limits import RUNAWAY
from metabench.core.settings import typed
from metabench.core.text import listed, one_line, shortened
from metabench.reports.footnotes.budget import budget_footnotes, tested_split
from metabench.reports.footnotes.chosen import chosen_footnotes
from metabench.reports.footnotes.claims import claim_footnotes
from metabench.reports.footnotes.costs import cost_footnotes, uncounted_footnotes
from metabench.reports.footnotes.detectable import detectable_footnotes, resolution_footnotes
from metabench.reports.footnotes.protocol import protocol_footnotes
from metabench.reports.footnotes.selection import gap_footnotes, selection_footnotes
from metabench.reports.tables.renderers import WORSE, Footnote
from metabench.store.record import Record
from metabench.suites.schema import LABELS

Entries = dict[str, dict[str, Entry]]
"""Column to row to number of ours; holes are left out."""
Floors = dict[str, tuple[Entry | None, list[str]]]
"""Column to what :func:`metabench.analysis.estimates.floor` gives."""


def general_footnotes(results: Results, entries: Entries, floors: Floors) -> list[Footnote]:
    """What concerns the main table as a whole, in the order in which it is read."""
    return [
        *budget_footnotes(results),
        *same_footnotes(results),
        *protocol_footnotes(results),
        *chosen_footnotes(results),
        *selection_footnotes(results),
        *gap_footnotes(results),
        *uncounted_footnotes(results),
        *cost_footnotes(results),
        *interval_footnotes(results, entries),
        *lost_footnotes(results),
        *mark_footnotes(results, entries),
        *resolution_footnotes(results, entries),
        *claim_footnotes(results),
        *_floor_footnotes(results, entries, floors),
        *reconstruction_footnotes(results),
        *untrained_footnotes(results),
        *runaway_footnotes(results, entries),
        *(() if results.suite.paper else (Footnote("No paper reports this table."),)),
    ]


def _floor_footnotes(results: Results, entries: Entries, floors: Floors) -> list[Footnote]:
    suite = results.suite
    if not suite.floor:
        return []
    out = [
        Footnote(
            f"{column.label or column.id}: {listed(others)} met other test episodes "
            "than the first method (the floor differs): not strictly comparable."
        )
        for column in suite.columns
        if (others := floors[column.id][1])
    ]
    if any(entries.values()):
        out.append(
            Footnote(
                f"{suite.floor_label or suite.floor}: learns nothing; measured on the methods' "
                f"own {tested_split(results)} episodes."
            )
        )
    return out


def hole_footnotes(table_cell: TableCell, missing: list[Hole]) -> list[str]:
    """A sentence for each reason why cells of one row and column have no number."""
    out = []
    for state, reason, chosen in missing:
        reason = shortened(reason)
        if state == "not applicable":
            out.append(f"n/a, not applicable: {reason}.")
        elif state == "skipped":
            out.append(f"Not run: {reason}.")
        elif state == "open":
            out.append("Open: not run yet, or not to the end.")
        else:
            names = f"seed{'s'[: len(chosen) > 1]} {listed(map(str, chosen))}"
            seeds = "all seeds" if len(chosen) == len(table_cell.runs) else names
            out.append(f"{state.capitalize()} ({seeds}): {reason or 'no reason was recorded'}.")
    return out


def reconstruction_footnotes(results: Results) -> list[Footnote]:
    """What is reconstructed in the methods shown, by their finished records: a sentence each."""
    rows: dict[str, list[str]] = {}
    for row in results.rows:
        for column in results.columns:
            for record in results.table_cells[row.id, column.id].done:
                said, label = record.notes.get("reconstruction"), row.label or row.id
                if said and label not in rows.setdefault(str(said), []):
                    rows[str(said)].append(label)
    return [
        Footnote(f"Reconstructed in part ({listed(labels)}): {one_line(said).rstrip('.')}.")
        for said, labels in rows.items()
    ]


def untrained_footnotes(results: Results) -> list[Footnote]:
    """The rows with a run whose budget did not reach the end of its first outer step."""
    rows = {
        row.label or row.id
        for (at, _), table_cell in results.table_cells.items()
        for row in results.rows
        if row.id == at and any(_untrained(record) for record in table_cell.done)
    }
    if not rows:
        return []
    names = listed(sorted(rows))
    return [Footnote(f"The budget ends inside the first outer step: as they start ({names}).")]


def _untrained(record: Record) -> bool:
    """Whether the first outer step was cut, or never begun as the start had used the budget up."""
    begun = record.steps > 0 or record.cell.budget.get("outer_steps") == 0
    return record.notes.get(CUT_STEP) == 1 or not begun


def same_footnotes(results: Results) -> list[Footnote]:
    """The rows that are not shown, as their runs are another's at this budget."""
    twins: dict[str, list[str]] = {}
    for row, first in results.same.items():
        twins.setdefault(results.row_label(first), []).append(results.row_label(row))
    if not twins:
        return []
    told = "; ".join(f"{first} stands for {listed(rows)}" for first, rows in twins.items())
    return [Footnote(f"Rows with the same runs at this budget are one: {told}.")]


def interval_footnotes(results: Results, entries: Entries) -> list[Footnote]:
    """What ± is an interval over, with the numbers of seeds and episodes."""
    found = [e for column in entries.values() for e in column.values()]
    if not found:
        return [Footnote("No cell has finished: there are no numbers of ours yet.")]
    split = tested_split(results)
    every = _span_of([n for e in found for n in e.episodes], f"{split} episode")
    out = []
    over_seeds = [e for e in found if e.over == "seeds"]
    if over_seeds:
        seeds = _span_of([len(e.seeds) for e in over_seeds], "seed")
        out.append(
            Footnote(
                "Ours: mean over seeds; ± is the half-width of the 95 % t-interval over seeds of "
                f"the per-seed means (n = {seeds}, {every} each)."
            )
        )
    one = [e for e in found if e.over == "episodes"]
    if one:
        which = "Numbers of one seed" if over_seeds else "Ours: one seed"
        out.append(
            Footnote(
                f"{which}: ± is the half-width of the 95 % t-interval over the {every} of that "
                "run; it says nothing of other seeds."
            )
        )
    if any(e.over == "nothing" for e in found):
        out.append(Footnote(f"A number without ± is one seed on one {split} episode."))
    return out


def lost_footnotes(results: Results) -> list[Footnote]:
    """The rows whose means are those of the survivors, and what follows."""
    told = []
    for row in results.rows:
        at = [c for c in results.columns if row.id in lost(results, c.id)]
        if at:
            cells = [results.table_cells[row.id, c.id] for c in at]
            counts = [
                f"{cell.lost} of {len(cell.runs)} in {c.label or c.id}"
                for c, cell in zip(at, cells, strict=True)
            ]
            told.append(f"{row.label or row.id} ({listed(counts)})")
    if not told:
        return []
    return [
        Footnote(
            f"Lost runs: {listed(told)}. The mean is that of the others, which flatters the row: "
            "there it is never bold, and never shown to be better than another."
        )
    ]


def mark_footnotes(results: Results, entries: Entries) -> list[Footnote]:
    """What bold and the dagger mean, and what difference would have been seen; none where no column
    compares two methods."""
    if not any(len(column) > 1 for column in entries.values()):
        return []
    out = []
    if any(e.best for column in entries.values() for e in column.values()):
        said = "the best mean of ours in the column, and no more than that."
        out.append(Footnote(said, best=True))
    families = {column.id: comparisons(results, column.id) for column in results.columns}
    tests = [family.tests for family in families.values() if family.tests]
    if not tests:
        said = f"No difference is tested: no two methods have {FEWEST} seeds in common that differ"
        return [*out, Footnote(f"{said} by more in some than in others.")]
    logs = [family.logs for family in families.values() if family.tests]
    kind = " of logarithms" if all(logs) else " (of logarithms where all are above 0)"
    return [
        *out,
        Footnote(
            f"{WORSE}: shown to be worse than some other row of the column, at {100 * ALPHA:.0f} % "
            f"for all rows of a column together: paired t-test{kind if any(logs) else ''} over "
            "common seeds (a seed fixes data, first values and, of rows tested alike, test "
            f"episodes), Holm's correction over all pairs of a column ({_span(tests)} tests). "
            "Without a mark: not told apart."
        ),
        *_contested_footnotes(results, entries, families),
        *detectable_footnotes(results, entries, families),
        *_untested_footnotes(results, entries, families),
    ]


def _contested_footnotes(
    results: Results, entries: Entries, families: Mapping[str, Comparisons]
) -> list[Footnote]:
    """Where the best mean is shown to be worse, by which it is not marked."""
    told = [
        f"{results.row_label(row)} ({column.label or column.id}, "
        f"{'by logarithms' if families[column.id].logs else 'over common seeds'})"
        for column in results.columns
        for row, e in entries[column.id].items()
        if e.contested
    ]
    if not told:
        return []
    return [Footnote(f"The best mean, and yet shown to be worse, so not marked: {listed(told)}.")]


def _untested_footnotes(
    results: Results, entries: Entries, families: Mapping[str, Comparisons]
) -> list[Footnote]:
    """Rows that no test has, in columns that test others."""
    rows: dict[str, list[str]] = {}
    for column in results.columns:
        known, family = entries[column.id], families[column.id]
        tested = {row for at, pair in family.pairs.items() if pair.p is not None for row in at}
        for row in known:
            if family.tests and row not in tested:
                rows.setdefault(results.row_label(row), []).append(column.label or column.id)
    if not rows:
        return []
    told = "; ".join(
        label if len(at) == len(results.columns) else f"{label} ({listed(at)})"
        for label, at in rows.items()
    )
    return [
        Footnote(
            f"Not tested, with fewer than {FEWEST} seeds in common or the same difference in every "
            f"seed: {told}."
        )
    ]


def runaway_footnotes(results: Results, entries: Entries) -> list[Footnote]:
    """Which numbers are finite, but so large that they are no results."""
    found = [
        f"{results.row_label(row)} ({column.label or column.id})"
        for column in results.columns
        for row, e in entries[column.id].items()
        if abs(e.mean) >= RUNAWAY
    ]
    if not found:
        return []
    return [
        Footnote(
            f"{listed(found)}: finite, but so large that the inner training must have diverged; "
            "a smaller inner step size may help."
        )
    ]


def _span(counts: list[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,}–{max(counts):,}"


def _span_of(counts: list[int], what: str) -> str:
    """The span of numbers of things: 1 seed, 3 seeds, 1–3 seeds."""
    return f"{_span(counts)} {what}{'s'[: max(counts) != 1]}"


def label_footnotes(results: Results) -> list[Footnote]:
    """What the labels behind the papers' numbers mean; none where no number has one."""
    used = {number.label.strip("[]") for number in results.published}
    labels = [f"[{name}] {meaning}" for name, meaning in LABELS.items() if name in used]
    return [Footnote(f"Labels: {'; '.join(labels)}.")] if labels else []


def command_footnotes(results: Results) -> list[Footnote]:
    """The command that gives the table again, with what was set by hand."""
    command = results.suite.command
    if not command:
        return []
    if "--budget" not in command:
        command += f" --budget {results.budget}"
    for override in results.overrides:
        setting = f"{override.scope}.{override.name}={typed(override.value)}"
        command += f" --set {shlex.quote(setting)}"
    if results.unverified:
        command += " --unverified"
    if results.seeds is not None:
        command += f" --seeds {','.join(map(str, results.seeds))}"
    return [Footnote("Reproduce with:", code=command)]
