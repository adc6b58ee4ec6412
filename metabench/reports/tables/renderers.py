"""One grid of text in Markdown, HTML, plain text and on a rich console; LaTeX has a module of its
own."""

from __future__ import annotations

import html as html_module
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from metabench.core.text import one_line

if TYPE_CHECKING:
    from rich.box import Box
    from rich.console import Group
    from rich.table import Table


WORSE = "†"
"""After a number that is shown to be worse than another of its column."""
STAR = "*"
"""After the best number, where there is no bold."""


@dataclass(frozen=True)
class Item:
    """One field of a grid: its text (one printable line), whether it is the best (``bold``), shown
    to be worse than another (``worse``), the marks of its footnotes, and the place (row, column)
    whose records it comes from."""

    text: str
    bold: bool = False
    worse: bool = False
    marks: tuple[str, ...] = ()
    place: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", one_line(self.text))


@dataclass(frozen=True)
class Footnote:
    """A line below a grid; ``mark`` is what refers to it, empty for a general one. ``code``, a
    command, is shown as code at its end. ``best``: it says what the mark of the best number means,
    and begins with that mark as the format has it. ``only``: it belongs to a table on a "page"
    (Markdown, HTML, LaTeX) or in a "terminal" (plain text, rich) alone."""

    text: str
    mark: str = ""
    code: str = ""
    best: bool = False
    only: Literal["", "page", "terminal"] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", one_line(self.text))
        object.__setattr__(self, "code", one_line(self.code))

    def words(self, best: str) -> str:
        """The text, where the mark of the best number is ``best``."""
        return f"{best}: {self.text}" if self.best else self.text


@dataclass(frozen=True)
class Grid:
    """A table: ``groups`` (label, number of columns) above ``heads``; ``rules`` are numbers of
    rows before which a line is drawn; ``left`` columns are words, the rest numbers."""

    title: str
    groups: Sequence[tuple[str, int]]
    heads: Sequence[str]
    rows: Sequence[Sequence[Item]]
    footnotes: Sequence[Footnote] = ()
    rules: frozenset[int] = field(default_factory=frozenset)
    left: int = 1
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", one_line(self.title))
        object.__setattr__(self, "groups", [(one_line(label), n) for label, n in self.groups])
        object.__setattr__(self, "heads", list(map(one_line, self.heads)))

    def notes(self, medium: Literal["page", "terminal"]) -> list[Footnote]:
        """The footnotes that belong there."""
        return [note for note in self.footnotes if note.only in ("", medium)]


def joined_heads(grid: Grid, between: str) -> list[str]:
    """The head of each column: the label of its group, then its own."""
    over = [label for label, span in grid.groups for _ in range(span)]
    return [
        between.join(part for part in pair if part) for pair in zip(over, grid.heads, strict=True)
    ]


def markdown_escape(text: str) -> str:
    r"""Text that Markdown shows as it is: one line, specials behind a backslash, < and & as
    entities."""
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(grid: Grid) -> str:
    """A pipe table and its footnotes as a list."""

    def cell(item: Item) -> str:
        text = markdown_escape(item.text)
        text = (f"**{text}**" if item.bold else text) + WORSE * item.worse
        return text + (f" <sup>{','.join(item.marks)}</sup>" if item.marks else "")

    heads = [markdown_escape(head) for head in joined_heads(grid, ": ")]
    table = _tabulated(grid, heads, cell, "pipe")
    lines = [f"### {markdown_escape(grid.title)}", "", table, ""]
    for note in grid.notes("page"):
        mark = f"<sup>{note.mark}</sup> " if note.mark else ""
        code = f" {_code_span(note.code)}" if note.code else ""
        lines.append(f"- {mark}{markdown_escape(note.words('Bold'))}{code}")
    return "\n".join(lines).rstrip() + "\n"


def _tabulated(grid: Grid, heads: Sequence[str], cell: Callable[[Item], str], style: str) -> str:
    """The body of a grid in one of tabulate's styles."""
    from tabulate import tabulate

    return tabulate(
        [[cell(item) for item in row] for row in grid.rows],
        headers=heads,
        tablefmt=style,
        disable_numparse=True,
        colalign=["left" if i < grid.left else "right" for i in range(len(heads))],
    )


