"""Groups of options become parameters of the commands, in their place and with their defaults."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import fields, replace
from pathlib import Path

import contests
import pytest
from typer.testing import CliRunner, Result

from metabench.api.calibration import calibrate_arena
from metabench.cli.command import typed, with_options
from metabench.cli.main import app
from metabench.cli.options import Choice, Jobs, Launch, seed_list
from metabench.core.errors import SettingError, UnknownName

NAMES = [f.name for f in fields(Choice)]
LAUNCH = [f.name for f in fields(Launch)]


def test_fields_stand_where_their_group_stood() -> None:
    got = []

    @with_options()
    def command(name: str, choice: Choice, launch: Launch, jobs_after: Jobs = None) -> None:
        """A command."""
        got.append((name, choice, launch, jobs_after))

    shown = inspect.signature(command).parameters
    assert list(shown) == ["name", *NAMES, *LAUNCH, "jobs_after"]
    assert command.__doc__ == "A command." and shown["budget"].default == "laptop"
    defaults = {p.name: p.default for p in shown.values() if p.default is not p.empty}
    command(name="x", **defaults)
    command(name="y", **{**defaults, "budget": "smoke", "ranks": 2, "jobs_after": 3})
    assert got[0] == ("x", Choice(), Launch(), None)
    assert got[1] == ("y", replace(Choice(), budget="smoke"), replace(Launch(), ranks=2), 3)


def test_an_option_that_is_left_out_keeps_its_default() -> None:
    got = []

    @with_options(without="only")
    def command(choice: Choice) -> None:
        got.append(choice)

    shown = inspect.signature(command).parameters
    assert list(shown) == [name for name in NAMES if name != "only"]
    command(**{p.name: p.default for p in shown.values()})
    assert got == [Choice()]


def test_outside_of_a_command_nothing_was_typed() -> None:
    assert typed("budget", "store") == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an arena and two stores, of which the environment names one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABENCH_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("METABENCH_CLUSTERS", str(tmp_path))
    (tmp_path / "small.toml").write_text(contests.ARENA)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


def run(words: str) -> Result:
    return CliRunner().invoke(app, shlex.split(words), terminal_width=500)


@pytest.mark.parametrize(
    ("words", "option", "says"),
    [
        ("calibrate small.toml --store one", "--store", "put into small.toml"),
        ("calibrate small.toml --again", "--again", "every call measures all again"),
        ("publish small.toml --budget smoke --unverified", "--unverified", "is an arena"),
        ("arena small.toml --dry-run --figures x", "--figures", "a dry run draws nothing"),
        ("status --budget smoke", "--budget", "name a suite"),
        ("status --set x.y=1", "--set", "name a suite"),
        ("status --seeds 1", "--seeds", "name a suite"),
        ("status --only x", "--only", "name a suite"),
        ("status --solver adam", "--solver", "name a suite"),
        ("status --watch", "--watch", "name a suite"),
        ("cost --only x", "--only", "name a suite"),
        ("plan quickstart --solver adam", "--solver", "--task and --method"),
        ("submit quickstart --cluster cpu --dry-run --solver adam", "--solver", "--task and"),
        ("reproduce quickstart --cluster cpu --jobs 2", "--jobs", "--set slurm.at_once=N"),
        ("reproduce quickstart --cluster cpu --device cpu", "--device", "--set slurm.gpus=N"),
        ("reproduce quickstart --cluster cpu --time-limit 9", "--time-limit", "slurm.time=MIN"),
        ("reproduce quickstart --cluster cpu --ranks 2", "--ranks", "--set slurm.ranks=N"),
        (
            "reproduce quickstart --cluster cpu --checkpoint-every 9",
            *("--checkpoint-every", "slurm.checkpoint_seconds=SECONDS"),
        ),
        ("compare one two --store one", "--store", "neither one nor two"),
        ("compare one two --budget smoke", "budget", "neither one nor two"),
        ("compare one two --seeds 1", "seeds", "neither one nor two"),
        ("compare one two --set x.y=1", "set", "neither one nor two"),
        ("compare quickstart@smoke one --budget laptop", "budget", "quickstart@smoke"),
        ("plot quickstart --kind learning --cost seconds", "cost", "those of cost and frontier"),
        ("doctor --cluster cpu --plugin x.py", "--plugin", "leave out --cluster"),
    ],
)
def test_nothing_that_is_typed_is_ignored(place: Path, words: str, option: str, says: str) -> None:
    done = run(words)
    said = " ".join(done.output.split())
    assert done.exit_code == 2, said
    assert said.startswith(f"error: {option}") and says in said
    assert not (place / "runs").exists()


def test_what_the_environment_says_was_not_typed(place: Path) -> None:
    for words in ("status", "cost", "compare one two"):
        assert "error: --" not in run(words).output


def test_an_arena_is_measured_on_the_problems_of_a_budget(place: Path) -> None:
    some = '[budgets.few]\ntrials = 1\ntuning_seeds = [9]\nseeds = [0]\nproblems = ["three"]\n'
    text = contests.ARENA.replace("[budgets.smoke]", f"{some}[budgets.smoke]")
    (place / "small.toml").write_text(text)
    found = run("calibrate small.toml --budget few")
    assert found.exit_code == 0 and [x for x in found.stdout.splitlines() if x[0] == "#"] == [
        "# three"
    ]
    assert [c.problem for c in calibrate_arena("small.toml", budget="few", seeds=[0])] == ["three"]
    with pytest.raises(UnknownName, match="'fewer'; near: few"):
        calibrate_arena("small.toml", budget="fewer")
    assert run("calibrate small.toml --budget fewer").exit_code == 2


def test_seed_lists() -> None:
    assert seed_list(None) is None
    assert seed_list("0") == [0]
    assert seed_list("0, 2,5-7,6") == [0, 2, 5, 6, 7]
    with pytest.raises(SettingError, match="more than 10,000"):
        seed_list("0-99999999999")
    for text in ("", "a", "1-", "-1", "3-1", "1,,2", "1.5", "٣", "1-٣", "9" * 5000):
        with pytest.raises(SettingError, match="seeds"):
            seed_list(text)
