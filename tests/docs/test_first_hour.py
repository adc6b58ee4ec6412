"""docs/first-hour.md, followed word by word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import test_tutorials as tutorials
from test_tutorials import DOCS, mismatch, told

words = tutorials.words
PAGE = "first-hour.md"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute of work, on a machine that may be busy
def test_followed_word_by_word(words: dict[str, str], tmp_path: Path) -> None:
    printed = ""
    for block in told(PAGE):
        if block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            done = subprocess.run(
                ["sh", "-e", "-c", block.text], cwd=tmp_path, env=words, capture_output=True,
                text=True, encoding="utf-8", check=False, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            printed = done.stdout
        else:
            assert (wrong := mismatch(block.text, printed)) == "", wrong
    made = {path.name for path in tmp_path.rglob("results/**/*.*")}
    assert {"learning.png", "report.html", "standing.md"} <= made


def test_it_leads_from_a_table_to_a_rank() -> None:
    """Files are whole, and every link leads somewhere."""
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    commands = " ".join(b.text for b in told(PAGE) if b.language == "sh")
    verbs = re.findall(r"metabench (\w+)", commands)
    assert verbs[:3] == ["plan", "run", "table"] and verbs[-2:] == ["arena", "rank"]
    assert {b.name for b in told(PAGE) if b.name} == {"one_product.py", "small.toml"}
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / target).is_file(), target
