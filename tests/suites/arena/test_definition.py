"""Arenas: what a file may say, ranges, trials that do not depend on who else takes part, cells."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.core import catalogue
from metabench.core.costs import PRICED
from metabench.core.errors import SettingError, SuiteError, UnknownName
from metabench.core.registry import tasks
from metabench.suites.arena import definition as arenas
from metabench.suites.arena.space import Range

FILE = """
kind = "arena"
title = "Two problems"

[budgets.smoke]
trials = 3
tuning_seeds = [100]
seeds = [0, 1]
problems = ["one"]

[budgets.laptop]
trials = 5
tuning_seeds = [100, 101]
seeds = [0, 1, 2]

[[problems]]
id = "one"
track = "A"
task = "quadratic"
set.task = { dim = 2 }
fixed = 2.0
bound = 1.0
cap = 400.0
looks = 4
smoothness = 3.0
select = "best_valid"
prices = { inner_gradients = 1.0, outer_gradients = 1.0, hvps = 1.0, mixed_products = 1.0, function_evaluations = 0.5 }

[[problems]]
id = "start"
track = "B"
task = "quadratic"
set.task = { formulation = "init" }
fixed = 2.0
bound = 1.0
cap = 400.0
select = "best_valid"
prices = { inner_gradients = 1.0, outer_gradients = 1.0, hvps = 1.0, mixed_products = 1.0, function_evaluations = 0.5 }

[[methods]]
id = "unrolled"
method = "bilevel"
tracks = ["A", "B"]
set.method = { outer_solver = "adam" }
space."method.inner_lr" = { low = 0.1, high = 1.0, log = true, per_smoothness = true }
space."method.inner_steps" = { low = 2, high = 20, log = true, whole = true }

[[methods]]
id = "implicit"
method = "ift"
tracks = ["A"]
space."method.inverse" = { choices = ["neumann", "cg"] }

