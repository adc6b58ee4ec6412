"""Every command that stands in a block of the pages is one that the command line takes.

Those that only read are run, too, where nothing has been run yet. So are those of the tutorials, in
tests/test_tutorials.py and tests/docs/test_first_hour.py, and the programs of benchmarks/ are asked
for their options.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import parsed
from test_pages import PAGES, ROOT

LINE = re.compile(r"^(?: {4})?(?:\w+=\S+ )*(metabench (?!is |runs )[a-z].*)$", re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands of a page's blocks, with all their optional words and without what is said
    beside them."""
    joined = re.sub(r" \\\n\s*", " ", page)
    alone = [re.split(r" {3,}", line)[0] for line in LINE.findall(joined)]
    return [re.sub(r"\[(--?[^\]]*?|[A-Z]+)(?: \.\.\.)?\]", r"\1", line) for line in alone]


FOUND = [
    (page.relative_to(ROOT).as_posix(), command)
    for page in PAGES
    for command in commands(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_the_command_line_takes_it(page: str, command: str) -> None:
    parsed(command)


READING = {"list", "show", "plan", "table", "compare", "cost", "status", "doctor"}
FILLED = {"SUITE": "quickstart", "A": "quickstart@smoke", "B": "closed-form@smoke"}
"""What a page leaves to be filled in."""
THERE = [
    command
    for command in dict.fromkeys(command for _, command in FOUND)
    if command.split()[1] in READING
    # A file that the reader writes, a profile of her cluster, and what does not end by itself.
    and not re.search(r"--plugin|\.toml|--cluster|--watch", command)
]


@pytest.mark.slow
@pytest.mark.parametrize("command", THERE)
def test_what_only_reads_runs_in_an_empty_folder(command: str, tmp_path: Path) -> None:
    words = [FILLED.get(word, word) for word in shlex.split(command, comments=True)[1:]]
    known = {k: v for k, v in os.environ.items() if k not in ("METABENCH_STORE", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-m", "metabench", *words],
        cwd=tmp_path,
        env={**known, "OMP_NUM_THREADS": "1", "METABENCH_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    store = re.escape(f"{tmp_path / 'results' / 'runs'}")
    if words[0] == "compare":
        told = rf"no finished run in {store}: run it first\n\Z"
        assert done.returncode == 1 and re.search(told, done.stderr), done.stderr
    else:  # what the doctor finds missing is no fault of the command
        assert done.returncode == 0 or (words[0] == "doctor" and done.returncode == 1), done.stderr
        told = rf"(\S+: no record of [^\n]+ in {store}\n)?"
        assert len(done.stdout) > 40 and re.fullmatch(told, done.stderr), done.stderr
    assert not (tmp_path / "results").exists(), "it only reads"


def test_commands_that_only_read_are_found() -> None:
    assert {command.split()[1] for command in THERE} == READING
    assert len(THERE) >= 15


PROGRAM = re.compile(r"python -m (benchmarks(?:\.\w+)+)")
PROGRAMS = sorted({n for page in PAGES for n in PROGRAM.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_pages_says_what_it_takes(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_commands_are_found_with_their_optional_words() -> None:
    text = "    metabench submit S [--dry-run] [--set a.b=1 ...]   words\n\nmetabench runs it\n"
    text += "```sh\nmetabench run \\\n    --task a\n```\n"
    assert commands(text) == ["metabench submit S --dry-run --set a.b=1", "metabench run --task a"]
    assert {page for page, _ in FOUND} >= {"README.md", "docs/cluster.md", "docs/first-hour.md"}


@pytest.mark.parametrize("command", ["metabench rnu omniglot", "metabench run omniglot --jbos 2"])
def test_a_wrong_one_is_refused(command: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such (command|option)"):
        parsed(command)
