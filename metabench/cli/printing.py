"""What the command line prints: fitted to a terminal; without colour elsewhere, and fitted to
COLUMNS characters, or 80. Commands to type, tracebacks and logs keep their lines."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from metabench.core.text import ITEM, counted, unwrapped, without_markup

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from metabench.api import Status
    from metabench.api.describe import Description
    from metabench.api.spending import Cost, Estimated, Left
    from metabench.core.findings import Finding
    from metabench.core.registry import Entry
    from metabench.store.files import BadFile
    from metabench.suites.listing import ListedSuite
    from metabench.suites.planning import Planned

LONGEST_DEFAULT = 60
"""Characters of a default that `show` prints."""
MOST_DATA = 3
"""Data sets that the line of a suite names; of more it says how many."""
MOST_KEYS = 3
"""Of the cells that share a line of a status."""

STYLES = {
    "done": "green",
    "ok": "green",
    "open": "",
    "running": "cyan",
    "failed": "red",
    "diverged": "red",
    "timeout": "yellow",
    "broken": "red",
    "too old": "red",
    "missing": "yellow",
    "closed": "yellow",
    "missing data": "yellow",
    "missing package": "yellow",
    "not applicable": "dim",
    "skipped": "dim",
    "note": "",
    "pending": "cyan",
    "held": "yellow",
    "cancelled": "yellow",
    "out of memory": "red",
    "out of time": "yellow",
    "node failure": "yellow",
    "pre-empted": "yellow",
    "crashed": "red",
    "lost": "red",
}


def console(stderr: bool = False) -> Console:
    """Where to print; what others wrote is shown and never acts on the terminal. Where that is no
    terminal, it is as wide as the environment's COLUMNS says, or 80 characters."""
    from rich.console import Console
    from rich.segment import Segment

    from metabench.core.text import printable

    class Printable(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            """Its text, made printable; colours and cursor moves are rich's own."""
            for part in super().render(renderable, options):
                yield part if part.control else Segment(printable(part.text), part.style)

    out = Printable(stderr=stderr, highlight=False)
    if not out.is_terminal:  # rich would ask the terminal that the input comes from
        out.width = shutil.get_terminal_size().columns
    return out


def say(text: str, *, err: bool = False, color: str | None = None) -> None:
    """Print text as it is, but for what would act on the terminal."""
    import typer

    from metabench.core.text import printable

    typer.secho(printable(text), fg=color, err=err)


def grid(
    out: Console, header: Sequence[str], rows: Iterable[Sequence[str]], *, whole: int = 1
) -> None:
    """Print a plain table. Where it is too wide, the columns after the first ``whole`` wrap."""
    rows = [tuple(row) for row in rows]
    if not out.is_terminal and _wide(header, rows) <= out.width:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (tuple(header), *rows):
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            line(out, "  ".join(cells).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    if _wide(header[:whole], [row[:whole] for row in rows]) > out.width // 2:
        whole = 0  # rich would cut off what may not wrap
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, name in enumerate(header):
        table.add_column(name, no_wrap=at < whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in row))
    out.print(table)


def _grid_with_reasons(
    out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], *, whole: int
) -> None:
    """A table whose last column is prose, which stands below it where the table is too wide: in a
    narrow last column it would be lines of two words each."""
    from metabench.reports.footnotes.general import FootnoteMarks

    footnotes = FootnoteMarks("123456789")
    if _wide(header, rows) > out.width:
        rows = [(*row, f"[{footnotes.mark(why)}]" if why else "") for *row, why in rows]
    grid(out, header, rows, whole=whole)
    line(out, "")
    for mark, text in footnotes.items():
        prose(out, f"[{mark}] {text}")
    if footnotes.items():
        line(out, "")


def heading(out: Console, text: str) -> None:
    """A bold line below an empty one."""
    prose(out, f"\n{text}", "bold")


