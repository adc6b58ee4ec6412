"""What others wrote is shown, and never acts on the terminal, the spreadsheet or the page."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from metabench import api
from metabench.cli.main import app
from metabench.cli.printing import terminal
from metabench.reports.tables.csv_export import field, main_csv
from metabench.store.record import Record
from metabench.store.store import Store

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r"
SUITE = r"""
title = "Small \u001b[2J"
metric = "loss"
goal = "min"
command = "metabench reproduce small.toml"
description = "\u001b[2J"
[budgets]
smoke = { seeds = [0, 1], outer_steps = 2, eval_every = 1, valid_episodes = 1, test_episodes = 1 }
laptop = { seeds = [0], outer_steps = 2, eval_every = 1, valid_episodes = 1, test_episodes = 1 }
paper = { seeds = [0], outer_steps = 2, eval_every = 1, valid_episodes = 1, test_episodes = 1 }
[[columns]]
id = "one"
task = "quadratic"
label = "=HYPERLINK(\"x\") \u001b[2J"
[[rows]]
id = "reverse"
label = "@SUM(1) \u001b[2J"
method = "bilevel"
chosen = "own"

"""
ACTIVE = ("\x1b", "\x9b", "\x07", "\u202e")


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, ...]:
    """A suite and a store with a record that somebody else has written."""
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    store = Store(tmp_path / "runs")
    for planned in api.plan(path, budget="smoke", store=store)[:1]:
        store.write(
            Record(planned.cell.key, planned.cell, "failed", reason=EVIL, traceback=f"T\n{EVIL}")
        )
    return str(path), "--budget", "smoke", "--store", str(store.root)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--tracebacks"),
        ("plan",),
        ("cost",),
        *[("table", "--format", f) for f in ("text", "markdown", "latex", "csv", "html")],
        ("table", "--cost"),
    ],
    ids=" ".join,
)
def test_no_command_prints_escape_sequences_of_a_record_or_a_label(
    place: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(app, [*words, *place])
    assert done.exit_code == 0, done.output
    assert not [c for c in ACTIVE if c in done.output]
    if words[0] == "status":
        assert r"\u001b]0;owned" in done.output, "it is shown, by its numbers"


def test_status_of_the_whole_store_prints_no_escape_sequences(place: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["status", "--tracebacks", *place[-2:]])
    assert not [c for c in ACTIVE if c in done.output] and "owned" in done.output


def test_an_error_prints_no_escape_sequences() -> None:
    done = CliRunner().invoke(app, ["show", "\x1b[2J"])
    assert done.exit_code == 2 and "\x1b" not in done.output


def test_the_report_holds_no_escape_sequences(place: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", *place, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert not [c for c in ACTIVE if c in page] and "owned" in page


def test_a_spreadsheet_takes_no_label_for_a_formula_and_keeps_negative_numbers(
    place: tuple[str, ...],
) -> None:
    found = api.results(place[0], budget="smoke", store=place[-1])
    rows = list(csv.DictReader(io.StringIO(main_csv(found))))
    assert {r["row_label"][:9] for r in rows} == {"'@SUM(1) "}
    assert {r["column_label"][:12] for r in rows} == {"'=HYPERLINK("}
    done = CliRunner().invoke(app, ["table", "--cost", "--format", "csv", *place])
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM", "'@SUM"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-inf", "-inf"),
        (-0.5, -0.5),
        ("a=b", "a=b"),
    ],
)
def test_what_a_spreadsheet_would_compute_has_an_apostrophe(value: object, kept: object) -> None:
    assert field(value) == kept


def test_a_merge_prints_no_escape_sequences_of_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "from" / "a\x1b[2Jb").mkdir(parents=True)
    words = ["store", "merge", str(tmp_path / "from"), "--into", str(tmp_path / "to")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "a\\u001b[2Jb" in done.output and "\x1b" not in done.output


def commands(group: Any) -> Iterator[Any]:
    """The commands of a group and of the groups in it."""
    for command in group.commands.values():
        yield from commands(command) if hasattr(command, "commands") else [command]


def test_help_has_no_markup_and_each_paragraph_is_wrapped_to_the_terminal() -> None:
    found = [*commands(typer.main.get_command(app))]
    assert len(found) > 20
    for command in found:
        texts = [command.help, *(getattr(p, "help", None) or "" for p in command.params)]
        assert command.help and not [t for t in texts if "\n" in t or "``" in t or ":`" in t]


@pytest.mark.parametrize("width", [60, 100])
def test_show_wraps_paragraphs_anew(width: int) -> None:
    out = Console(width=width, force_terminal=False)
    with out.capture() as told:
        terminal.print_descriptions(out, api.show("es", "method"))
    text = told.get()
    lines = text.partition("needs:")[0].splitlines()
    assert "``" not in text and max(map(len, lines)) <= width
    # A line ends where the next word has no room.
    start = next(n for n, line in enumerate(lines) if line.startswith("After T steps"))
    for line, after in itertools.pairwise(lines[start:]):
        assert len(line) + 1 + len(after.split()[0]) > width
    assert "full         a training of T = inner_steps" in text
