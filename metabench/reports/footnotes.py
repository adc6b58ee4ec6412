"""The sentences below a table: budgets in words, holes and their reasons, source labels."""

from __future__ import annotations

from typing import Any

from metabench.analysis.paper_claims import VERDICTS, Tested, verdicts
from metabench.analysis.results import Hole, Results, TableCell
from metabench.core.cell import Budget
from metabench.core.settings import fields
from metabench.core.text import counted, listed, one_line, shortened, with_pm
from metabench.reports.renderers import Note
from metabench.suites.planning import NEVER_RUN
from metabench.suites.schema import Column, Row


class Marks:
    """Short marks for notes, each text once: a, b, ..., z, aa, ab, ..."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self._texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The mark of a note, a new one where the text is new."""
        if text not in self._texts:
            self._texts[text] = self._name(len(self._texts))
        return self._texts[text]

    def items(self) -> list[tuple[str, str]]:
        """(mark, text), in the order given."""
        return [(mark, text) for text, mark in self._texts.items()]

    def _name(self, number: int) -> str:
        if self.letters[0].isdigit():
            return str(number + 1)
        name, base = "", len(self.letters)
        while number >= 0:
            name, number = self.letters[number % base] + name, number // base - 1
        return name


def hole_notes(crossing: TableCell, missing: list[Hole]) -> list[str]:
    """One sentence a reason why cells of a crossing have no number; none for cells that simply
    have not been run."""
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
            seeds = "all seeds" if len(chosen) == len(crossing.runs) else names
            out.append(f"{state.capitalize()} ({seeds}): {reason or 'no reason was recorded'}.")
    return out


def reconstruction_notes(results: Results) -> list[Note]:
    """What of the methods shown is a reconstruction, by their finished records: a sentence each."""
    rows: dict[str, list[str]] = {}
    for row in results.rows:
        for column in results.columns:
            for record in results.table_cells[row.id, column.id].done:
                said, label = record.notes.get("reconstruction"), row.label or row.id
                if said and label not in rows.setdefault(str(said), []):
                    rows[str(said)].append(label)
    return [
        Note(f"Reconstructed in part ({listed(labels)}): {one_line(said).rstrip('.')}.")
        for said, labels in rows.items()
    ]


def budget_notes(results: Results) -> list[Note]:
    """The budget in words, with the rows that have another, and how many cells are done."""
    suite, chosen = results.suite, results.suite.budget(results.budget)
    limits = {**_defaults(), **chosen.limits}
    seeds = sorted({run.cell.seed for run in results.runs})
    words = [
        *_limits_in_words(limits),
        f"validation on {counted(limits['valid_episodes'], 'episode')} every "
        f"{counted(limits['eval_every'], 'outer step')}",
        f"{counted(limits['test_episodes'], f'{suite.evaluation} episode')}",
        f"tested: {_SELECT[limits['select']]}",
        f"planned seeds: {listed(map(str, seeds))}",
    ]
    for group, values in chosen.set.items():
        words += [f"{group}.{name} = {_plain(value)}" for name, value in values.items()]
    for override in results.overrides:
        words.append(f"set by hand: {override.scope}.{override.name} = {_plain(override.value)}")
    out = [Note(f"Budget {results.budget}: {'; '.join(words)}.")]
    different = other_budgets(results, limits)
    if different:
        out.append(Note(f"Other budgets: {'; '.join(different)}."))
    alone: dict[str, list[str]] = {}
    places: list[Column | Row] = [*suite.columns, *suite.rows]
    for place in places:
        for group, values in place.budgets.get(results.budget, {}).items():
            for name, value in values.items() if group != "budget" else ():
                said = f"{group}.{name} = {_plain(value)}"
                alone.setdefault(said, []).append(place.label or place.id)
    if alone:
        told = "; ".join(f"{said} ({listed(labels)})" for said, labels in alone.items())
        out.append(Note(f"Settings of this budget alone: {told}."))
    states = results.states
    if set(states) - {"done", *NEVER_RUN}:
        by_state = ", ".join(f"{n} {state}" for state, n in states.items())
        out.append(Note(f"Incomplete: of {len(results.runs)} cells {by_state}."))
    return out