def prose(out: Console, text: str, style: str = "") -> None:
    """Prose: wrapped between words, an item of a list below its own beginning; a long path or
    address stays one word, to be copied."""
    for each in text.split("\n"):
        below = " " * len(item[0]) if (item := ITEM.match(each)) else ""
        parts = textwrap.wrap(
            each,
            out.width,
            subsequent_indent=below,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in parts or [""]:
            line(out, part, style)


def line(out: Console, text: str, style: str = "") -> None:
    """A line that is not wrapped: a command to type, or part of a log."""
    out.print(text, markup=False, style=style, soft_wrap=True)


def print_listing(out: Console, listing: dict[str, list[Entry]]) -> None:
    """Names by kind, each with its author's line."""
    for kind, entries in listing.items():
        heading(out, f"{kind}s")
        foreign = any(e.origin != "built-in" for e in entries)
        header = ("name", "from", "what") if foreign else ("name", "what")
        told = [(e, without_markup(e.summary)) for e in entries]
        rows = [(e.name, e.origin, what) if foreign else (e.name, what) for e, what in told]
        grid(out, header, rows, whole=len(header) - 1)


def print_suites(out: Console, suites: Sequence[ListedSuite]) -> None:
    """Suites with their papers, their data and what their published runs took."""
    from metabench.core.text import duration

    heading(out, "suites")
    rows = []
    for s in suites:
        data = ", ".join(f"{name} (not here)" if name in s.missing else name for name in s.data)
        if len(s.data) > MOST_DATA:
            lack = f", {len(s.missing)} not here" if s.missing else ""
            data = f"{len(s.data)} data sets{lack}"
        taken = "" if s.seconds is None else duration(s.seconds)
        rows.append((s.name, s.title, s.reference, data, taken))
    header = ("name", "what", "paper", "data", "laptop")
    if _wide(header, rows) <= out.width:
        grid(out, header, rows)
    else:  # columns of two words each would be no table
        for name, title, *others in rows:
            prose(out, f"{name}: {title}")
            told = [
                f"{what}: {text}" for what, text in zip(header[2:], others, strict=True) if text
            ]
            if told:
                prose(out, f"    {'; '.join(told)}", "dim")
    prose(
        out,
        "\nlaptop: what all cells of the published run took, one after another, on two cores",
    )


def print_descriptions(out: Console, descriptions: Iterable[Description]) -> None:
    """All of each description: paragraphs wrapped anew, without a docstring's markup."""
    for d in descriptions:
        heading(out, f"{d.kind} {d.name}: {without_markup(d.title)}")
        if d.text.strip() != d.title:
            prose(out, without_markup(unwrapped(d.text)))
        for name, text in d.facts:
            prose(out, f"{name}: {text}")
        if d.settings:
            heading(out, "settings")
            rows = [(s.name, _short(s.default), s.type, without_markup(s.doc)) for s in d.settings]
            grid(out, ("name", "default", "type", "meaning"), rows)
        for title, (header, *table) in d.tables:
            heading(out, title.lower())
            grid(out, header, table)
        prose(out, f"\nsource: {d.source}")


def _short(default: str) -> str:
    """A default that is a page of its own (a prompt), by its beginning."""
    if len(default) <= LONGEST_DEFAULT:
        return default
    return default[: LONGEST_DEFAULT - 4].rstrip() + " ..."


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


def _wide(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Width of a table that is not wrapped."""
    return sum(2 + max(map(len, column)) for column in zip(header, *rows, strict=True)) - 2


def print_plan(out: Console, title: str, planned: Sequence[Planned], jobs: int = 1) -> None:
    """One line a row, column and state; what is missing and how to get it; the cost in all."""
    from metabench.core.text import duration
    from metabench.suites.planning import TO_RUN

    heading(out, title)
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
    _grid_with_reasons(out, header, rows, whole=2)
    prose(out, f"{counted(len(planned), 'cell')}: {cells_of(planned)}")
    print_due(out, [p for p in planned if p.state in TO_RUN], jobs)
    print_repairs(out, planned)


def print_due(out: Console, due: Sequence[Planned], jobs: int) -> None:
    """How many cells are to be run, and how long they take as far as that is known."""
    from metabench.core.text import duration

    if not due:
        return
    text = f"to run: {counted(len(due), 'cell')}"
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
    prose(out, text)


def print_repairs(out: Console, planned: Iterable[Planned]) -> None:
    """Each command that repairs something, once."""
    for (state, reason, repair), n in Counter(
        (p.state, p.reason, p.repair) for p in planned if p.repair
    ).items():
        print_repair(out, f"{state} ({counted(n, 'cell')}): {reason}; ", repair)


def print_repair(out: Console, what: str, repair: str) -> None:
    """What is wrong and what repairs it. Where both are too long for a line, the command stands on
    one of its own, which is never broken, and what else one may do below."""
    together = f"{what}repair it with: {repair}"
    if len(together) <= out.width:
        line(out, together, "yellow")
        return
    command, alternative, words = repair.partition(", or ")
    prose(out, f"{what}repair it with:", "yellow")
    line(out, f"    {command}", "yellow")
    if alternative:
        prose(out, f"or {words}", "yellow")


def print_refusals(out: Console, planned: Iterable[Planned]) -> None:
    """Each reason for a cell that is never run, once."""
    from metabench.suites.planning import NEVER_RUN

    never = [p for p in planned if p.state in NEVER_RUN]
    for (state, reason), n in Counter((p.state, p.reason) for p in never).items():
        prose(out, f"{state} ({counted(n, 'cell')}): {reason}", "yellow")


def print_status(out: Console, title: str, status: Status, tracebacks: bool = False) -> None:
    """Counts, then every cell that did not end well with its reason, then bad files."""
    from metabench.core.cell import place_names

    if status.planned:
        heading(out, title)
        prose(out, f"{counted(len(status.planned), 'cell')}: {cells_of(status.planned)}")
        rows = [
            (row, column, _seeds(group), _keys(group), state, "" if group[0].repair else reason)
            for (row, column, state, reason), group in _grouped(status.planned).items()
            if state not in ("done", "open") or reason
        ]
        if rows:
            header = ("row", "column", "seeds", "key", "state", "why")
            _grid_with_reasons(out, header, rows, whole=2)
        print_repairs(out, status.planned)
    else:
        heading(out, title)
        counts = Counter((r.cell.task, r.cell.method, r.status) for r in status.records)
        if counts:
            summary = sorted((*names, str(n)) for names, n in counts.items())
            grid(out, ("task", "method", "state", "cells"), summary, whole=2)
        else:
            line(out, "no records")
    bad = [r for r in status.records if r.status != "done"]
    names = place_names((p.row, p.column, p.cell) for p in status.planned)
    for record in bad:
        if tracebacks or not status.planned:
            name = names.get(record.key, str(record.cell))
            prose(out, f"\n{name}: {record.status}: {record.reason}", "red")
        if tracebacks and record.traceback:
            line(out, record.traceback)
    if any(r.traceback for r in bad) and not tracebacks:
        line(out, "tracebacks: add --tracebacks; that of one cell: metabench logs KEY")
    print_bad_files(out, map(str, status.problems))


def print_bad_files(out: Console, bad: Iterable[str]) -> None:
    """Each file of a store that cannot be trusted, and why."""
    for what in bad:
        prose(out, f"bad file: {what}", "red")


def tell_bad_files(bad: Iterable[BadFile | str]) -> None:
    """The same on standard error, so that what is redirected holds nothing else."""
    print_bad_files(console(stderr=True), map(str, bad))


def print_findings(out: Console, findings: Sequence[Finding]) -> None:
    """What the doctor found, by section, and then what to type."""
    for section in dict.fromkeys(f.section for f in findings):
        heading(out, section)
        rows = [(f.name, f.verdict, f.detail) for f in findings if f.section == section]
        grid(out, ("what", "how it is", "detail"), rows)
    repairs: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        if finding.repair:
            repairs.setdefault(finding.repair, []).append(finding)
    if repairs:
        heading(out, "to repair it")
    for commands, group in repairs.items():
        need = "needed" if any(f.essential for f in group) else "optional"
        prose(out, f"{', '.join(f.name for f in group)} ({need}):")
        for command in commands:
            line(out, f"    {command}")


def print_costs(out: Console, title: str, found: Sequence[Cost]) -> None:
    """Hours by method or row, and all together."""
    from metabench.api.spending import total

    heading(out, title)
    if not found:
        line(out, "no records")
        return
    rows = []
    for c in [*found, whole := total(found)]:
        hours = f"{c.gpu_hours:.3g}", f"{c.cpu_hours:.3g}"
        rows.append((c.name, str(c.cells), *hours, str(c.attempts), _left(c.left)))
    header = ("what", "records", "h on GPUs", "h on CPUs", "attempts", "left to run")
    grid(out, header, rows)
    prose(
        out,
        "\nh: hours by the clock of training and evaluation, of each rank where several share a "
        "cell",
    )
    if whole.left.similar:
        prose(out, "about: by similar cells that have finished here, one after another")
    if whole.left.published:
        machines = " or ".join(whole.left.machines)
        prose(
            out,
            "published: what they took, one after another, on the machine of the published run "
            f"({machines})",
        )


def _left(left: Left) -> str:
    """How many cells are to be run, and how long that takes by what is known."""
    from metabench.core.text import duration

    told = [counted(left.cells, "cell")]
    told += [f"about {duration(left.similar_hours * 3600)}"] * bool(left.similar)
    told += [f"published {duration(left.published_hours * 3600)}"] * bool(left.published)
    told += [f"{left.unknown} of unknown cost"] * bool(left.unknown)
    return ", ".join(told) if left.cells else ""


def print_estimates(out: Console, found: Sequence[Estimated]) -> None:
    """Measured over estimated seconds of past submissions."""
    if not found:
        return
    heading(out, "past estimates: measured / estimated")
    rows = [
        (e.submission, str(e.cells), f"{e.median:.2f}", f"{e.low:.2f} to {e.high:.2f}")
        for e in found
    ]
    grid(out, ("submission", "cells", "median", "most of them"), rows)
