import tomllib
from dataclasses import replace

import contests
import pytest
from typer.testing import CliRunner

from metabench.api.calibration import calibrate_arena
from metabench.cli.main import app
from metabench.core.costs import PRICED
from metabench.suites.arena.definition import ArenaProblem, load

FILE = contests.SMALLEST.replace("dim = 2", "a = 3.0").replace('id = "two"', 'id = "steep"')


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text(FILE)
    return path


def test_every_problem_of_an_arena_is_measured(file):
    told = []
    (found,) = calibrate_arena(file, listener=told.append)
    assert told == [found]
    assert found.problem == "steep" and found.smoothness == pytest.approx(3.0)
    assert set(found.prices.of) == set(PRICED)


def test_seeds_that_end_with_their_first_use_are_those_of_every_problem(file):
    (problem,) = load(file).problems
    arena = replace(load(file), problems=[problem, replace(problem, id="again")])
    first, second = calibrate_arena(arena, seeds=iter([0]))
    assert (first.smoothness, second.smoothness) == pytest.approx((3.0, 3.0))


def test_what_is_printed_can_be_put_into_the_file(file):
    said = CliRunner().invoke(app, ["calibrate", str(file)])
    assert said.exit_code == 0
    values = tomllib.loads(said.stdout)
    assert values["smoothness"] == 3.0
    ArenaProblem("steep", "A", "quadratic", 1.0, 0.0, 10.0, **values)