def _code_span(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _shown(item: Item) -> str:
    """A field where there are no bold letters and nothing stands above the line."""
    marks = f" [{','.join(item.marks)}]" if item.marks else ""
    return item.text + STAR * item.bold + WORSE * item.worse + marks


def text(grid: Grid, width: int | None = None) -> str:
    """Plain text; the best numbers have a star, and those shown to be worse a dagger.

    No line is longer than ``width`` characters (None: lines are as long as they are): a table that
    is wider is split as by :func:`rich`, and the footnotes are wrapped.
    """
    from rich.cells import cell_len

    heads = [head.replace("\0", "\n") for head in joined_heads(grid, "\0")]
    table = [line.rstrip() for line in _tabulated(grid, heads, _shown, "simple").splitlines()]
    if width is not None and max(map(cell_len, table)) > width:
        table = _split_lines(grid, width)
    lines = [grid.title, "", *table, ""]
    for n in grid.notes("terminal"):
        said = (f"[{n.mark}] " if n.mark else "") + n.words(STAR)
        lines += _with_command(said, n.code, width)
    if width is not None:
        lines = [part for line in lines for part in _wrapped(line, width)]
    return "\n".join(lines) + "\n"


def _with_command(said: str, command: str, width: int | None) -> list[str]:
    """A footnote and its command in one line, or in two where that is too long."""
    together = f"{said} {command}".rstrip()
    if width is not None and len(together) > width and command:
        return [said, command]
    return [together]


def _wrapped(line: str, width: int) -> list[str]:
    from rich.console import Console
    from rich.text import Text

    # Not textwrap, which takes each character for one column.
    return [part.plain.rstrip() for part in Text(line).wrap(Console(width=width), width)]


_DASHES = "    \n    \n -- \n" + 5 * "    \n"
"""A box of :mod:`rich.box` that draws nothing but dashes below the heads."""


def _split_lines(grid: Grid, width: int) -> list[str]:
    """The tables of a grid that is too wide for one, each below an empty line."""
    from rich import box
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False)
    for number, part in enumerate(_parts(grid, width)):
        if number:
            console.print()
        console.print(_rich_table(grid, part, width, box.Box(_DASHES, ascii=True)))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def html(grid: Grid, link: Callable[[tuple[str, str]], str] | None = None) -> str:
    """A ``<table>`` in a box of its own, in which a page may let it scroll, and its footnotes.
    ``link`` gives the address of a place's records; without it there are no links."""
    escape, left = html_module.escape, ' class="left"'

    def cell(item: Item, tag: str) -> str:
        text = escape(item.text).replace(" ± ", "&nbsp;±&nbsp;")
        text = f"<strong>{text}</strong>" if item.bold else text
        text += f'<span class="worse">{WORSE}</span>' if item.worse else ""
        if item.place is not None and link is not None:
            text = f'<a href="{escape(link(item.place))}">{text}</a>'
        marks = f"<sup>{escape(','.join(item.marks))}</sup>" if item.marks else ""
        kind = ' scope="row"' if tag == "th" else ""
        return f"<{tag}{kind}>{text}{marks}</{tag}>"

    title = escape(grid.title)
    # What scrolls has to be in reach of the keyboard, and then has to have a name.
    box = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
    out = [box, '<table class="metabench">', f"<caption>{title}</caption>", "<thead>"]
    if any(label for label, _ in grid.groups):
        spans = "".join(
            f'<th colspan="{span}" scope="colgroup">{escape(label)}</th>'
            if label
            else "<td></td>" * span
            for label, span in grid.groups
        )
        out.append(f"<tr>{spans}</tr>")
    heads = "".join(
        f'<th scope="col"{left if i < grid.left else ""}>{escape(head)}</th>'
        for i, head in enumerate(grid.heads)
    )
    out += [f"<tr>{heads}</tr>", "</thead>", "<tbody>"]
    for number, row in enumerate(grid.rows):
        kind = ' class="ruled"' if number in grid.rules else ""
        cells = "".join(cell(x, "th" if i < grid.left else "td") for i, x in enumerate(row))
        out.append(f"<tr{kind}>{cells}</tr>")
    out += ["</tbody>", "</table>", "</div>", '<ul class="notes">']
    for note in grid.notes("page"):
        mark = f"<sup>{escape(note.mark)}</sup> " if note.mark else ""
        code = f" <code>{escape(note.code)}</code>" if note.code else ""
        out.append(f"<li>{mark}{escape(note.words('Bold'))}{code}</li>")
    return "\n".join([*out, "</ul>"]) + "\n"


