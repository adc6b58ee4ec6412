"""docs/add-a-task.md and docs/add-a-method.md, followed word by word."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import environment

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("add-a-task.md", "add-a-method.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^File `([\w.]+)`.*:\n\n\Z", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Block:
    """A fenced block: ``name`` is the file that the line before it names, or empty."""

    language: str
    text: str
    name: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for fence in FENCE.finditer(page):
        named = NAMED.search(page[: fence.start()])
        found.append(Block(fence[1], fence[2], named[1] if named else ""))
    return found


def told(page: str) -> list[Block]:
    """The blocks of a page of the documentation."""
    return blocks((DOCS / page).read_text(encoding="utf-8"))


def mismatch(expected: str, printed: str, *, relative: float = 0.05) -> str:
    """Why a text block is not what was printed; empty where it is.

    ``...`` alone on a line stands for any lines, within one for any characters; spaces and rules
    may be of any length; numbers may be ``relative`` apart.
    """
    lines = [plain(line) for line in expected.splitlines()]
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else wildcard(line) + r"\n" for line in lines)
    there = "".join(plain(line) + "\n" for line in printed.strip("\n").splitlines())
    match = re.fullmatch(pattern, there)
    if match is None:
        return f"the page says\n{expected}\nbut what came is\n{printed}"
    said = [n for line in lines for n in NUMBER.findall(line)]
    for one, other in zip(said, match.groups(), strict=True):
        a, b = (float(x.replace(",", "")) for x in (one, other))
        if abs(a - b) > relative * max(abs(a), abs(b)):
            return f"the page says {one}, what came is {other}, in\n{printed}"
    return ""


def plain(line: str) -> str:
    """A line with single spaces, and rules of one length."""
    return re.sub(r"-{3,}", "---", re.sub(r"\s+", " ", line)).strip()


def wildcard(line: str) -> str:
    """A pattern for a line: any number where it has one, anything for ``...``."""
    parts = [re.escape(part) for part in NUMBER.split(line)]
    return f"({NUMBER.pattern})".join(parts).replace(re.escape("..."), ".*")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which ``metabench``, ``python`` and ``pip`` are those of an
    environment of its own, without plug-ins and without any index."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed in this environment")
    if shutil.which("sh") is None:
        pytest.skip("there is no sh to type the commands into")
    folder = tmp_path_factory.mktemp("tutorials")
    python, programs = environment(folder / "venv"), folder / "programs"
    programs.mkdir()
    for name, command in {
        "python": f"'{python}'",
        # -P: a file of the working folder is no module of the installed command's.
        "metabench": f"'{python}' -P -m metabench",
        "pip": f"'{sys.executable}' -m pip --python '{python}'",
    }.items():
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    own = ("METABENCH_PLUGINS", "METABENCH_STORE", "PYTHONPATH", "PYTEST_ADDOPTS")
    kept = {k: v for k, v in os.environ.items() if k not in own}
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    pip = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **pip, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_followed_word_by_word(page: str, words: dict[str, str], tmp_path: Path) -> None:
    printed = ""
    for block in told(page):
        if block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            done = subprocess.run(
                ["sh", "-e", "-c", block.text],
                cwd=tmp_path,
                env=words,
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
                timeout=240,
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            printed = done.stdout
        else:
            assert (wrong := mismatch(block.text, printed)) == "", wrong
    every_crossing_has_its_number_or_its_reason(tmp_path)


def every_crossing_has_its_number_or_its_reason(folder: Path) -> None:
    (suite,) = {path for path in folder.glob("*.toml") if path.stem != "pyproject"}
    text = (folder / "results" / suite.stem / "smoke" / "table.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["kind"] == "method"]
    done = [row for row in rows if row["seeds_done"] == row["seeds_planned"]]
    holes = [row for row in rows if row not in done]
    assert all(float(row["ours_mean"]) >= 0 for row in done)
    assert all(re.match(r"\d+ not applicable: \w+ needs .+", row["holes"]) for row in holes)
    own = {"denoising": ("column", ["smooth", "rough"]), "inverses": ("row", ["nystrom", "all"])}
    place, names = own[suite.stem]
    assert {row[place] for row in done} >= set(names)
    assert len({row["row"] for row in done}) >= 4 and holes
    assert any(row["paper_value"] for row in csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_what_it_promises(page: str) -> None:
    """Files are given whole, every command that prints something is followed by it, links lead
    somewhere."""
    found = told(page)
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(found)
    assert {b.language for b in found} == {"sh", "text", "python", "toml"}
    for before, block in zip([None, *found], found, strict=False):
        assert bool(block.name) == (block.language in ("python", "toml")), block
        assert block.language != "text" or (before is not None and before.language == "sh")
    for target in re.findall(r"\]\((.+?)\)", text):
        assert (DOCS / target).is_file(), target
    for root in ("tasks", "methods"):
        for name in re.findall(rf"`{root}/(\w+)\.py`", text):
            assert (DOCS.parent / root / f"{name}.py").is_file() or name in page_names(page), name


def page_names(page: str) -> set[str]:
    """The names of the files that a page writes, without their endings."""
    return {Path(block.name).stem for block in told(page) if block.name}


def test_blocks_are_read_with_the_names_of_their_files() -> None:
    page = "File `a.py`, whole:\n\n```python\nx = 1\n```\n\nSee `b.py`:\n\n```sh\nls\n```\n"
    assert blocks(page) == [Block("python", "x = 1\n", "a.py"), Block("sh", "ls\n", "")]


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("a  b\n", "a b\n"),
        ("a\n...\nz\n", "a\nm\nn\nz\n"),
        ("a\n...\nz\n", "a\nz\n"),
        ("took ... s\n", "took 3.4 s\n"),
        ("x 1.00 -----\n", "x   1.02 ---\n"),
        ("2,550 of\n", "2,550 of\n"),
    ],
)
def test_outputs_that_agree(expected: str, printed: str) -> None:
    assert mismatch(expected, printed) == ""


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("a b\n", "a c\n"),
        ("a\n", "a\nb\n"),
        ("a\nb\n", "a\n"),
        ("a\n...\nz\n", "a\nm\n"),
        ("x 1.00\n", "x 1.20\n"),
        ("x 0.0\n", "x 0.1\n"),
        ("x 3\n", "x n/a\n"),
    ],
)
def test_outputs_that_do_not(expected: str, printed: str) -> None:
    assert mismatch(expected, printed) != ""
