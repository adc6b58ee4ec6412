"""``store import``: what its exit code says."""

from __future__ import annotations

import gzip
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from metabench.cli.main import app
from metabench.core.cell import Cell
from metabench.store.published import RECORDS, publish
from metabench.store.record import Record
from metabench.store.store import Store


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file of three records."""
    kept = Store(tmp_path / "runs")
    for seed in range(3):
        cell = Cell("ridge", "bilevel", "sgd", seed)
        kept.write(Record(cell.key, cell, "done", cost={"inner_gradients": 5.0}))
    return publish(kept.records(), kept, tmp_path / RECORDS)


def imported(file: Path, *more: str) -> Result:
    words = ["store", "import", str(file), "--store", str(file.parent / "other"), *more]
    return CliRunner().invoke(app, words)


def test_a_sound_file(published: Path) -> None:
    for told in ("3 copied\n", "3 the same in both\n"):
        done = imported(published)
        assert (done.exit_code, done.stdout, done.stderr) == (0, told, "")


def test_the_store_is_found_by_its_older_name_too(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_STORE", str(tmp_path / "third"))
    done = CliRunner().invoke(app, ["store", "import", str(published), "--into", "other"])
    assert (done.exit_code, done.stdout) == (0, "3 copied\n")
    assert len(Store("other").records()) == 3 and not (tmp_path / "third").exists()
    both = imported(published, "--into", "other")
    assert both.exit_code == 2 and "--store: --into is its older name" in both.stderr


def test_a_whole_store_is_merged_by_the_command_that_is_named(published: Path) -> None:
    done = imported(published.parent / "runs")
    assert done.exit_code == 2 and done.stdout == ""
    words = shlex.split(done.stderr.partition("of a whole store: metabench ")[2])
    assert words[:2] == ["store", "merge"]
    assert CliRunner().invoke(app, words).stdout == "3 copied\n"
    assert len(Store(published.parent / "other").records()) == 3


def test_of_a_folder_with_published_records_those_are_named(published: Path) -> None:
    done = imported(published.parent)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.endswith(f"published records in it: {published}\n")


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["", "dry run"])
def test_a_file_of_which_nothing_can_be_read_is_wrong_input(
    published: Path, more: list[str]
) -> None:
    published.write_bytes(published.read_bytes()[:40])
    done = imported(published, *more)
    assert done.exit_code == 2 and done.stdout == "1 bad file\n"
    assert done.stderr.startswith(f"{published}: line 1: the file is damaged from here on: ")
    assert Store(published.parent / "other").records() == []


def test_of_a_file_with_a_damaged_line_the_others_are_copied(published: Path) -> None:
    first, *others = gzip.decompress(published.read_bytes()).splitlines(keepends=True)
    published.write_bytes(gzip.compress(first.replace(b"ridge", b"rigde") + b"".join(others)))
    done = imported(published)
    assert done.exit_code == 2 and done.stdout == "2 copied, 1 bad file\n"
    told = f"{published}: line 1: is not what was published: its sha256 differs\n"
    assert done.stderr == told
    assert len(Store(published.parent / "other").records()) == 2


def test_a_conflict_is_no_wrong_input(published: Path) -> None:
    other = Store(published.parent / "other")
    for record in Store(published.parent / "runs").records()[:1]:
        other.write(replace(record, cost={"inner_gradients": 6.0}))
    done = imported(published)
    assert done.exit_code == 1 and done.stdout == "2 copied, 1 in conflict\n"
    assert "different cost" in done.stderr
