"""docs/your-own-problem.md, run as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_tutorials import DOCS, mismatch, told

ROOT = DOCS.parent
PAGE = "your-own-problem.md"
FOUND = told(PAGE)
PARTS = [block.text for block in FOUND if block.language == "python"]


def run(source: str, folder: Path) -> str:
    """What a program prints that is called as the page calls it."""
    (folder / "cleaning.py").write_text(source, encoding="utf-8")
    known = {k: v for k, v in os.environ.items() if k not in ("METABENCH_STORE", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "cleaning.py"],
        cwd=folder,
        env={**known, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_twenty_lines_and_all_that_it_shows() -> None:
    lines = [line for line in PARTS[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    assert [block.language for block in FOUND[:3]] == ["python", "sh", "text"]
    assert [block.name for block in FOUND if block.name] == ["cleaning.py"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"docs/{PAGE}" in readme


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path) -> None:
    """With two outer steps in the place of a hundred."""
    short = PARTS[0].replace('"budget.outer_steps": 100}}', '"budget.outer_steps": 2}}')
    assert short != PARTS[0]
    for call in ("api.run(suite, ", "api.table(suite, "):
        short = short.replace(call, f"{call}budget='smoke', ")
    after = "\nprint(sorted(tempered.offers), sorted(lines.offers))\n"
    printed = run("\n".join([short, *PARTS[1:]]) + after, tmp_path)
    assert "fixed, bilevel, ift, pbgd, random on cleaning (budget smoke)" in printed
    assert "'search_space'" in printed and "'lam_is_initialisation'" in printed


@pytest.mark.slow
def test_the_page_says_what_is_printed(tmp_path: Path) -> None:
    expected = next(block.text for block in FOUND if block.language == "text")
    assert (wrong := mismatch(expected, run(PARTS[0], tmp_path))) == "", wrong
