"""``metabench arena``: a dry run, trials and finals, a second call that runs nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from metabench.cli.main import app

FILE = """
kind = "arena"
title = "Quadratics"

[budgets.smoke]
trials = 2
tuning_seeds = [100]
seeds = [0]

[[problems]]
id = "two"
track = "A"
task = "quadratic"
set.task = { dim = 2 }
fixed = 4.0
bound = 0.0
cap = 60.0
select = "best_valid"
prices = { inner_gradients = 1.0, outer_gradients = 1.0, hvps = 1.0, mixed_products = 1.0, function_evaluations = 0.5 }

[[methods]]
id = "unrolled"
method = "bilevel"
tracks = ["A"]
space."method.outer_lr" = { low = 0.01, high = 1.0, log = true }

[[methods]]
id = "implicit"
method = "ift"
tracks = ["A"]
"""  # noqa: E501


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "small.toml").write_text(FILE)
    place = [str(tmp_path / "small.toml"), "--budget", "smoke", "--store", str(tmp_path / "runs")]
    return ["arena", *place]


def test_trials_finals_and_standings(words: list[str], tmp_path: Path) -> None:
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0
    lines = [line.split() for line in dry.output.splitlines()]
    for line in (["two", "3"], ["unrolled", "2"], ["implicit", "1"]):  # open, by problem and method
        assert line in lines
    assert "3 cells: 3 open" in dry.output and "finals: at most 4 cells" in dry.output
    assert not list((tmp_path / "runs").glob("*/*/record.json"))

    done = CliRunner().invoke(app, [*words, "--jobs", "1"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [x for x in lines if x.startswith("Track A")] == [
        "Track A, lam in the inner loss, tuned: 1 problem",
        "Track A, lam in the inner loss, as shipped: 1 problem",
    ]
    assert "Not tested: it would need 3 methods on 6 problems" in done.stdout
    assert all(len(line) <= 80 for line in lines)
    records = sorted((tmp_path / "runs").glob("*/*/record.json"))
    times = [r.stat().st_mtime_ns for r in records]

    again = CliRunner().invoke(app, [*words, "--jobs", "1"])
    assert again.exit_code == 0 and again.stdout == done.stdout
    left = CliRunner().invoke(app, [*words, "--dry-run"]).output
    assert "finals" in left and "to run" not in left and "at most" not in left
    assert [r.stat().st_mtime_ns for r in records] == times

    drawn = CliRunner().invoke(app, [*words, "--jobs", "1", "--figures", str(tmp_path / "figures")])
    assert drawn.exit_code == 0 and drawn.stdout.startswith(done.stdout)
    written = list((tmp_path / "figures").iterdir())
    assert f"{len(written)} files of figures and tables in" in drawn.stdout
    assert (tmp_path / "figures" / "A-cost-to-target.png").is_file()


PLUGIN = """
from pathlib import Path
from dataclasses import dataclass
from metabench import method
from metabench.methods.bilevel import Bilevel


@method("buggy")
@dataclass(frozen=True)
class Buggy(Bilevel):
    "Raises as long as there is a file."

    def hypergradient(self, *words):
        if Path({bug!r}).exists():
            raise ValueError("my own bug")
        return super().hypergradient(*words)
"""


def test_an_exception_is_no_result_and_is_tried_again(
    words: list[str], tmp_path: Path, plugins_forgotten: None
) -> None:
    bug, plugin = tmp_path / "bug", tmp_path / "buggy.py"
    plugin.write_text(PLUGIN.format(bug=str(bug)))
    own = '[[methods]]\nid = "mine"\nmethod = "buggy"\ntracks = ["A"]\n'
    (tmp_path / "small.toml").write_text(FILE + own)
    typed = [*words, "--jobs", "1", "--plugin", str(plugin)]
    bug.touch()
    for _ in range(2):
        bad = CliRunner().invoke(app, typed)
        assert bad.exit_code == 1 and "Left out, every final failed: mine." in bad.stdout
        told = " ".join(bad.stdout.split())
        assert "1 of 4 finals failed (mine on two): ValueError: my own bug" in told
        assert "metabench logs" in told and "1 of 4 trials failed (mine on two)" in told
    bug.unlink()
    good = CliRunner().invoke(app, typed)
    assert good.exit_code == 0 and "failed" not in good.stdout and "mine" in good.stdout


def test_its_table_is_where_all_stand(words: list[str], tmp_path: Path) -> None:
    table = ["table", *words[1:]]
    early = CliRunner().invoke(app, table)
    assert early.exit_code == 1
    said = " ".join(early.output.split())
    assert "small has 3 cells of budget smoke without a record" in said
    assert "1 cells" not in said
    assert "metabench arena" in said
    done = CliRunner().invoke(app, [*words, "--jobs", "1"])
    shown = CliRunner().invoke(app, table)
    assert shown.exit_code == 0 and shown.stdout.strip() == done.stdout.strip()
    page = CliRunner().invoke(app, [*table, "--format", "markdown"]).stdout
    assert page.count("|   rank |") == 2
    for more, why in ((["--format", "csv"], "three csv files"), (["--cost"], "are for suites")):
        refused = CliRunner().invoke(app, [*table, *more])
        assert refused.exit_code == 2 and why in " ".join(refused.output.split())


def test_a_budget_without_records_names_those_that_have_some(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = "[budgets.laptop]\ntrials = 3\ntuning_seeds = [7]\nseeds = [8]\n\n[budgets.smoke]"
    (tmp_path / "small.toml").write_text(FILE.replace("[budgets.smoke]", more))
    file, store = words[1], ["--store", words[-1]]
    for verb in ("table", "leaderboard", "publish"):
        none = CliRunner().invoke(app, [verb, file, "--budget", "laptop", *store])
        assert none.exit_code == 1 and "budget smoke" not in none.output
    assert CliRunner().invoke(app, [*words, "--jobs", "1"]).exit_code == 0
    kept = len(list((tmp_path / "runs").glob("*/*/record.json")))
    for verb in ("table", "leaderboard", "publish"):
        done = CliRunner().invoke(app, [verb, file, "--budget", "laptop", *store])
        assert done.exit_code == 1
        said = " ".join(done.output.split())
        assert f"; budget smoke has {kept} records: --budget smoke" in said
    assert not (tmp_path / "results").exists()  # what publishes nothing claims no folder


def test_a_suite_is_no_arena(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('title = "x"\n')
    found = CliRunner().invoke(app, ["arena", str(path)])
    assert found.exit_code == 2 and str(path) in found.output.replace("\n", "")
