"""From docstrings to Markdown: roles of reStructuredText, shapes, formulas, tables."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from latex2mathml.converter import convert

ROLE = re.compile(r":(?:mod|class|func|meth|attr|data):`~?([^`]+)`")
SHAPE = re.compile(
    r"(?<![\w\]`\"'(])\[((?:[a-z]\w{0,8}|\d+)(?:, ?(?:[a-z]\w{0,8}|\d+|\.\.\.))*)\](?![(\[])"
)
SECTION = re.compile(r"^(Formula|Loop):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
LIMITS = re.compile(r"\\(min|max)_\{([^{}]*)\}")
INLINE = re.compile(r"(?<![\\$])\$([^$\n]+)\$(?!\$)")
DISPLAY = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Told:
    """What the docstring of a method's class says: a line, LaTeX formulas, lines of Python."""

    title: str
    formulas: tuple[str, ...]
    loop: str


def told(doc: str) -> Told:
    """The sections ``Formula:`` and ``Loop:`` of a class's docstring, with the first line.

    >>> told("Descent.\\n\\nFormula:\\n    x^2\\n\\nLoop:\\n    x = x - lr * dF(x)\\n")
    Told(title='Descent.', formulas=('x^2',), loop='x = x - lr * dF(x)')
    """
    doc = inspect.cleandoc(doc) + "\n"
    found = {m[1]: textwrap.dedent(m[2]).strip("\n") for m in SECTION.finditer(doc)}
    blocks = re.split(r"\n\s*\n", found.get("Formula", ""))
    formulas = tuple(" ".join(b.split()) for b in blocks if b.strip())
    return Told(doc.split("\n", 1)[0], formulas, found.get("Loop", ""))


def prose(doc: str) -> str:
    """A docstring as Markdown: roles become code; indented blocks are code as they stand."""
    return ROLE.sub(r"`\1`", doc)


def marked(doc: str) -> str:
    """A docstring as Markdown for the reference: shapes in text, as in "weights [d, k]", are set as
    code, and doctests are fenced; indented blocks stay as they stand."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", prose(doc).strip("\n")):
        if block.lstrip().startswith(">>> "):
            out.append(f"```pycon\n{textwrap.dedent(block).strip()}\n```")
        elif block.startswith("    "):
            out.append(block)
        else:
            parts = re.split(r"(``.+?``|`[^`]+`)", block)
            parts[::2] = [SHAPE.sub(r"`[\1]`", part) for part in parts[::2]]
            out.append("".join(parts))
    return "\n\n".join(out)


def formula(latex: str, *, inline: bool = False) -> str:
    r"""LaTeX as MathML, which browsers show without any script. Parts of a displayed formula that
    ``\qquad`` sets apart stand below each other."""
    if inline:
        return f"<span>{convert(latex, display='inline')}</span>"  # a block where it began a line
    limits = LIMITS.sub(r"\\underset{\2}{\\\1}", latex)
    parts = re.split(r",?\s*\\qquad\s*", limits)
    return "".join(f'<div class="formula">{convert(p, display="block")}</div>' for p in parts)


def mathematics(markdown: str) -> str:
    """``$...$`` and ``$$...$$`` of Markdown as MathML."""
    text = DISPLAY.sub(lambda m: formula(m[1].strip()), markdown)
    return INLINE.sub(lambda m: formula(m[1], inline=True), text)


def table(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the header first; empty where it has no other row."""
    head, *body = [[cell(c) for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *body] if body else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(text: str) -> str:
    """Text within a table: one line, no bar that would end the cell."""
    return " ".join(text.split()).replace("|", r"\|")


def word(text: str) -> str:
    """A word set as code; nothing where there is none."""
    return f"`{text}`" if text else ""
