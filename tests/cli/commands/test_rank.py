"""``metabench rank``: what it prints and writes, an interruption, and what cannot be ranked."""

from __future__ import annotations

import csv
import gzip
import re
import shlex
from pathlib import Path
from typing import Any

import contests
import pytest
from test_tutorials import blocks, mismatch
from typer.testing import CliRunner, Result

from metabench.cli.main import app
from metabench.contract.seeds import seed_for
from metabench.store.published import Published
from metabench.suites.arena import definition as arenas
from metabench.suites.arena.scores import ArenaScores


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return contests.played(tmp_path_factory.mktemp("arena"), contests.SMALLEST)


@pytest.fixture
def rank(
    small: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plugins_forgotten: None,
) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_STORE", str(tmp_path / "runs"))
    arena, records = map(str, small)

    def typed(*words: object, baselines: str = records, arena: str = arena) -> Result:
        given = [*map(str, words), "--budget", "smoke", "--jobs", "1", "--arena", arena]
        given += ["--baselines", baselines] if baselines else []
        return CliRunner().invoke(app, ["rank", *given])

    return typed


def test_it_says_where_a_method_stands_and_writes_it_down(rank: Any, tmp_path: Path) -> None:
    file = contests.plugin(tmp_path, "mine")
    dry = rank(file, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "mine#1" in dry.output and "mine as shipped" in dry.output
    assert "and 2 cells of the best trials" in dry.output
    assert re.search(r"in all about .* with 1 job,", dry.output)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()

    done = rank(file)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("wrote"))
    assert [x for x in lines if x.startswith("Track A")] == [
        "Track A, lam in the inner loss, tuned: 1 problem",
        "Track A, lam in the inner loss, as shipped: 1 problem",
    ]
    assert "mine is number 1 (shared) of 3, mean rank 1.50." in lines
    assert lines.count("on these problems, equal to: unrolled") == 2
    folder = tmp_path / "results" / "rank" / "small" / "mine"
    written = [Path(x.removeprefix("wrote ")).name for x in lines if x.startswith("wrote")]
    assert written == ["standing.md", "standing.csv", "records.jsonl.gz"]
    with (folder / "standing.csv").open(encoding="utf-8") as file_:
        rows = list(csv.DictReader(file_))
    assert {(r["ruleset"], r["row"]) for r in rows} == {
        (how, row) for how in ("tuned", "as shipped") for row in ("mine", "unrolled", "implicit")
    }
    (unrolled,) = [r for r in rows if r["row"] == "unrolled" and r["ruleset"] == "tuned"]
    assert (unrolled["verdict_seeds"], float(unrolled["entrant_wins"])) == ("equal", 0.5)
    page = (folder / "standing.md").read_text(encoding="utf-8")
    assert "`method.outer_lr`: 0.01 to 1 (logarithmic)" in page and "equal to: unrolled" in page
    kept = Published(folder / "records.jsonl.gz")
    assert {r.cell.method for r in kept.records()} == {"mine"} and not kept.problems()

    again = rank(file, "--output", "elsewhere")
    assert again.exit_code == 0 and (tmp_path / "elsewhere" / "standing.md").is_file()
    assert again.stdout.partition("wrote")[0] == done.stdout.partition("wrote")[0]
    assert "2 done" in again.stderr and "starts" not in again.stderr


def test_a_built_in_method_without_a_space_stands_as_shipped_alone(
    rank: Any, tmp_path: Path
) -> None:
    done = rank("one_step")
    assert done.exit_code == 0, done.output
    assert "tuned: " not in done.stdout and "as shipped: 1 problem" in done.stdout
    assert "It has no search space" in done.stderr
    space = tmp_path / "space.toml"
    space.write_text('space."outer_lr" = { low = 0.01, high = 1.0, log = true }\n')
    done = rank("one_step", "--space", space)
    assert done.exit_code == 0, done.output
    assert "tuned: 1 problem" in done.stdout


