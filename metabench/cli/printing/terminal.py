"""The pieces that all printing is made of, fitted to a terminal; without colour elsewhere, and
fitted to COLUMNS characters, or 80. Commands to type, tracebacks and logs keep their lines."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from metabench.core.text import ITEM

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

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
    if not out.is_terminal and wide(header, rows) <= out.width:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (tuple(header), *rows):
            cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            line(out, "  ".join(cells).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    if wide(header[:whole], [row[:whole] for row in rows]) > out.width // 2:
        whole = 0  # rich would cut off what may not wrap
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, name in enumerate(header):
        table.add_column(name, no_wrap=at < whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in row))
    out.print(table)


def grid_with_reasons(
    out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], *, whole: int
) -> None:
    """A table whose last column is prose, which stands below it where the table is too wide: in a
    narrow last column it would be lines of two words each."""
    from metabench.reports.footnotes.marks import FootnoteMarks

    footnotes = FootnoteMarks("123456789")
    if wide(header, rows) > out.width:
        rows = [(*row, f"[{footnotes.mark(why)}]" if why else "") for *row, why in rows]
    grid(out, header, rows, whole=whole)
    line(out, "")
    for mark, text in footnotes.items():
        prose(out, f"[{mark}] {text}")
    if footnotes.items():
        line(out, "")


def wide(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Width of a table that is not wrapped."""
    return sum(2 + max(map(len, column)) for column in zip(header, *rows, strict=True)) - 2


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
