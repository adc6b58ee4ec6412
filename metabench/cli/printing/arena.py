"""Prints how the cells of an arena stand, by problem and by method, as there are thousands; and how
its runs have ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from metabench.api.arena.tournament import TO_PLAY
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import cells_of, print_due, print_refusals, print_repairs
from metabench.core.text import counted, duration
from metabench.suites.arena.definition import AS_SHIPPED
from metabench.suites.planning import NEVER_RUN

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.api.arena.tournament import Plan
    from metabench.reports.arena.endings import Ending
    from metabench.store.store import Store
    from metabench.suites.arena.definition import ArenaBudget
    from metabench.suites.planning import Planned


def print_overview(out: Console, title: str, found: Plan, budget: ArenaBudget, jobs: int) -> None:
    """Trials, then the finals: a line a problem, a line a method; what is missing and how to get
    it; how long all takes."""
    _print_cells(out, f"{title}, trials", found.trials, jobs)
    if found.finals:
        _print_cells(out, f"{title}, finals", found.finals, jobs)
    elif any(p.state not in NEVER_RUN for p in found.trials):
        _print_finals_to_come(out, found.trials, len(budget.seeds), jobs)


def _print_cells(out: Console, title: str, planned: Sequence[Planned], jobs: int) -> None:
    terminal.heading(out, title)
    for what, of in (("problem", lambda p: p.column), ("method", _method)):
        terminal.grid(out, *_by(planned, what, of))
        terminal.line(out, "")
    terminal.prose(out, f"{counted(len(planned), 'cell')}: {cells_of(planned)}")
    print_due(out, [p for p in planned if p.state in TO_PLAY], jobs)
    print_refusals(out, planned)
    print_repairs(out, planned)


def _by(
    planned: Sequence[Planned], what: str, of: Callable[[Planned], str]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """A header, and a line for each name: how many cells are in each state that occurs, and how
    long those take that are to be run, as far as that is known."""
    groups: dict[str, list[Planned]] = defaultdict(list)
    for p in planned:
        groups[of(p)].append(p)
    states = list(dict.fromkeys(p.state for p in planned))
    rows: list[Sequence[str]] = []
    for name, group in groups.items():
        counts = Counter(p.state for p in group)
        due = [p.estimated_seconds or p.published_seconds for p in group if p.state in TO_PLAY]
        known = [seconds for seconds in due if seconds is not None]
        takes = duration(sum(known)) if known else ""
        if known and len(known) < len(due):
            takes = f"over {takes}"  # some have no like that is finished
        rows.append((name, *(str(counts[state] or "") for state in states), takes))
    return (what, *states, "takes"), rows


def _method(planned: Planned) -> str:
    return planned.row.partition("#")[0].removesuffix(AS_SHIPPED)


def _print_finals_to_come(out: Console, trials: Sequence[Planned], seeds: int, jobs: int) -> None:
    """How many finals there are at most, and how long they take by the trials of the same method on
    the same problem."""
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for p in trials:
        if p.state not in NEVER_RUN:
            record = p.record
            taken = p.estimated_seconds
            if record is not None:
                taken = record.cost.get("seconds", 0.0) + record.cost.get("evaluation_seconds", 0.0)
            pairs[_method(p), p.column] += [taken] if taken is not None else []
    each = 2 * seeds
    text = f"finals: at most {counted(each * len(pairs), 'cell')}, known once no trial is left"
    takes = [each * fmean(seconds) for seconds in pairs.values() if seconds]
    if takes:
        text += f"; about {duration(sum(takes))} by their trials"
        text += f" ({duration(sum(takes) / jobs)} with {counted(jobs, 'job')})" * (jobs > 1)
    if lacking := len(pairs) - len(takes):
        text += f"; {each * lacking} of unknown cost"
    terminal.prose(out, f"\n{text}")


def print_endings(out: Console, endings: Iterable[Ending], store: Store) -> None:
    """How runs of an arena ended where its tables do not say it, each exception with the command
    that shows one of them whole."""
    from metabench.cluster.submitting import hints

    for ending in endings:
        if ending.failed is None:
            terminal.prose(out, ending.text, "yellow")
            continue
        logs = hints.command(["logs", ending.failed.key[:10]], store.root)
        if len(together := f"{ending.text} ({logs})") <= out.width:
            terminal.line(out, together, "red")
        else:
            terminal.prose(out, f"{ending.text}:", "red")
            terminal.line(out, f"    {logs}", "red")