def test_an_interruption_is_gone_on_from(
    rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from metabench.run.workers import local_launcher

    file, ran, run_one = contests.plugin(tmp_path, "mine"), [], local_launcher.run_one

    def stopped(cell: Any, *words: Any) -> Any:
        ran.append(cell.key)
        if len(ran) == 3:
            signal.raise_signal(signal.SIGINT)
        return run_one(cell, *words)

    monkeypatch.setattr(local_launcher, "run_one", stopped)
    first = rank(file)
    assert first.exit_code == 130, first.output
    assert "run the same command again to go on" in first.stderr and "Track" not in first.stdout
    second = rank(file)
    assert second.exit_code == 0 and "Track A" in second.stdout
    # The cell that was stopped is begun again or gone on from; none of the others is.
    assert len(ran) - len(set(ran)) <= 1


SEVERAL = """
from dataclasses import dataclass
from metabench import method
from metabench.methods.bilevel import Bilevel

@method("one_of_two")
@dataclass(frozen=True)
class One(Bilevel):
    "One."

@method("other_of_two")
@dataclass(frozen=True)
class Other(Bilevel):
    "Other."
"""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere.py",), 2, "no plug-in file"),
        (("bilevl",), 2, "no method 'bilevl'; near: bilevel"),
        (("nothing.py",), 2, "nothing.py registers no method: write @metabench.method"),
        (("several.py",), 2, "registers several methods: one_of_two, other_of_two; say which: "
         "--method one_of_two"),
        (("several.py", "--method", "one_of_too"), 2, "near: one_of_two"),
        (("bilevel", "--method", "ift"), 2, "--method ift chooses among the methods of a file"),
        (("implicit_file.py",), 2, "has a baseline called 'implicit', of method 'ift'"),
        (("bilevel", "--quick"), 2, "has no quick problem"),
        (("one_step", "--space", "wrong.toml"), 2, "called 'outer_rate'; near: outer_lr"),
        (("one_step", "--space", "empty.toml"), 2, "empty.toml has no space"),
        (("one_step", "--space", "none.toml"), 2, "none.toml: No such file"),
        (("broken_file.py",), 2, "low = 1.0 is to be below high = 0.1"),
        (("restem",), 1, "restem applies to no problem of arena small: two: restem needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_told(
    rank: Any, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "several.py").write_text(SEVERAL)
    contests.plugin(tmp_path, "implicit")
    contests.plugin(tmp_path, "broken", space='space = {"outer_lr": {"low": 1.0, "high": 0.1}}')
    (tmp_path / "wrong.toml").write_text("space.outer_rate = { low = 0.1, high = 1.0 }\n")
    (tmp_path / "empty.toml").write_text("")
    done = rank(*words)
    assert done.exit_code == code, done.output
    assert message in re.sub(r"\s+", " ", done.output)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("mine.py", b"import metabench\n", "line 1: the file is damaged .* Not a gzipped file"),
        ("cut.gz", None, "line 1: the file is damaged .* ended before the end-of-stream marker"),
        ("line.gz", gzip.compress(b"{}\n", mtime=0), "line 1: is not what was published"),
        ("nowhere.gz", b"", "No such file"),
        ("folder", b"", "there is no record in it"),
    ],
)
def test_a_wrong_file_of_baselines_is_named_with_its_fault(
    rank: Any,
    small: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    content: bytes | None,
    fault: str,
) -> None:
    file = tmp_path / name
    if name == "folder":
        file.mkdir()
    elif name != "nowhere.gz":
        file.write_bytes(small[1].read_bytes()[:100] if content is None else content)
    done = rank("one_step", baselines=str(file))
    told = re.sub(r"\s+", " ", done.output)
    assert done.exit_code == 2 and re.search(f"{name}: {fault}", told), told
    assert "records are missing" not in told and not (tmp_path / "runs").exists()


