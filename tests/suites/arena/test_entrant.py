"""A method that is new to an arena: whose it is, its space, the problems that it plays on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import contests
import pytest

from metabench.core.errors import MetabenchError, SettingError, UnknownName
from metabench.core.registry import registered_by
from metabench.suites.arena import definition as arenas
from metabench.suites.arena.definition import Arena
from metabench.suites.arena.entrant import entrant, find, narrowed

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    path = tmp_path / "small.toml"
    path.write_text(contests.ARENA)
    return arenas.load(path)


def test_a_file_is_known_by_what_it_registers_the_second_time_too(tmp_path: Path) -> None:
    file = contests.plugin(tmp_path, "mine")
    for _ in range(2):
        assert find(str(file)).name == "mine" and registered_by(file) == [("method", "mine")]
    assert find("bilevel").file is None
    task = tmp_path / "only_a_task.py"
    task.write_text(
        "from dataclasses import dataclass\nfrom metabench import task\n"
        "from metabench.tasks.quadratic import Quadratic\n"
        "@task('own_quadratic')\n@dataclass(frozen=True)\nclass Own(Quadratic):\n    'Own.'\n"
    )
    with pytest.raises(MetabenchError, match=r"registers no method \(task own_quadratic\)"):
        find(str(task))


def test_the_space_of_the_class_or_of_a_file(arena: Arena, tmp_path: Path) -> None:
    find(str(contests.plugin(tmp_path, "mine")))
    declared = entrant(arena, "mine")
    assert list(declared.space) == ["method.outer_lr"] and declared.tracks == ["A", "B"]
    file = tmp_path / "space.toml"
    file.write_text(
        'solver = "momentum"\nset.method = { inner_steps = 7 }\n'
        'space."solver.momentum" = { low = 0.1, high = 0.9 }\n'
        "space.inner_lr = { choices = [0.1, 0.2] }\n"
    )
    other = entrant(arena, "mine", file)
    assert list(other.space) == ["solver.momentum", "method.inner_lr"]
    assert (other.solver, other.set) == ("momentum", {"method": {"inner_steps": 7}})
    assert entrant(arena, "one_step").space == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('space."task.dim" = { low = 1, high = 2 }', UnknownName, "group of a method's space"),
        ("space.outer_lr = { low = 1 }", SettingError, "a range has low and high, or choices"),
        (
            "space.outer_lr = { low = 1, hihg = 2 }",
            SettingError,
            "space.method.outer_lr: no setting called 'hihg'; near: high",
        ),
        ('id = "x"\nspace.outer_lr = { choices = [1.0] }', UnknownName, "'id'"),
        ("space = 3", SettingError, "space cannot be 3"),
        ("space.inner_lr = 3", SettingError, "space.method.inner_lr cannot be 3: give a table, wh"),
        ("space = [", SettingError, "not TOML"),
    ],
)
def test_a_space_that_is_none_is_told(
    arena: Arena, tmp_path: Path, text: str, error: type, message: str
) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(error, match=message):
        entrant(arena, "one_step", tmp_path / "space.toml")


def test_a_baseline_is_not_entered_again(arena: Arena) -> None:
    baseline = replace(arena.methods[0], id="bilevel")
    with pytest.raises(SettingError, match="is a baseline of arena small already"):
        entrant(replace(arena, methods=[baseline]), "bilevel")


def test_quick_problems_alone(arena: Arena, tmp_path: Path) -> None:
    assert [p.id for p in narrowed(arena, "smoke").problems] == ["two", "three", "start"]
    assert [p.id for p in narrowed(arena, "smoke", quick=True).problems] == ["two"]
    with pytest.raises(UnknownName, match="called 'smok'; near: smoke"):
        narrowed(arena, "smok")
    many = "".join(
        contests.PROBLEM.format(
            id=f"p{i}",
            track="A",
            set="dim = 2",
            fixed=4.0,
            more="quick = true\n",
            prices="hvps = 1",
        )
        for i in range(5)
    )
    head, _, tail = contests.ARENA.partition("[[methods]]")
    (tmp_path / "many.toml").write_text(head + many + "[[methods]]" + tail)
    with pytest.raises(MetabenchError, match="6 problems are quick, at most 4 may be"):
        arenas.load(tmp_path / "many.toml")
