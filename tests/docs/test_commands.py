"""Every command that stands in a block of the pages is one that the command line takes.

Those of the tutorials are run, too: tests/test_tutorials.py, tests/docs/test_first_hour.py.
"""

from __future__ import annotations

import re

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


def test_commands_are_found_with_their_optional_words() -> None:
    text = "    metabench submit S [--dry-run] [--set a.b=1 ...]   words\n\nmetabench runs it\n"
    text += "```sh\nmetabench run \\\n    --task a\n```\n"
    assert commands(text) == ["metabench submit S --dry-run --set a.b=1", "metabench run --task a"]
    assert {page for page, _ in FOUND} >= {"README.md", "docs/cluster.md", "docs/first-hour.md"}


@pytest.mark.parametrize("command", ["metabench rnu omniglot", "metabench run omniglot --jbos 2"])
def test_a_wrong_one_is_refused(command: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such (command|option)"):
        parsed(command)
