"""Prints how cells stand: a plan and what it costs, states with their reasons, bad files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metabench.cli.printing import terminal
from metabench.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.api import Status
    from metabench.store.files import BadFile
    from metabench.store.store import Store
    from metabench.suites.arena.definition import Arena
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite

MOST_KEYS = 3
"""Of the cells that share a line of a status."""


def title_of(suite: Suite | Arena, budget: str) -> str:
    """What stands above the cells of a suite."""
    return f"{suite.name}: {suite.title} (budget {budget})"


def cells_of(planned: Iterable[Planned]) -> str:
    """States and how many cells are in each."""
    counts = Counter(p.state for p in planned)
    return ", ".join(f"{n} {state}" for state, n in counts.items()) or "no cells"


def _seeds(group: Sequence[Planned]) -> str:
    return ", ".join(str(p.cell.seed) for p in group)


def _keys(group: Sequence[Planned]) -> str:
    """The beginning of the first keys, as ``metabench logs`` takes them."""
    more = " ..." if len(group) > MOST_KEYS else ""
    return ", ".join(p.cell.key[:10] for p in group[:MOST_KEYS]) + more


def _grouped(planned: Iterable[Planned]) -> dict[tuple[str, ...], list[Planned]]:
    """Cells that differ in nothing but the seed, together."""
    groups: dict[tuple[str, ...], list[Planned]] = {}
    for p in planned:
        at = p.record.raised_at if p.record is not None and p.state == "failed" else ""
        reason = f"{p.reason} (raised at {at})" if at else p.reason
        groups.setdefault((p.row, p.column, p.state, reason), []).append(p)
    return groups


def print_plan(out: Console, title: str, planned: Sequence[Planned], jobs: int = 1) -> None:
    """One line a row, column and state; what is missing and how to get it; the cost in all."""
    from metabench.core.text import duration
    from metabench.suites.planning import TO_RUN

    terminal.heading(out, title)
    header = ("row", "column", "seeds", "state", "cost", "why")
    rows: list[tuple[str, ...]] = []
    for (row, column, state, reason), group in _grouped(planned).items():
        known = [p.estimated_seconds for p in group if p.estimated_seconds is not None]
        published = [p.published_seconds for p in group if p.published_seconds is not None]
        cost = f"about {duration(sum(known))}" if known else ""
        if published and not known:
            cost = f"published: {duration(sum(published))}"
        # What can be repaired is named once, below.
        why = "" if group[0].repair else reason
        rows.append((row, column, _seeds(group), state, cost, why))
    terminal.grid_with_reasons(out, header, rows, whole=2)
    terminal.prose(out, f"{counted(len(planned), 'cell')}: {cells_of(planned)}")
    print_due(out, [p for p in planned if p.state in TO_RUN], jobs)
    print_repairs(out, planned)


def once_each(planned: Iterable[Planned]) -> list[Planned]:
    """Without those that are the same cell as one before: it is run once."""
    return [*{p.cell.key: p for p in planned}.values()]


def print_due(out: Console, due: Sequence[Planned], jobs: int) -> None:
    """How many cells are to be run, each once wherever it stands, and how long they take as far as
    that is known."""
    from metabench.core.text import duration

    if not due:
        return
    places, due = len(due), once_each(due)
    text = f"to run: {counted(len(due), 'cell')}"
    if places > len(due):
        text += f", for {places} places"
    known = [p.estimated_seconds for p in due if p.estimated_seconds is not None]
    if known:
        text += f"; {len(known)} of them about {duration(sum(known))} by similar finished cells"
        if jobs > 1:
            text += f" ({duration(sum(known) / jobs)} with {counted(jobs, 'job')})"
    taken = [p for p in due if p.published_seconds is not None]
    if taken:
        text += f"; {len(taken)} of them about "
        text += duration(sum(p.published_seconds or 0.0 for p in taken))
        machines = " or ".join(dict.fromkeys(p.published_on for p in taken))
        text += f", one after another, on the machine of the published run ({machines})"
    if unknown := len(due) - len(known) - len(taken):
        text += f"; {unknown} of unknown cost"
    terminal.prose(out, text)


def print_repairs(out: Console, planned: Iterable[Planned]) -> None:
    """Each command that repairs something, once."""
    for (state, reason, repair), n in Counter(
        (p.state, p.reason, p.repair) for p in planned if p.repair
    ).items():
        terminal.print_repair(out, f"{state} ({counted(n, 'cell')}): {reason}; ", repair)


def print_refusals(out: Console, planned: Iterable[Planned]) -> None:
    """Each reason for a cell that is never run, once."""
    from metabench.suites.planning import NEVER_RUN

    never = [p for p in planned if p.state in NEVER_RUN]
    for (state, reason), n in Counter((p.state, p.reason) for p in never).items():
        terminal.prose(out, f"{state} ({counted(n, 'cell')}): {reason}", "yellow")


def print_status(out: Console, title: str, status: Status, tracebacks: bool = False) -> None:
    """Counts, then every cell that did not end well with its reason, then bad files."""
    from metabench.core.cell import place_names

    if status.planned:
        terminal.heading(out, title)
        terminal.prose(out, f"{counted(len(status.planned), 'cell')}: {cells_of(status.planned)}")
        rows = [
            (row, column, _seeds(group), _keys(group), state, "" if group[0].repair else reason)
            for (row, column, state, reason), group in _grouped(status.planned).items()
            if state not in ("done", "open") or reason
        ]
        if rows:
            header = ("row", "column", "seeds", "key", "state", "why")
            terminal.grid_with_reasons(out, header, rows, whole=2)
        print_repairs(out, status.planned)
    else:
        terminal.heading(out, title)
        counts = Counter((r.cell.task, r.cell.method, r.status) for r in status.records)
        if counts:
            summary = sorted((*names, str(n)) for names, n in counts.items())
            terminal.grid(out, ("task", "method", "state", "cells"), summary, whole=2)
        else:
            terminal.line(out, "no records")
    bad = [r for r in status.records if r.status != "done"]
    names = place_names((p.row, p.column, p.cell) for p in status.planned)
    for record in bad:
        if tracebacks or not status.planned:
            name = names.get(record.key, str(record.cell))
            terminal.prose(out, f"\n{name}: {record.status}: {record.reason}", "red")
        if tracebacks and record.traceback:
            terminal.line(out, record.traceback)
    if any(r.traceback for r in bad) and not tracebacks:
        terminal.line(out, "tracebacks: add --tracebacks; that of one cell: metabench logs KEY")
    print_bad_files(out, map(str, status.problems))


def print_bad_files(out: Console, bad: Iterable[str]) -> None:
    """Each file of a store that cannot be trusted, and why."""
    for what in bad:
        terminal.prose(out, f"bad file: {what}", "red")


def tell_bad_files(bad: Iterable[BadFile | str]) -> None:
    """The same on standard error, so that what is redirected holds nothing else."""
    print_bad_files(terminal.console(stderr=True), map(str, bad))


def tell_nothing(suite: Suite | Arena, planned: Iterable[Planned], store: Store) -> None:
    """Where a store has no record of these cells, say which store that is, on standard error."""
    if all(p.record is None for p in planned):
        terminal.say(f"{suite.name}: no record of these cells in {store.place}", err=True)
