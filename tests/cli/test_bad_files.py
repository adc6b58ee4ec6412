"""Every command that reads records names those that it leaves out."""

from __future__ import annotations

from pathlib import Path

import arenas_by_formula as arenas
import pytest
from typer.testing import CliRunner

from metabench import api
from metabench.cli.main import app
from metabench.store.cell_folder import RECORD
from metabench.store.published import RECORDS, publish
from metabench.store.store import Store

SUITE = """
title = "Small"
metric = "loss"
goal = "min"
plots = ["learning"]
[budgets]
smoke = { seeds = [0, 1, 2], outer_steps = 5, eval_every = 5, test_episodes = 1 }
laptop = { seeds = [0], outer_steps = 5, eval_every = 5, test_episodes = 1 }
paper = { seeds = [0], outer_steps = 5, eval_every = 5, test_episodes = 1 }
[[columns]]
id = "one"
task = "quadratic"
[[rows]]
id = "reverse"
method = "bilevel"
chosen = "own"
"""


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of three runs, of which one has a record that is damaged: its path."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SUITE)
    kept = Store(tmp_path / "runs")
    api.run("small.toml", budget="smoke", store=kept)
    path = kept.folder(kept.keys()[0]) / RECORD
    path.write_text('{"broken')
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "small.toml"],
        ["table", "small.toml"],
        ["plot", "small.toml", "--out", "o"],
        ["report", "small.toml", "--out", "o"],
        ["publish", "small.toml", "--out", "o"],
        ["cost", "small.toml"],
        ["cost"],
    ],
    ids=" ".join,
)
def test_the_file_is_named_once_on_standard_error(words: list[str], damaged: Path) -> None:
    budget = ["--budget", "smoke"] if len(words) > 1 else []
    done = CliRunner().invoke(app, [*words, *budget, "--store", "runs"])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("bad file:") == 1 and str(damaged) in done.stderr
    assert "bad file" not in done.stdout and damaged.exists()


def test_status_names_it_where_it_prints_all(damaged: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--store", "runs"])
    assert done.stdout.count(f"bad file: {damaged}") == 1


def test_reproduce_names_it_once_whether_or_not_something_is_run(damaged: Path) -> None:
    foreign = damaged.parents[2] / "foreign.txt"
    foreign.write_text("")
    words = ["reproduce", "small.toml", "--budget", "smoke", "--store", "runs", "--out", "o"]
    for moved in (f"bad file: {damaged}: ", ""):
        done = CliRunner().invoke(app, [*words, "--jobs", "1"])
        assert done.exit_code == 0, done.output
        assert done.stderr.count(f"bad file: {foreign}") == 1 and moved in done.stderr
        assert done.stderr.count("quarantined") == bool(moved)


def test_an_error_about_missing_runs_names_the_damaged_ones(damaged: Path) -> None:
    kept = Store("runs")
    keys = kept.keys()
    for key in keys:
        (kept.folder(key) / RECORD).write_text("{")
    done = CliRunner().invoke(
        app, ["publish", "small.toml", "--budget", "smoke", "--store", "runs", "--out", "o"]
    )
    assert done.exit_code == 1 and "no finished cell" in done.stderr
    assert done.stderr.count("bad file:") == 3 and str(damaged) in done.stderr


def test_a_leaderboard_and_what_is_published_of_an_arena_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    kept = Store(tmp_path / "runs")
    Path("small.toml").write_text(arenas.text({"bilevel": arenas.METHODS["bilevel"]}))
    arenas.play(Path("small.toml"), kept)
    key = kept.keys()[0]
    (kept.folder(key) / RECORD).write_text("{")
    of = ["small.toml", "--budget", "smoke", "--store", "runs"]
    for words in (
        ["leaderboard", *of, "--records", "mine.jsonl.gz"],
        ["publish", *of, "--out", "published"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert done.stderr.count("bad file:") == 1 and key in done.stderr


def test_both_sides_of_a_comparison_name_theirs(damaged: Path, tmp_path: Path) -> None:
    found = api.compare("runs", "runs")
    assert [side for side, _ in found.found.bad_files] == ["A", "B"] and not found.identical
    for fmt in ("text", "markdown", "csv", "html"):
        typed = CliRunner().invoke(app, ["compare", "runs", "small.toml@smoke", "-f", fmt,
                                         "--store", "runs"])  # fmt: skip
        told = typed.stdout.replace("\\", "").replace("\n", "")
        assert typed.exit_code == 0 and told.count(str(damaged)) == 2, typed.output
    key = damaged.parent.name[:12]
    error = CliRunner().invoke(app, ["compare", key, "runs", "--store", "runs"]).stderr
    assert "no finished run there that can be trusted; bad file: " in error
    assert str(damaged) in error


def test_a_comparison_names_lines_of_published_files(damaged: Path, tmp_path: Path) -> None:
    kept = Store("runs")
    file = publish(kept.records(), kept, tmp_path / RECORDS)
    whole = file.read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"can be trusted; bad file: .*cut.jsonl.gz: line 1: the"):
        api.compare(file, cut)