[[methods]]
id = "fixed"
method = "fixed"
tracks = ["A"]
"""  # noqa: E501


CHOSEN = {("unrolled", "one"): 0}


def made(tmp_path: Path, text: str = FILE) -> arenas.Arena:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return arenas.load(path)


def test_trials_are_cells_with_settings_of_their_own(tmp_path: Path) -> None:
    arena = made(tmp_path)
    cells = arena.trials("laptop")
    # Two methods with a space have five trials, one of them on two problems; "fixed" has one.
    assert len(cells) == 2 * (5 + 5 + 5 + 1)
    assert [(c.row, c.column) for c in cells[:8:2]] == [
        ("unrolled#0", "one"), ("unrolled#0", "start"), ("implicit#0", "one"), ("fixed#0", "one"),
    ]  # fmt: skip
    first = cells[0].cell
    assert first.seed == 100 and first.method_settings["inner_lr"] == 0.1  # as shipped
    assert first.method_settings["outer_solver"] == "adam"
    assert first.budget["cost"] == 400.0 and first.budget["eval_every_cost"] == 100.0
    drawn = {c.cell.method_settings["inner_lr"] for c in cells if c.row.startswith("unrolled#")}
    assert len(drawn) == 1 + 2 * 4


def test_a_step_size_is_measured_in_the_curvature_of_the_problem(tmp_path: Path) -> None:
    cells = made(tmp_path).trials("laptop")
    rate = {(c.row, c.column): c.cell.method_settings["inner_lr"] for c in cells}
    for k in range(1, 5):
        here, there = rate[f"unrolled#{k}", "one"], rate[f"unrolled#{k}", "start"]
        assert here == pytest.approx(there / 3, rel=6e-3)  # three digits are kept
        assert 0.1 <= there <= 1.0


def test_trials_do_not_depend_on_their_number_or_on_the_others(tmp_path: Path) -> None:
    arena = made(tmp_path)
    few, many = arena.trials("smoke"), arena.trials("laptop")
    keys = {(c.row, c.column, c.cell.seed): c.cell.key for c in many}
    assert all(keys[c.row, c.column, c.cell.seed] == c.cell.key for c in few)
    alone = made(tmp_path, FILE.replace('id = "unrolled"', 'id = "other"'))
    both = {c.row: c.cell.key for c in alone.trials("smoke") if c.row.startswith("implicit")}
    assert both == {c.row: c.cell.key for c in few if c.row.startswith("implicit")}


def test_a_method_under_another_name_has_the_same_trials(tmp_path: Path) -> None:
    other = made(tmp_path, FILE.replace('id = "unrolled"', 'id = "renamed"')).trials("laptop")
    names = {c.row: c.cell.key for c in made(tmp_path).trials("laptop")}
    renamed = {c.row: c.cell.key for c in other if c.row.startswith("renamed")}
    assert len(renamed) > 2
    assert all(names[row.replace("renamed", "unrolled")] == key for row, key in renamed.items())


def test_finals_play_the_chosen_trial_and_the_settings_as_shipped(tmp_path: Path) -> None:
    arena = made(tmp_path)
    chosen = {("unrolled", "one"): 2, ("unrolled", "start"): 0, ("implicit", "one"): 1,
              ("fixed", "one"): 0}  # fmt: skip
    finals = arena.finals("laptop", chosen)
    by_row = {(c.row, c.column): c.cell for c in finals if c.cell.seed == 1}
    trials = {(c.row, c.column): c.cell for c in arena.trials("laptop")}
    tuned, shipped = by_row["unrolled", "one"], by_row["unrolled as shipped", "one"]
    assert tuned.method_settings == trials["unrolled#2", "one"].method_settings
    assert shipped.method_settings == trials["unrolled#0", "one"].method_settings
    assert by_row["unrolled", "start"].key == by_row["unrolled as shipped", "start"].key
    assert {c.cell.seed for c in finals} == {0, 1, 2}


def test_a_method_may_take_part_in_some_problems_alone(tmp_path: Path) -> None:
    text = FILE.replace('id = "unrolled"\n', 'id = "unrolled"\nproblems = ["start"]\n')
    pairs = [(m.id, p.id) for m, p in made(tmp_path, text).pairs("laptop")]
    assert pairs == [("unrolled", "start"), ("implicit", "one"), ("fixed", "one")]


def test_a_stretched_budget_has_as_many_looks_at_a_larger_cost(tmp_path: Path) -> None:
    text = FILE.replace("seeds = [0, 1, 2]", "seeds = [0, 1, 2]\nstretch = 5.0")
    budget = made(tmp_path, text).trials("laptop")[0].cell.budget
    assert budget["cost"] == 2000.0 and budget["eval_every_cost"] == 500.0
    arena = made(tmp_path, text)
    final = arena.finals("laptop", {(m.id, p.id): 0 for m, p in arena.pairs("laptop")})[0].cell
    assert final.budget["cost"] == 2000.0


def test_theta_is_trained_anew_where_a_problem_says_so(tmp_path: Path) -> None:
    text = FILE.replace('id = "one"\n', 'id = "one"\nretrain = { steps = 50, lr = 0.1 }\n', 1)
    budgets = {c.column: c.cell.budget for c in made(tmp_path, text).trials("laptop")}
    anew = {k: v for k, v in budgets["one"].items() if k.startswith("retrain")}
    assert anew == {"retrain_steps": 50, "retrain_lr": 0.1, "retrain_solver": "sgd"}
    assert not [k for k in budgets["start"] if k.startswith("retrain")]
    with pytest.raises(SuiteError, match=r"retrain\.steps"):
        made(tmp_path, text.replace("steps = 50", "steps = 0"))
    with pytest.raises(UnknownName, match="solver 'adamm'; near: adam"):
        made(tmp_path, text.replace("lr = 0.1", 'lr = 0.1, solver = "adamm"')).trials("laptop")


def test_looks_are_charged_unless_the_budget_says_no(tmp_path: Path) -> None:
    assert {c.cell.budget["charge_looks"] for c in made(tmp_path).trials("laptop")} == {True}
    text = FILE.replace("trials = 5", "trials = 5\ncharge_looks = false")
    free = made(tmp_path, text)
    assert not any("charge_looks" in c.cell.budget for c in free.trials("laptop"))
    assert {c.cell.budget["charge_looks"] for c in free.trials("smoke")} == {True}


def test_scores_run_from_no_learning_to_the_bound(tmp_path: Path) -> None:
    problem = made(tmp_path).problems[0]
    assert [problem.score(x) for x in (2.0, 1.0, 3.0)] == [0.0, 1.0, -1.0]
    assert problem.target == pytest.approx(1.2) and problem.score(1.2) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("seeds = [0, 1, 2]", "seeds = [0, 101]", "seed 101 is tuned on and plays in the finals"),
        ('id = "start"', 'id = "one"', "two problems are called 'one'"),
        (
            'id = "implicit"',
            'id = "implicit"\nproblems = ["stat"]',
            "method implicit: no problem 'stat'; near: start",
        ),
        ('id = "implicit"', 'id = "a#b"', "a method cannot be called 'a#b'"),
        ("bound = 1.0\ncap = 400.0\nlooks", "bound = 2.0\ncap = 400.0\nlooks", "are both 2"),
        ('problems = ["one"]', 'problems = ["won"]', "no problem 'won'; near: one"),
        ('"method.inverse"', '"inverse"', "space 'inverse' is not task., method. or solver.NAME"),
        ("low = 0.1, high = 1.0", "low = 1.0, high = 0.1", "low = 1.0 is to be below high = 0.1"),
        ("low = 0.1, high = 1.0", "low = 0.0, high = 1.0", "cannot begin at 0.0"),
        ('choices = ["neumann", "cg"]', "low = 1.0", "low and high, or choices"),
        ('track = "B"', 'track = "D"', "problem start: no track 'D'; known: A, B, C"),
        ('title = "Two problems"', "", "small.toml: title is missing"),
        ("fixed = 2.0", "fixxed = 2.0", "problem one: no setting called 'fixxed'; near: fixed"),
        ("fixed = 2.0\n", "", "problem one: fixed is missing"),
        ("cap = 400.0", "cap = true", "problem one: cap cannot be True: input should be a valid"),
        ('kind = "arena"', 'kind = "arean"', "no kind 'arean'; near: arena"),
        ('"best_valid"', '"best_vald"', "problem one: no select 'best_vald'; near: best_valid"),
        ("[[methods]]", "[[metods]]", "no setting called 'metods'; near: methods"),
        ("trials = 3", "trails = 3", "budgets.smoke: no setting called 'trails'; near: trials"),
        ("high = 20", "hgh = 20", "no setting called 'hgh'; near: high; known: choices, high, log"),
        (
            '= { choices = ["neumann", "cg"] }',
            "= 3",
            "method implicit: space.method.inverse cannot "
            "be 3: give a table, which may have low, high, log, whole, per_smoothness, choices",
        ),
        ("high = 20", "high = 20.5", "whole numbers are drawn between whole numbers, not 20.5"),
        (
            "set.method =",
            "set.metod =",
            "method unrolled: set: no group of settings 'metod'; near:",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, old: str, new: str, why: str) -> None:
    assert old in FILE
    with pytest.raises(SuiteError) as error:
        made(tmp_path, FILE.replace(old, new))
    assert why in str(error.value)


@pytest.mark.parametrize("charged", ["", "charge_looks = false\n"])
@pytest.mark.parametrize("lacks", PRICED)
def test_a_count_without_a_price_is_refused_before_anybody_plays(
    tmp_path: Path, lacks: str, charged: str
) -> None:
    """Whatever is charged, and whichever methods play: the next one may take it."""
    text = FILE.replace("trials = 5\n", f"trials = 5\n{charged}")
    text = re.sub(rf"{lacks} = [\d.]+, |, {lacks} = [\d.]+", "", text, count=1)
    without = made(tmp_path, text)  # it can be read: its prices are still to be measured
    why = rf"arena small, problem one: prices lack {lacks}, .*calibrate FILE"
    for refused in (lambda: without.trials("laptop"), lambda: without.finals("smoke", CHOSEN)):
        with pytest.raises(SuiteError, match=why):
            refused()
    none = made(tmp_path, re.sub(r"prices = .*\n", "", FILE, count=1))
    with pytest.raises(SuiteError, match="problem one: prices lack inner_gradients and function_"):
        none.trials("laptop")


def test_what_a_task_does_not_have_needs_no_price(tmp_path: Path) -> None:
    def of(task: str, text: str = "") -> list[str]:
        task = f'task = "{task}"\n{text}select = "best_valid"'
        old = 'task = "quadratic"\nset.task = { dim = 2 }'
        new = FILE.replace(old, task).replace('smoothness = 3.0\nselect = "best_valid"', "")
        problem = made(tmp_path, re.sub(r"prices = .*\n", "", new, count=1)).problems[0]
        cls: Any = tasks.get(problem.task)
        return problem.unpriced(cls(**problem.set.get("task", {})).offers)

    assert of("quadratic") == list(PRICED)
    assert of("bilinear") == ["inner_gradients", "outer_gradients", "function_evaluations"]


def test_a_setting_that_a_method_does_not_have_is_named_with_its_place(tmp_path: Path) -> None:
    arena = made(tmp_path, FILE.replace('"method.inverse"', '"method.invers"'))
    with pytest.raises(UnknownName, match="near: inverse") as error:
        arena.trials("smoke")
    assert "method implicit, problem one, trial 1" in " ".join(error.value.__notes__)
    arena = made(tmp_path, FILE.replace('["neumann", "cg"]', '["newton"]'))
    with pytest.raises(SettingError, match="newton"):
        arena.trials("smoke")
    with pytest.raises(UnknownName, match="near: laptop"):
        arena.trials("laptob")


NUMBERS = st.floats(1e-6, 1e6)


@given(st.data())
def test_a_drawn_value_is_within_its_range(data: Any) -> None:
    low, high = sorted(data.draw(st.tuples(NUMBERS, NUMBERS).filter(lambda x: x[0] != x[1])))
    log, u = data.draw(st.booleans()), data.draw(st.floats(0, 1, exclude_max=True))
    x = Range(low, high, log=log).at(u, 1.0)
    assert low * (1 - 6e-3) <= x <= high * (1 + 6e-3)
    assert float(f"{x:.3g}") == x


@given(
    st.integers(1, 50), st.integers(1, 50), st.booleans(), st.floats(0, 1, exclude_max=True)
)  # fmt: skip
def test_whole_numbers_are_whole_and_all_can_be_drawn(low, more, log, u) -> None:
    range_ = Range(low, low + more, log=log, whole=True)
    x = range_.at(u, 7.0)
    assert isinstance(x, int) and low <= x <= low + more
    assert (range_.at(0.0, 1.0), range_.at(1 - 1e-12, 1.0)) == (low, low + more)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"choices": [1, 2], "log": True}, "choices are taken as they are: log is for low and"),
        ({"choices": [1, 2], "whole": True}, "whole is for low and high"),
        ({"choices": [0.1], "per_smoothness": True}, "per_smoothness is for low and high"),
        ({"low": 1, "high": 9, "whole": True, "per_smoothness": True}, "divided by L is none"),
        ({"low": 2.5, "high": 9, "whole": True, "log": True}, "whole numbers, not 2.5"),
        ({"low": 1, "high": 9.5, "whole": True}, "whole numbers, not 9.5"),
    ],
)
def test_what_a_range_would_not_look_at_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Range(**given)


@pytest.mark.parametrize("name", catalogue.arena_names())
def test_every_trial_of_a_built_in_arena_has_settings_that_are_allowed(name: str) -> None:
    """A space may reach where two settings exclude each other; found before anything is run."""
    whole = arenas.load(name)
    for budget, rules in whole.budgets.items():
        once = replace(rules, tuning_seeds=[100], seeds=[0])
        one = replace(whole, budgets={budget: once})
        assert one.trials(budget)
        assert one.finals(budget, {(m.id, p.id): 0 for m, p in one.pairs(budget)})