def test_without_an_arena_or_baselines_nothing_is_run(
    rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rank("one_step", baselines="")
    assert done.exit_code == 1 and "records are missing" in done.output
    assert "metabench arena" in done.output and not (tmp_path / "runs").exists()
    done = rank("one_step", baselines="", arena="arena-x")
    assert done.exit_code == 2 and "no arena 'arena-x'" in done.output
    monkeypatch.setattr("metabench.core.catalogue.suite_folder", lambda: tmp_path)
    done = CliRunner().invoke(app, ["rank", "one_step"])
    assert done.exit_code == 2 and "there is no built-in arena here" in done.output


def test_an_arena_is_published_and_shown(rank: Any, small: tuple[Path, Path]) -> None:
    arena, records = small
    words = [str(arena), "--budget", "smoke", "--out", "published"]
    store = ["--store", str(arena.parent / "baselines")]
    done = CliRunner().invoke(app, ["publish", *words, *store])
    written = ["scores.jsonl.gz", "table.md", "table.csv", "figure.png"]
    assert done.exit_code == 0
    assert done.output.split() == [w for name in written for w in ("wrote", f"published/{name}")]
    assert Path("published/figure.png").stat().st_size <= 100_000
    assert "| rank |" in re.sub(" +", " ", Path("published/table.md").read_text())
    scores = "published/scores.jsonl.gz"
    known = arenas.load(arena)
    kept, whole = ArenaScores(scores, known, "smoke").records(), Published(records)
    assert {(r.key, r.status) for r in kept} == {(r.key, r.status) for r in whole.records()}
    for r in kept:
        full = whole.get(r.key)
        assert full is not None and full.metrics["test"]["loss"] == r.metrics["test"]["loss"]
    refused = CliRunner().invoke(app, ["store", "import", scores, "--store", "other"])
    assert refused.exit_code == 2 and not Path("other").exists()
    assert f"{scores} has the scores of arena 'small' and no whole records" in str(refused.output)
    assert "metabench arena small.toml --budget smoke --anew" in re.sub(r"\s+", " ", refused.output)
    done = CliRunner().invoke(app, ["publish", *words, "--store", "none"])
    assert done.exit_code == 1 and "nothing to publish; run: metabench arena" in done.output
    shown = CliRunner().invoke(app, ["show", str(arena)]).output
    assert "arena small: One quadratic" in shown and "none: as shipped alone" in shown
    assert CliRunner().invoke(app, ["list", "arenas"]).exit_code == 0


BUG = """
from pathlib import Path
from dataclasses import dataclass
from metabench import method
from metabench.methods.bilevel import Bilevel


@method("buggy")
@dataclass(frozen=True)
class Buggy(Bilevel):
    "Raises on the seeds that a file beside it names."

    space = {{"outer_lr": {{"low": 0.01, "high": 1.0, "log": True}}}}

    def hypergradient(self, ctx, *words):
        if str(ctx.seeds.method) in Path({bugs!r}).read_text().split():
            raise ValueError("my own bug")
        return super().hypergradient(ctx, *words)
"""


def test_an_exception_is_no_result_and_is_tried_again(rank: Any, tmp_path: Path) -> None:
    bugs, file = tmp_path / "bugs.txt", tmp_path / "buggy.py"
    file.write_text(BUG.format(bugs=str(bugs)))
    seeds = {n: str(seed_for(n, "method")) for n in (0, 1, 100)}
    bugs.write_text(" ".join(seeds.values()))
    for _ in range(2):
        none = rank(file)
        told = re.sub(r"\s+", " ", none.output)
        assert none.exit_code == 1 and "Track" not in none.output, none.output
        assert "2 of 2 finals failed: ValueError: my own bug" in told
        assert "2 of 2 trials failed: ValueError: my own bug" in told
        assert "every final of buggy failed, so that it stands nowhere" in told
        (key,) = {m for m in re.findall(r"metabench logs (\w+)", none.stdout)[:1]}
        logs = CliRunner().invoke(app, ["logs", key])
        assert logs.exit_code == 0 and "my own bug" in logs.output
    assert not list(tmp_path.rglob("standing.md"))

    bugs.write_text(seeds[0])  # partly mended: a place, and that it is not all of it
    some = rank(file)
    assert some.exit_code == 1 and "buggy is number" in some.stdout
    assert re.search(r"([12]) of [24] finals failed \(buggy on two\): ValueError", some.stdout)
    assert "trials failed" not in some.stdout
    page = (tmp_path / "results" / "rank" / "small" / "buggy" / "standing.md").read_text()
    assert "finals failed (buggy on two): ValueError: my own bug." in page

    bugs.write_text("")
    done = rank(file)
    assert done.exit_code == 0 and "failed" not in done.stdout, done.output
    assert "equal to: unrolled" in done.stdout
    again = rank(file)
    assert again.exit_code == 0 and "starts" not in again.stderr


def test_a_cap_below_one_step_is_told(rank: Any, small: tuple[Path, Path], tmp_path: Path) -> None:
    slow = tmp_path / "slow.toml"  # a look takes 25.5 of the 90, a step 76
    slow.write_text("set.method = { inner_steps = 25 }\nspace.outer_lr = { choices = [0.1] }\n")
    done = rank(contests.plugin(tmp_path, "dear"), "--space", slow)
    assert done.exit_code == 0, done.output
    told = re.sub(r"\s+", " ", done.stdout)
    assert re.search("([24]) of \\1 finals made no outer step within the cap: dear on two", told)


def test_a_changed_file_is_told(rank: Any, tmp_path: Path) -> None:
    import os
    import time

    file = contests.plugin(tmp_path, "mine", space="")
    assert rank(file).exit_code == 0
    later = time.time() + 60
    os.utime(file, (later, later))
    told = re.sub(r"\s+", " ", rank(file, "--dry-run").output)
    assert "was changed after 2 cells of mine had been run" in told


@pytest.mark.slow
def test_the_page_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    page = (Path(__file__).parents[3] / "docs" / "arena.md").read_text(encoding="utf-8")
    printed, compared = "", 0
    for block in blocks(page):
        if block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            for command in block.text.splitlines():
                name, *words = shlex.split(command)
                done = CliRunner().invoke(app, words)
                assert name == "metabench" and done.exit_code == 0, done.output
                printed = done.stdout
        else:
            assert (wrong := mismatch(block.text, printed)) == "", wrong
            compared += 1
    assert compared == 2
