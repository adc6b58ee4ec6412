"""Every command that a message names can be typed as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import contests
import pytest
from command_lines import VERBS, parsed
from typer.testing import CliRunner, Result

from metabench.api.arena import tournament
from metabench.api.scaffold import next_commands
from metabench.cli.main import app
from metabench.cluster import submission as folders
from metabench.cluster.slurm.commands import Partition, Slurm
from metabench.cluster.slurm.job_states import Answer
from metabench.cluster.submission import Submission
from metabench.cluster.submitting import submit
from metabench.cluster.submitting.draft import Draft
from metabench.core.text import counted
from metabench.store.store import Store

ROOT = Path(__file__).parents[2]
SAMPLES = {
    "name": "omniglot",
    "dataset": "omniglot",
    "cross": "--task quadratic --method bilevel",
    "plugin": "--plugin mine.py",
    "file": "mine.py",
    "typed": "arena-1",
    "budget": "laptop",
}
"""What stands in a message for what is filled in when it is told."""


def named(text: str) -> list[str]:
    """The commands in what was printed: to the end of a line, a semicolon or a comma."""
    return [c.strip() for c in re.findall(r"(?<![\w/.-])metabench [a-z][^\n;,`]*", text)]


def messages() -> Iterator[tuple[str, str]]:
    """Every text of the code that names a command, docstrings apart; with where it stands."""
    for folder in ("metabench", "tasks", "methods"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "metabench " not in source:  # most, and to parse all takes seconds
                continue
            tree = ast.parse(source)
            alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            parts = {
                id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values
            }
            for node in ast.walk(tree):
                if id(node) in alone or id(node) in parts:
                    continue
                text = ""
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                elif isinstance(node, ast.JoinedStr):
                    text = "".join(map(_filled, node.values))
                for command in named(text):
                    if command.split()[1] in VERBS:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", command


def _filled(part: ast.expr) -> str:
    if isinstance(part, ast.FormattedValue):
        return SAMPLES.get(ast.unparse(part.value), f"{{{ast.unparse(part.value)}}}")
    return str(part.value) if isinstance(part, ast.Constant) else ""


FOUND = [(w, c) for w, c in messages() if c != "metabench doctor"]  # the comment of a probe's job


def test_messages_name_commands() -> None:
    assert {c.split()[1] for _, c in FOUND} >= {"data", "run", "show", "check", "reproduce"}


@pytest.mark.parametrize(("where", "command"), FOUND, ids=[w for w, _ in FOUND])
def test_a_command_in_a_message_can_be_typed(where: str, command: str) -> None:
    assert "SUITE" not in command and "{" not in command, f"{where}: nobody can type that"
    parsed(command)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None) -> Path:
    """A folder with a profile in it, and a Slurm that accepts everything and knows no job."""
    monkeypatch.setenv("COLUMNS", "1000")  # a phrase stands in one line
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    (tmp_path / "mine.toml").write_text('extends = "cpu"\nshared = ["/"]\nquery_seconds = 0\n')
    monkeypatch.setattr(
        Slurm, "partitions", lambda _: [Partition("main", 64, 999.0, {}, None, True)]
    )
    monkeypatch.setattr(Slurm, "max_array", lambda _: 1001)
    monkeypatch.setattr(submit, "look", lambda *_, **__: Answer(1e12, {}))
    monkeypatch.setattr(
        "metabench.cluster.slurm.job_states.look", lambda *_, **__: Answer(1e12, {})
    )

    def queued(made: Draft, *_: object) -> Submission:
        return submit._write_folder(made)

    monkeypatch.setattr(submit, "enqueue", queued)
    monkeypatch.setattr("metabench.cluster.submitting.snapshot.take", lambda _: "sha")
    return tmp_path


def metabench(*words: str) -> Result:
    done = CliRunner().invoke(app, list(words), prog_name="metabench")
    assert done.exit_code == 0, done.output
    return done


PAIR = ("--task", "quadratic", "--method", "bilevel", "--budget", "smoke")


@pytest.mark.parametrize(
    "words",
    [
        PAIR,
        (*PAIR, "--solver", "sgd", "--seeds", "0-1", "--set", "budget.outer_steps=2"),
        (*PAIR, "--store", "else where", "--set", "slurm.time=60"),
        ("quickstart", "--budget", "smoke", "--only", "maml/*"),
        ("own suite.toml", "--budget", "smoke"),
    ],
    ids=["pairs", "chosen", "store", "suite", "file"],
)
def test_what_submit_and_status_tell_to_type_is_about_the_same_cells(
    site: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    suite = ROOT / "metabench" / "suite_files" / "quickstart.toml"
    suite = suite if suite.exists() else next(ROOT.rglob("quickstart.toml"))
    (site / "own suite.toml").write_text(suite.read_text())
    said = metabench("submit", *words, "--cluster", "mine.toml").output
    (see,) = [c for c in named(said) if "status" in c]
    root = site / ("else where" if "else where" in words else "results/runs")
    (first,) = folders.submissions(Store(root))
    monkeypatch.chdir("/")  # a hint does not depend on where one stands
    see = first.command("status")
    status = metabench(*shlex.split(see)[1:]).output
    assert f"{first.cells} lost" in status
    (retry,) = set(named(status.partition("repair it with: ")[2]))
    again = metabench(*shlex.split(retry)[1:]).output
    assert f"  {counted(first.cells, 'cell')} in " in again
    second = folders.submissions(Store(root))[-1]
    assert folders.keys(second) == folders.keys(first)
    cancel = first.command("cancel")
    assert (
        "cancelled on mine: no job was waiting or running"
        in metabench(*shlex.split(cancel)[1:]).output
    )
    assert all(s.cancelled for s in folders.submissions(Store(root)))


def test_an_arena_is_submitted_in_two_steps_each_naming_the_next(site: Path) -> None:
    (site / "small.toml").write_text(contests.SMALLEST)
    kept = Store(site / "results" / "runs")
    words = ("small.toml", "--budget", "smoke", "--cluster", "mine.toml")
    dry = metabench("submit", "arena", *words, "--dry-run").output
    assert "#SBATCH" in dry and not kept.root.exists()

    said = metabench("submit", "arena", *words).output
    assert "  3 cells in " in said and "these are trials" in said
    (first,) = folders.submissions(kept)
    assert "3 lost" in metabench(*shlex.split(first.command("status"))[1:]).output
    again = metabench(*shlex.split(first.command("retry"))[1:]).output
    assert "  3 cells in " in again
    (submit,) = [c for c in named(said) if c.startswith("metabench submit")]

    def play() -> None:
        phase, planned = tournament.due(
            tournament.plan(site / "small.toml", budget="smoke", store=kept)
        )
        assert phase in ("trials", "finals")
        tournament.play(planned, kept, 1, None, None)

    play()
    said = metabench(*shlex.split(submit)[1:]).output
    assert "these are finals" in said and re.search(r"  [46] cells in ", said)
    last = folders.submissions(kept)[-1]
    assert not folders.keys(last) & folders.keys(first)
    play()
    said = metabench(*shlex.split(submit)[1:]).output
    assert "nothing to submit" in said and "every final is done" in said
    (arena,) = [c for c in named(said) if c.startswith("metabench arena")]
    assert "Track A" in metabench(*shlex.split(arena)[1:]).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("arena", "none.toml", "--cluster", "mine.toml"), "no suite file 'none.toml'"),
        (("quickstart", "x.toml", "--cluster", "mine.toml"), "one suite is submitted at a time"),
        (("small.toml", "--seeds", "0", "--cluster", "mine.toml"), "there is no --seeds"),
    ],
)
def test_what_an_arena_cannot_be_submitted_with_is_told(
    site: Path, words: tuple[str, ...], message: str
) -> None:
    (site / "small.toml").write_text(contests.SMALLEST)
    done = CliRunner().invoke(app, ["submit", *words, "--budget", "smoke"])
    assert done.exit_code == 2 and message in done.output
    done = CliRunner().invoke(app, ["plan", "small.toml", "--budget", "smoke"])
    assert done.exit_code == 2 and "is an arena and no suite: metabench arena" in done.output


def test_what_new_tells_to_type_works_where_paths_have_spaces(tmp_path: Path) -> None:
    for kind in ("method", "task"):
        for command in next_commands(kind, tmp_path / "my folder" / "mine.py"):
            parsed(command)


def test_a_store_without_a_finished_cell_tells_how_to_run_the_suite_of_a_file(site: Path) -> None:
    (site / "own suite.toml").write_text(next(ROOT.rglob("quickstart.toml")).read_text())
    done = CliRunner().invoke(app, ["publish", "own suite.toml", "--budget", "smoke"])
    (command,) = named(done.output)
    assert str(site / "own suite.toml") in shlex.split(command)
    parsed(command)
