from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from metabench.api.scaffold import class_name, new, next_commands
from metabench.cli.main import app
from metabench.contract.seeds import Seeds
from metabench.core import registry
from metabench.core.errors import MetabenchError, SettingError, UnknownName


@pytest.mark.parametrize("name", ["", "1x", "a-b", "a b", "lambda", "größe", "x.py", "../x"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="cannot be the name of a method"):
        new("method", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["class", "lambda", "None"])
def test_a_word_of_python_is_called_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=rf"it is a word of Python; near: my_{name}$"):
        new("method", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["match", "type"])
def test_words_that_python_has_in_some_places_only_are_names(tmp_path: Path, name: str) -> None:
    assert new("method", name, tmp_path).is_file()


def test_refusals_name_something_near(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"near: a_b$"):
        new("method", "a-b", tmp_path)
    with pytest.raises(SettingError, match=r"near: my_1x$"):
        new("task", "1x", tmp_path)
    with pytest.raises(SettingError, match=r"near: mine$"):
        new("task", "_mine", tmp_path)
    with pytest.raises(UnknownName, match="near: method"):
        new("metod", "mine", tmp_path)


@pytest.mark.parametrize(
    ("kind", "taken", "by"),
    [
        ("method", "maml", "method"),
        ("task", "ridge", "task"),
        ("task", "sgd", "solver"),
        ("method", "quadratic", "task"),
    ],
)
def test_taken_names_are_refused(tmp_path: Path, kind: str, taken: str, by: str) -> None:
    with pytest.raises(SettingError, match=f"there is a {by} called '{taken}' already"):
        new(kind, taken, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["json", "numpy"])
def test_names_of_python_modules_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=rf"Python module called .* near: my_{name}$"):
        new("task", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["task", "method", "solver", "budget"])
def test_names_of_groups_of_settings_are_refused(tmp_path: Path, name: str) -> None:
    """--set task.rows=20 could not tell a task of that name from the group."""
    with pytest.raises(SettingError, match=rf"{name}' cannot be .* near: my_{name}$"):
        new("task", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"), [("task", "problem"), ("task", "hyper"), ("method", "gradient_method")]
)
def test_a_class_hides_nothing_that_its_file_needs(
    plugins_forgotten: None, tmp_path: Path, kind: str, name: str
) -> None:
    path = new(kind, name, tmp_path)
    assert f"class {class_name(name)}{kind.capitalize()}" in path.read_text()
    registry.load_plugin(path)
    made = registry.REGISTRIES[kind].get(name)()
    if kind == "task":
        problem = made.build(Seeds.of(0), torch.device("cpu"))
        assert problem.episode("train", 0).index == 0 and not problem.carried


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    with pytest.raises(MetabenchError, match="exists already"):
        new("method", "mine", tmp_path)
    assert (tmp_path / "mine.py").read_text() == "precious"
    with pytest.raises(MetabenchError, match="cannot write"):
        new("method", "mine", tmp_path / "no_such_folder")


def test_class_names() -> None:
    assert class_name("my_first_method") == "MyFirstMethod"
    assert class_name("x") == "X"
    assert class_name("a_1") == "A1"


@pytest.mark.parametrize("kind", ["method", pytest.param("task", marks=pytest.mark.slow)])
def test_what_is_written_is_clean_and_passes_the_checks(
    plugins_forgotten: None, tmp_path: Path, kind: str
) -> None:
    from metabench.conformance import kit

    name = f"my_own_{kind}"
    path = new(kind, name, tmp_path)
    ruff = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--line-length",
            "100",
            "--select",
            "E,F,I,B,UP,SIM,D1",
            "--ignore",
            "D105,D107",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
    tidy = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", "--check"]
    subprocess.run([*tidy, str(path)], check=True, timeout=60)
    registry.load_plugin(path)
    {"method": kit.check_method, "task": kit.check_task}[kind](name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["method", "task"])
