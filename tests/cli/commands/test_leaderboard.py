"""``metabench leaderboard``: the page, a file of records, and what is missing."""

from __future__ import annotations

from pathlib import Path

import arenas_by_formula as arenas
import pytest
from optional import needs
from typer.testing import CliRunner

from metabench.cli.main import app
from metabench.store.published import Published
from metabench.store.store import Store

ONE = {"bilevel": arenas.METHODS["bilevel"]}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path, store = tmp_path / "small.toml", Store(tmp_path / "runs")
    path.write_text(arenas.text(ONE))
    arenas.play(path, store)
    return ["leaderboard", str(path), "--budget", "smoke", "--store", str(store.root)]


def test_the_page_is_written_where_it_is_asked_for(words: list[str], tmp_path: Path) -> None:
    needs("vl_convert")
    page = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(app, [*words, "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert str(page) in done.stdout.replace("\n", "")
    assert "<title>A synthetic arena: leaderboard</title>" in page.read_text(encoding="utf-8")


def test_records_are_written_instead(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl.gz"
    done = CliRunner().invoke(app, [*words, "--records", str(file)])
    assert done.exit_code == 0, done.output
    found, bad = Published(file).scan()
    kept = Store(tmp_path / "runs").records()
    assert {r.key for r in found} == {r.key for r in kept} and not bad and len(found) > 40


def test_a_page_and_records_are_two_commands(words: list[str], tmp_path: Path) -> None:
    both = ["--out", str(tmp_path / "a.html"), "--records", str(tmp_path / "b.jsonl.gz")]
    done = CliRunner().invoke(app, [*words, *both])
    assert done.exit_code == 2 and "not both" in done.output.replace("\n", " ")


@pytest.mark.parametrize("kind", ["--out", "--records"])
def test_an_arena_that_nobody_has_played_says_so(kind: str, tmp_path: Path) -> None:
    path, out = tmp_path / "small.toml", tmp_path / "out.html"
    path.write_text(arenas.text(ONE))
    given = ["--budget", "smoke", "--store", str(tmp_path / "runs"), kind, str(out)]
    done = CliRunner().invoke(app, ["leaderboard", str(path), *given])
    assert done.exit_code == 1
    assert f"metabench arena {path} --budget smoke" in done.output.replace("\n", "")
    assert not out.exists()