def rich(grid: Grid, width: int) -> Group:
    """A renderable for a rich console; the best numbers have a star, and are bold and green where
    the console has that.

    Where the numbers do not fit into ``width`` characters, the columns are split into several
    tables, each with the row labels.
    """
    from rich import box
    from rich.console import Group
    from rich.text import Text

    footnotes = []
    for note in grid.notes("terminal"):
        mark = f"[{note.mark}] " if note.mark else ""
        said, *command = _with_command(mark + note.words(STAR), note.code, width)
        together = note.code and not command
        line = Text(said.removesuffix(note.code) if together else said)
        line.stylize("dim", 0, len(mark))
        line.append(note.code if together else "", style="bold")
        footnotes += [line, *[Text(code, style="bold") for code in command]]
    tables: list[Table | str] = []
    for part in _parts(grid, width):
        tables += [_rich_table(grid, part, width, box.SIMPLE_HEAD), ""]
    return Group(Text(grid.title, style="italic"), "", *tables, *footnotes)


GAP = 2
"""Characters between the columns of a table that is fitted into a width."""


def _needs(grid: Grid, i: int) -> tuple[int, int]:
    """Characters of column ``i``: those of its longest word, a number and its ± being one, and
    those of its longest line."""
    texts = [*joined_heads(grid, "\n")[i].split("\n"), *[_shown(row[i]) for row in grid.rows]]
    words = [word for text in texts for word in text.replace(" ± ", "_±_").split()]
    return max(map(len, words), default=1), max(map(len, texts))


def _parts(grid: Grid, width: int) -> list[list[int]]:
    """Numbers of the columns of each table that fits into ``width``."""
    left = list(range(grid.left))
    parts: list[list[int]] = [[]]
    fixed = sum(_needs(grid, i)[0] + GAP for i in left) - GAP
    room = width - fixed
    for i in range(grid.left, len(grid.heads)):
        need = _needs(grid, i)[0] + GAP
        if parts[-1] and room < need:
            parts.append([])
            room = width - fixed
        parts[-1].append(i)
        room -= need
    return [left + part for part in parts]


def _widths(grid: Grid, columns: Sequence[int], width: int) -> list[int]:
    """Characters for each of ``columns``: what its longest word needs, what is left over to the
    first ones; where even the words are too long, the longest are broken."""
    least, whole = map(list, zip(*[_needs(grid, i) for i in columns], strict=True))
    room = max(len(columns), width - GAP * (len(columns) - 1))
    while sum(least) > room:
        least[least.index(max(least))] -= 1
    for i, most in enumerate(whole):
        least[i] += min(max(0, most - least[i]), room - sum(least))
    return least


def _rich_table(grid: Grid, columns: Sequence[int], width: int, lines: Box) -> Table:
    from rich.table import Table
    from rich.text import Text

    # A column is divided from the next by its padding and by the divider of the box.
    padding = (0, GAP - 1, 0, 0)
    table = Table(box=lines, show_edge=False, pad_edge=False, padding=padding)
    heads = joined_heads(grid, "\n")
    for i, wide in zip(columns, _widths(grid, columns, width), strict=True):
        justify: Literal["left", "right"] = "left" if i < grid.left else "right"
        table.add_column(Text(heads[i]), justify=justify, width=wide, overflow="fold")
    for number, row in enumerate(grid.rows):
        if number in grid.rules and number:
            table.add_section()
        cells = []
        for i in columns:
            item = row[i]
            shown = Text(_shown(item))
            number_length = len(item.text + STAR * item.bold)
            shown.stylize("bold green" if item.bold else "", 0, number_length)
            shown.stylize("dim", number_length)
            cells.append(shown)
        table.add_row(*cells)
    return table
