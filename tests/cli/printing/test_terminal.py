"""What others wrote is shown, and never acts on the terminal, the spreadsheet or the page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typed_commands import metabench
from typer.testing import CliRunner

from metabench import api
from metabench.cli.main import app
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


def test_tables_fit_80_columns_and_keep_names_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for words in (["show", "maml"], ["show", "omniglot"], ["plan", "omniglot"], ["list"]):
        printed = metabench(*words).out
        plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
        assert "\x1b[" in printed, "printed as on a terminal"
        assert "…" not in plain
        long = [
            ln
            for ln in plain.splitlines()
            if len(ln) > 80
            and "source: " not in ln
            and "repair it with" not in ln
            and "of unknown cost" not in ln
        ]
        assert not long, long
    monkeypatch.delenv("FORCE_COLOR")
    piped = metabench("show", "maml").out
    assert "\x1b[" not in piped and "memory_budget_gb" in piped


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", "maml"),
        ("show", "omniglot", "--kind", "suite"),
        ("plan", "closed-form"),
        ("status", "closed-form"),
        ("table", "prospect-uci", "--budget", "smoke"),
        ("table", "prospect-uci", "--budget", "smoke", "--format", "rich"),
        ("table", "prospect-uci", "--budget", "smoke", "--cost"),
    ],
    ids=" ".join,
)
def test_what_is_piped_fits_the_columns_that_are_asked_for_or_80(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    wide = re.sub(r"\x1b\[[0-9;]*m", "", metabench(*words).out)
    assert max(map(len, wide.splitlines())) > 100, "it has to be wrapped"
    for width in (80, 100):
        monkeypatch.delenv("COLUMNS", raising=False)
        if width != 80:
            monkeypatch.setenv("COLUMNS", str(width))
        plain = re.sub(r"\x1b\[[0-9;]*m", "", metabench(*words).out)
        long = [ln for ln in plain.splitlines() if len(ln) > width]
        assert not long, long
        assert "…" not in plain or "…" in wide, "nothing is cut off"
