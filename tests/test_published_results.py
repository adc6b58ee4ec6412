"""What is committed under results/: the tables are what the records give, and nobody is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
from itertools import chain
from pathlib import Path

import pytest

from metabench.analysis.results import collect
from metabench.api.arena import tournament
from metabench.api.publication import FIGURE, of_records_alone
from metabench.reports.arena.tables import STANDINGS, csv_of, standings_lines
from metabench.reports.figures.small import LARGEST
from metabench.reports.tables import grids
from metabench.store.published import HOSTS, RECORDS, Published, render, without_paths
from metabench.suites import loading as suites
from metabench.suites.arena import scores as arena_scores
from metabench.suites.arena.scores import ArenaScores

ROOT = Path(__file__).parents[1] / "results"
FOLDERS = sorted(path.parent for path in ROOT.glob(f"*/*/{RECORDS}"))
ARENAS = sorted(path.parent for path in ROOT.glob(f"*/*/{arena_scores.FILE}"))
FILES = {RECORDS, "table.md", "table.csv"}


@pytest.fixture(scope="module")
def kept(request: pytest.FixtureRequest) -> Published:
    """The records of a folder; pytest runs the tests of one folder after another, so that each is
    read once and no two are in memory."""
    return Published(request.param / RECORDS)


def each(folders: list[Path]) -> pytest.MarkDecorator:
    names = [folder.parent.name for folder in folders]
    return pytest.mark.parametrize("kept", folders, indirect=True, scope="module", ids=names)


@each(FOLDERS)
def test_the_committed_tables_are_what_the_records_give(kept: Published) -> None:
    folder = kept.root.parent
    results = of_records_alone(collect(suites.load(folder.parent.name), folder.name, kept))
    assert kept.problems() == []
    assert {r.key for r in results.records} == {r.key for r in kept.records()}
    assert any(map(kept.curve, kept.records()))
    assert grids.draw(results, "markdown") == (folder / "table.md").read_text(encoding="utf-8")
    drawn, kept_lines = (
        list(csv.reader(io.StringIO(text)))
        for text in (grids.draw(results, "csv"), (folder / "table.csv").read_text("utf-8"))
    )
    assert list(map(len, drawn)) == list(map(len, kept_lines))
    for value, expected in zip(chain(*drawn), chain(*kept_lines), strict=True):
        assert value == expected or same_number(value, expected)


def same_number(value: str, expected: str) -> bool:
    """Whether two fields differ by rounding alone, as quantiles of two versions of scipy do."""
    return float(value) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("folder", ARENAS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_the_committed_standings_are_what_the_records_give(folder: Path, tmp_path: Path) -> None:
    """Tables and CSV were written from whole records."""
    plan = tournament.plan(folder.parent.name, budget=folder.name, store=tmp_path)
    scores = plan.shipped
    assert scores is not None and scores.problems() == [] and scores.outdated() == []
    used = {p.cell.key for p in (*plan.trials, *plan.finals) if p.record is not None}
    assert used == {r.key for r in scores.records()}
    tracks = tournament.tracks(plan, store=tmp_path)
    page = "\n".join(grids.render(grid, "markdown") for grid in tournament.grids(tracks))
    assert page == (folder / "table.md").read_text(encoding="utf-8")
    lines = chain.from_iterable(map(standings_lines, tracks))
    assert csv_of(STANDINGS, lines) == (folder / "table.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ARENAS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_the_trial_that_was_chosen_is_the_one_that_its_scores_choose(
    folder: Path, tmp_path: Path
) -> None:
    """The file says who was chosen by the whole records."""
    known = tournament.load(folder.parent.name)
    plan = tournament.plan(known, budget=folder.name, store=tmp_path)
    text = gzip.decompress((folder / arena_scores.FILE).read_bytes()).decode()
    said = [json.loads(line) for line in text.splitlines()[1:]]
    assert {(p["method"], p["problem"]): p["chosen"] for p in said} == plan.chosen
    head = ArenaScores(folder / arena_scores.FILE, known, folder.name).head
    assert sum(made.cells for made in head.made) == sum(
        status is not None for p in said for part in ("trials", "finals")
        for status in p[part]["status"]
    )  # fmt: skip
    assert without_paths(text) == text and not any(f'"{name}":' in text for name in HOSTS)


@each(FOLDERS)
def test_committed_files_are_few_and_small_and_name_nobody(kept: Published) -> None:
    folder = kept.root.parent
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() >= FILES
    assert len(files.get(FIGURE, b"")) <= LARGEST
    assert files[RECORDS][4:8] == bytes(4), "no time in the header"
    lines = [render(record, kept.curve(record)) for record in kept.records()]
    assert b"".join(lines) == gzip.decompress(files[RECORDS]), "as publish writes it, nobody named"
    table = files.get("table.md", b"").decode()
    assert without_paths(table) == table


def test_results_stay_small() -> None:
    places = [*FOLDERS, *ARENAS]
    sizes = [path.stat().st_size for folder in places for path in folder.iterdir()]
    assert len(FOLDERS) >= 46 and sum(sizes) < 40_000_000


def test_how_many_targets_of_speed_and_memory_are_met() -> None:
    lines = (ROOT / "speed/few_shot.txt").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if "target at" in line]
    memory = ["met" in line.split() for line in told if "peak memory" in line]
    speed = ["met" in line.split() for line in told if "peak memory" not in line]
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    numbers = {7: "seven", 9: "nine", 13: "13"}
    met, of = numbers[sum(speed)], numbers[len(speed)]
    assert f"{met.capitalize()} of the {of} speed targets are met" in words
    assert f"and {numbers[sum(memory)]} of {numbers[len(memory)]} for memory" in words