def test_the_next_commands_work(
    plugins_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def type_in(command: str) -> str:
        program, *words = command.split()
        assert program == "metabench"
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{command}:\n{done.output}{done.exception}"
        return done.stdout

    said = type_in(f"metabench new {kind} mine")
    commands = [line.strip() for line in said.splitlines()[1:]]
    assert commands == next_commands(kind, Path("mine.py"))
    verbs = ["show", "check", "reproduce", *(["rank"] if kind == "method" else [])]
    assert [command.split()[1] for command in commands] == verbs
    # To rank takes a quarter of an hour: that it is tuned can be seen before.
    dry = {"rank": " --dry-run"}
    told = {verb: type_in(c + dry.get(verb, "")) for verb, c in zip(verbs, commands, strict=True)}
    assert kind == "task" or re.search(
        r"mine in arena-.*quick problems\): \d problems, \d+ trials", told["rank"]
    )
    assert f"{kind} mine" in told["show"]
    assert "mine passes every check" in told["check"]
    assert list((tmp_path / "results").glob("*/smoke/report.html"))


@pytest.mark.slow
def test_the_two_run_crossed(tmp_path: Path) -> None:
    for kind in ("method", "task"):
        new(kind, f"own_{kind}", tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "metabench",
            "run",
            "--plugin",
            "own_method.py",
            "--task",
            "own_task",
            "--method",
            "own_method",
            "--method",
            "random",
            "--budget",
            "smoke",
            "--set",
            "own_method.last=3",
            f"--plugin={tmp_path / 'own_task.py'}",
            "--set",
            "own_task.rows=5",
            "--store",
            "runs",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "METABENCH_PLUGINS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "2/2 cells, 2 done" in done.stderr


def test_the_methods_derivative_is_the_one_it_says(plugins_forgotten: None, tmp_path: Path) -> None:
    """Differentiating through every step is what ``bilevel`` does; through the last, a part."""
    import torch

    from metabench.contract.context import Context
    from metabench.contract.seeds import Seeds

    registry.load_plugin(new("method", "partial", tmp_path))
    seeds = Seeds.of(0)
    task = registry.tasks.get("ridge")()
    problem = task.build(seeds, torch.device("cpu"))
    episode = problem.episode("train", 0)

    def gradient(name: str, **settings: object) -> torch.Tensor:
        method = registry.methods.get(name)(inner_steps=6, inner_lr=0.2, **settings)
        ctx = Context(problem, registry.solvers.get("sgd")(), seeds, task.offers)
        found: torch.Tensor = method.hypergradient(ctx, problem.init_outer(), None, episode).grad[
            "log_penalty"
        ]
        return found

    for last in (1, 3, 6):
        expected = gradient("bilevel", truncate=last)
        torch.testing.assert_close(gradient("partial", last=last), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(gradient("partial", last=1), gradient("partial", last=6))


def test_the_tasks_best_value_is_the_best(plugins_forgotten: None, tmp_path: Path) -> None:
    """The outer loss after exact inner solutions is least at the penalty that Bayes gives."""
    import math

    import torch

    from metabench.contract.seeds import Seeds

    registry.load_plugin(new("task", "shared_penalty", tmp_path))
    task = registry.tasks.get("shared_penalty")(noise=1.0, scale=0.5)
    problem = task.build(Seeds.of(0), torch.device("cpu"))
    best = math.log(1.0**2 / 0.5**2)
    losses = {}
    for shift in (-1.5, 0.0, 1.5):
        total = 0.0
        for index in range(400):
            episode = problem.episode("test", index)
            x, y = episode.inner["x"], episode.inner["y"]
            eye = torch.eye(x.shape[1], dtype=x.dtype)
            w = torch.linalg.solve(x.T @ x + math.exp(best + shift) * eye, x.T @ y)
            total += problem.metrics(
                {"log_penalty": torch.tensor(best + shift)}, {"w": w}, episode
            )["mse"]
        losses[shift] = total
    assert losses[0.0] < losses[-1.5] and losses[0.0] < losses[1.5]


def test_a_new_method_is_tuned_where_it_is_ranked(plugins_forgotten: None, tmp_path: Path) -> None:
    """README: "tuned, among tuned ones". A method without a space plays as shipped alone."""
    from metabench.api.arena.contest import contest as entered
    from metabench.suites.arena import definition as arena

    path = new("method", "fresh", tmp_path)
    contest = entered(str(path), budget="laptop", quick=True, store=tmp_path / "runs")
    assert contest.tuned
    assert list(contest.entrant.space) == ["method.inner_lr", "method.outer_lr"]
    (alike,) = [m for m in arena.load("arena-1").methods if m.id == "one_step"]
    shared = {name: alike.space[name] for name in contest.entrant.space}
    assert contest.entrant.space == shared, "the ranges that built-in methods have"
