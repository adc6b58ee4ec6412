"""How cells stand, printed."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typed_commands import metabench

from metabench import api
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import print_plan
from metabench.suites.planning import STATES


def test_reasons_stand_once_below_a_plan_that_is_too_wide_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "maml needs a lam that is the initial value of theta, which the task does not offer"
    asked = ("plan", "closed-form", "--budget", "smoke", "--only", "maml")
    assert metabench(*asked).out.count(reason) == 3
    monkeypatch.delenv("COLUMNS")
    assert " ".join(metabench(*asked).out.split()).count(reason) == 1, "in a pipe of 80 columns"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def plain(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        return re.sub(r"\x1b\[[0-9;]*m", "", metabench(*asked).out)

    assert plain(200).count(reason) == 3
    narrow = plain(80)
    assert re.search(r"maml +vector +0 +not applicable +\[1\]\s", narrow)
    assert re.search(r"maml +ridge +0 +not applicable +\[1\]\s", narrow)
    assert " ".join(narrow.split()).count(f"[1] {reason}") == 1


def test_every_state_has_a_look() -> None:
    out = Console(width=80, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    terminal.grid(out, ("state",), [(state,) for state in STATES])
    assert set(STATES) <= terminal.STYLES.keys()
    out.file.close()


def test_a_cell_at_two_places_is_to_be_run_once(tmp_path: Path) -> None:
    suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel"])
    one, two = api.plan(suite, budget="smoke", seeds=[0, 1], store=tmp_path)
    console = Console(width=80, force_terminal=False)
    known = [replace(p, estimated_seconds=30.0) for p in (one, two)]
    with console.capture() as told:
        print_plan(console, "title", [*known, replace(known[0], row="other")])
    words = " ".join(told.get().split())
    assert "3 cells: 3 open to run: 2 cells, for 3 places; 2 of them about 1 min 00 s" in words