def other_budgets(results: Results, limits: dict[str, Any]) -> list[str]:
    """What differs from the table's ``limits``: rows and columns with the same differences
    together."""
    suite = results.suite
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in suite.rows:
        where: dict[str, list[str]] = {}
        for column in suite.columns:
            budget = results.table_cells[row.id, column.id].runs[0].cell.budget
            for name in sorted({*limits, *budget}, key=lambda n: (n not in Budget.LIMITS, n)):
                if budget.get(name) != limits.get(name):
                    said = f"{name} = {_plain(budget.get(name, 'none'))}"
                    where.setdefault(said, []).append(column.label or column.id)
        said_in: dict[str, list[str]] = {}
        for said, columns in where.items():
            place = "" if len(columns) == len(suite.columns) else f" in {listed(columns)}"
            said_in.setdefault(place, []).append(said)
        for place, sayings in said_in.items():
            together.setdefault((place, tuple(sayings)), []).append(row.label or row.id)
    return [
        f"{listed(rows)}{place}: {', '.join(sayings)}"
        for (place, sayings), rows in together.items()
    ]


_SELECT = {
    "best_valid": "the state with the best validation metric",
    "last": "the last state",
}


def _defaults() -> dict[str, Any]:
    return {k: f.default for k, f in fields(Budget).items() if f.default is not None}


def _limits_in_words(limits: dict[str, Any]) -> list[str]:
    names = {"hvps": "Hessian products", "seconds": "seconds of training"}
    return [
        f"{_plain(limits[name])} {names.get(name, name.replace('_', ' '))}"
        for name in Budget.LIMITS
        if limits.get(name) is not None
    ]


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def claim_notes(results: Results) -> list[Note]:
    """A sentence a claim and row, after one that says how they are tested; none without claims or
    before there are numbers."""
    found = verdicts(results)
    if all(t.gain is None for t in found):
        return []
    kinds = {t.verdict for t in found}
    meanings = "; ".join(f"{v}: {means}" for v, means in VERDICTS.items() if v in kinds)
    unit = ", in points," if results.suite.percent else ""
    out = [
        Note(
            f"Claims: mean gain{unit} over common seeds ± half-width of its paired 95 % "
            f"t-interval. {meanings[0].upper()}{meanings[1:]}. Several claims are not corrected "
            "for being several."
        )
    ]
    pairs = [(claim, better) for claim in results.suite.claims for better in claim.better]
    for claim, better in pairs:
        these = [t for t in found if t.claim is claim and t.better == better]
        than = "no worse than" if claim.or_equal else "better than"
        said = f"{results.row_label(better)} {than} {results.row_label(claim.than)}"
        told = "; ".join(
            f"{verdict}{_places(results, some)}"
            for verdict in VERDICTS
            if (some := [t for t in these if t.verdict == verdict])
        )
        out.append(Note(f"Claim ({claim.source}): {said}: {told}."))
    return out


def _places(results: Results, some: list[Tested]) -> str:
    """(column gain; column gain), the column left out where there is one alone, and how many seeds
    there are where they are not all."""
    scale, least = (100.0, 1) if results.suite.percent else (1.0, None)
    labels = {c.id: c.label or c.id for c in results.columns}
    words = []
    for t in some:
        if t.gain is None or t.pm is None:
            gain = counted(t.seeds, "common seed")
        else:
            gain = with_pm(t.gain, t.pm, scale, least)
            if t.seeds < (planned := len(results.table_cells[t.better, t.column].runs)):
                gain += f", n={t.seeds} of {planned}"  # a seed that diverged is no witness
        words.append(f"{labels[t.column]} {gain}" if len(labels) > 1 else gain)
    return f" ({'; '.join(words)})"
