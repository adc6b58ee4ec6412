"""Descriptions, printed."""

from __future__ import annotations

import itertools

import pytest
from rich.console import Console

from metabench import api
from metabench.cli.printing.inventory import print_descriptions


@pytest.mark.parametrize("width", [60, 100])
def test_show_wraps_paragraphs_anew(width: int) -> None:
    out = Console(width=width, force_terminal=False)
    with out.capture() as told:
        print_descriptions(out, api.show("es", "method"))
    text = told.get()
    lines = text.partition("needs:")[0].splitlines()
    assert "``" not in text and max(map(len, lines)) <= width
    # A line ends where the next word has no room.
    start = next(n for n, line in enumerate(lines) if line.startswith("After T steps"))
    for line, after in itertools.pairwise(lines[start:]):
        assert len(line) + 1 + len(after.split()[0]) > width
    assert "full         a training of T = inner_steps" in text
