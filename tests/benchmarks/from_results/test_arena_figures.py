"""The figures of docs/which-method.md are of the scores that ship, small, and shown with words."""

import re
import sys
from pathlib import Path

import pytest

from metabench.reports.arena.figures import KINDS

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks.from_results import arena_figures

PAGE = arena_figures.ROOT / "docs/which-method.md"
DRAW = "python -m benchmarks.from_results.arena_figures --write"


@pytest.mark.parametrize("kind", arena_figures.SHOWN)
def test_a_committed_figure_is_of_the_scores_that_ship(kind: str) -> None:
    from PIL import Image

    assert kind in KINDS
    path = arena_figures.picture(kind)
    with Image.open(path) as picture:
        assert picture.info["Description"] == arena_figures.digest(), DRAW
    assert path.stat().st_size <= 100_000


def test_each_finding_has_its_figure_with_words_for_who_does_not_see_it() -> None:
    findings = re.split(r"\n\*\*\d\. ", PAGE.read_text(encoding="utf-8"))[1:]
    assert len(findings) == len(arena_figures.SHOWN)
    for kind, text in zip(arena_figures.SHOWN, findings, strict=True):
        name = arena_figures.picture(kind).relative_to(arena_figures.ROOT).as_posix()
        ((words, where),) = re.findall(r"!\[([^\]]*)\]\(\.\./([^)]*)\)", text)
        assert where == name and len(words.split()) > 20
        assert "*Caveat" in text
