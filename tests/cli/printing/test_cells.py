"""How cells stand, printed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.console import Console
from typed_commands import metabench

from metabench.cli.printing import terminal
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
