"""The sentences below a table: budgets in words, holes and their reasons, source labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metabench.analysis.results import Crossing, Hole, Results
from metabench.core.cell import Budget
from metabench.core.settings import fields
from metabench.reports.renderers import Note, one_line
from metabench.suites.suite import Column, Row

LONGEST = 240
"""Characters of a reason that are shown; the record has all of it."""


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


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(n: int, what: str) -> str:
    """A number of things: 1 episode, 2 episodes."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def hole_notes(crossing: Crossing, missing: list[Hole]) -> list[str]:
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
            for record in results.crossings[row.id, column.id].done:
                said, label = record.notes.get("reconstruction"), row.label or row.id
                if said and label not in rows.setdefault(str(said), []):
                    rows[str(said)].append(label)
    return [
        Note(f"Reconstructed in part ({listed(labels)}): {one_line(said).rstrip('.')}.")
        for said, labels in rows.items()
    ]


def shortened(reason: str) -> str:
    """A reason in one line of at most ``LONGEST`` characters, without its full stop."""
    reason = one_line(reason).rstrip(".")
    return reason if len(reason) <= LONGEST else reason[: LONGEST - 1].rstrip() + "…"


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
    if set(states) - {"done", "not applicable", "skipped"}:
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
            budget = results.crossings[row.id, column.id].runs[0].cell.budget
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


def human(name: str, value: float) -> str:
    """A cost with its unit: bytes as KiB, MiB or GiB, seconds or ms to three digits, counts with
    commas or as k, M, G."""
    if name.endswith("_bytes"):
        size = value / 2**20
        if size < 10:
            return f"{size:.3g} MiB" if size >= 1 else f"{1024 * size:.3g} KiB"
        return f"{size:,.0f} MiB" if size < 10240 else f"{size / 1024:,.1f} GiB"
    if name.endswith("seconds"):
        if 0 < value < 1:
            return f"{1000 * value:.3g} ms"
        return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            scale = 1e3 if letter == "k" else unit
            return f"{value / scale:.4g} {letter}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
