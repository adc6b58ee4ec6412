from __future__ import annotations

import copy
import datetime
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.core.catalogue import suite_names
from metabench.core.errors import SettingError, SuiteError, UnknownName
from metabench.suites import loading as suites
from metabench.suites.loading import from_dict
from metabench.suites.overrides import parse_override
from metabench.suites.schema import Tuned
from metabench.suites.suite import merge

TEXT = """
title = "Small"
metric = "loss"
goal = "min"

[budgets.smoke]
seeds = [0]
outer_steps = 2
[budgets.laptop]
seeds = [0, 1]
outer_steps = 20
set.method.inner_lr = 0.3
[budgets.paper]
seeds = [0, 1, 2]
outer_steps = 200

[[columns]]
id = "one"
task = "quadratic"
[[columns]]
id = "four"
task = "quadratic"
set.task = { dim = 4 }
set.budget = { eval_every = 7 }

[[rows]]
id = "reverse"
method = "bilevel"
chosen = "own"
set.method = { inner_steps = 3 }
budgets.laptop.method = { inner_steps = 4 }
columns.four.method = { inner_steps = 6 }
[[rows]]
id = "heavy"
method = "bilevel"
chosen = "own"
solver = "momentum"
set.solver = { momentum = 0.5 }
[[rows]]
id = "none"
method = "fixed"
chosen = "own"
skip = ["four"]
skip_reason = "no sense here"

[[paper]]
row = "reverse"
column = "one"
value = 0.0
source = "closed form"
label = "derived"
"""
DATA = tomllib.loads(TEXT)
HERE = Path("small.toml")


def changed(**parts: Any) -> dict[str, Any]:
    """The suite's data with dotted parts replaced: ``rows__0__method``."""
    data = copy.deepcopy(DATA)
    for place, value in parts.items():
        *path, last = [int(p) if p.isdigit() else p for p in place.split("__")]
        at: Any = data
        for part in path:
            at = at[part]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return data


def cell_of(row: str, column: str, budget: str = "smoke", *overrides: str) -> Any:
    found = from_dict(DATA, HERE).cells(budget, [parse_override(o) for o in overrides])
    return next(c.cell for c in found if (c.row, c.column) == (row, column))


def test_cells_come_in_table_order() -> None:
    cells = from_dict(DATA, HERE).cells("laptop")
    assert [(c.row, c.column, c.cell.seed) for c in cells][:5] == [
        ("reverse", "one", 0),
        ("reverse", "one", 1),
        ("reverse", "four", 0),
        ("reverse", "four", 1),
        ("heavy", "one", 0),
    ]
    assert len(cells) == 3 * 2 * 2
    assert len(from_dict(DATA, HERE).cells("laptop", seeds=[7])) == 6


def test_later_settings_win() -> None:
    assert cell_of("reverse", "one").method_settings["inner_steps"] == 3
    assert cell_of("reverse", "one", "laptop").method_settings["inner_steps"] == 4
    assert cell_of("reverse", "four", "laptop").method_settings["inner_steps"] == 6
    typed = cell_of("reverse", "four", "laptop", "method.inner_steps=9")
    assert typed.method_settings["inner_steps"] == 9
    assert cell_of("reverse", "one", "laptop").method_settings["inner_lr"] == 0.3
    assert cell_of("reverse", "four").budget["eval_every"] == 7
    assert cell_of("heavy", "one").solver_settings["momentum"] == 0.5
    assert cell_of("heavy", "four").task_settings["dim"] == 4


def test_overrides_can_be_for_one_row_method_column_or_task() -> None:
    for scope, rows in {
        "reverse": {"reverse"},
        "bilevel": {"reverse", "heavy"},
        "method": {"reverse", "heavy", "none"},
    }.items():
        override = f"{scope}.inner_lr=0.123"
        for row in ("reverse", "heavy", "none"):
            value = cell_of(row, "one", "smoke", override).method_settings["inner_lr"]
            assert (value == 0.123) == (row in rows), (scope, row)
    assert cell_of("reverse", "one", "smoke", "one.a=3.5").task_settings["a"] == 3.5
    assert cell_of("reverse", "four", "smoke", "one.a=3.5").task_settings["a"] == 2.0
    assert cell_of("reverse", "four", "smoke", "quadratic.a=3.5").task_settings["a"] == 3.5
    assert cell_of("none", "one", "smoke", "budget.outer_steps=9").budget["outer_steps"] == 9


def test_the_name_of_a_row_or_column_means_it_alone_though_it_is_its_methods_or_tasks() -> None:
    suite = from_dict(changed(rows__0__id="bilevel", columns__0__id="quadratic", paper=None), HERE)
    for scope, group, name in (("bilevel", "method", "inner_lr"), ("quadratic", "task", "a")):
        cells = suite.cells("smoke", [parse_override(f"{scope}.{name}=0.123")])
        set_ = [c for c in cells if getattr(c.cell, f"{group}_settings")[name] == 0.123]
        assert set_ == [c for c in cells if scope in (c.row, c.column)]
        assert 0 < len(set_) < len(cells)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.inner_lrr=1", "near: inner_lr"),
        ("method.truncate=1", "to set it for one row, write ROW.truncate"),
        ("revers.inner_lr=1", "group of settings 'revers'; near: reverse"),
        ("task.dims=1", "near: dim"),
        ("budget.outer_step=1", "near: outer_steps"),
        ("solver.momentun=1", "no setting of solver"),
    ],
)
def test_unknown_settings_are_refused(override: str, says: str) -> None:
    with pytest.raises(UnknownName) as error:
        from_dict(DATA, HERE).cells("smoke", [parse_override(override)])
    assert says in str(error.value)


def test_an_override_can_reach_one_rows_solver_and_any_group_of_a_row_or_column() -> None:
    cell = cell_of("heavy", "one", "smoke", "heavy.solver.momentum=0.7")
    assert cell.solver_settings["momentum"] == 0.7
    assert cell_of("reverse", "one", "smoke", "heavy.solver.momentum=0.7").solver_settings == {}
    assert cell_of("reverse", "one", "smoke", "one.budget.eval_every=3").budget["eval_every"] == 3
    assert cell_of("reverse", "four", "smoke", "one.budget.eval_every=3").budget["eval_every"] == 7


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("solver.momentum=0.7", "to set it for one row, write ROW.solver.momentum=..."),
        ("task.dims=0.7", "to set it for one column, write COLUMN.dims=..."),
        ("heavy.solver.momentun=0.7", "near: momentum"),
        ("reverse.solver.momentum=0.7", "solver sgd (row reverse)"),
        ("heavy.solvr.momentum=0.7", "group of settings 'solvr'; near: solver"),
    ],
)
def test_what_a_solver_does_not_have_is_refused(override: str, says: str) -> None:
    with pytest.raises(UnknownName) as error:
        from_dict(DATA, HERE).cells("smoke", [parse_override(override)])
    assert says in str(error.value)


def test_what_no_task_measures_is_refused() -> None:
    for change, says in (
        ({"metric": "los"}, "no metric of task quadratic called 'los'; near: loss"),
        ({"floor": "pixels"}, "no metric of task quadratic called 'pixels'"),
        ({"evaluation": "tests"}, "no evaluation of task quadratic called 'tests'; near: test"),
    ):
        suite = from_dict({**DATA, **change}, HERE)
        with pytest.raises(UnknownName) as error:
            suite.check_measured(suite.cells("smoke"))
        assert says in str(error.value) and "suite small, row reverse, column one" in str(
            error.value
        )
    for name in ("test", "valid"):
        suite = from_dict({**DATA, "evaluation": name}, HERE)
        suite.check_measured(suite.cells("smoke"))


def test_an_evaluation_that_no_cell_has_is_refused() -> None:
    """What a name ends in is the harness's: steps of training, steps asked for, a readout."""
    budget = {**DATA["budgets"]["smoke"], "test_after": [1, 7]}
    data = {**DATA, "budgets": {**DATA["budgets"], "smoke": budget}}
    for name in ("test@1_steps", "test@7_steps", "test"):
        suite = from_dict({**data, "evaluation": name}, HERE)
        suite.check_measured(suite.cells("smoke"))
    for name, says in (
        ("test@8_steps", "no evaluation called 'test@8_steps'; near: test@7_steps"),
        ("test@retrained", "known: test, test@1_steps, test@7_steps; suite small"),
        ("tests@1_steps", "no evaluation of task quadratic called 'tests'; near: test"),
    ):
        suite = from_dict({**data, "evaluation": name}, HERE)
        with pytest.raises(UnknownName) as error:
            suite.check_measured(suite.cells("smoke"))
        assert says in str(error.value)
    anew = {**budget, "retrain_steps": 5, "retrain_lr": 0.1}
    data["budgets"]["smoke"] = anew
    suite = from_dict({**data, "evaluation": "test@retrained"}, HERE)
    suite.check_measured(suite.cells("smoke"))


def test_what_a_search_reports_can_be_a_metric() -> None:
    built_in = suites.load("autorag-squad")
    for metric in ("recall", "mean_regret", "simple_regret"):
        suite = replace(built_in, metric=metric)
        suite.check_measured(suite.cells("smoke"))
    suite = replace(built_in, metric="recal")
    with pytest.raises(UnknownName, match="called 'recal'; near: recall"):
        suite.check_measured(suite.cells("smoke"))


def test_seeds_are_whole_numbers_each_once_and_at_least_one() -> None:
    suite = from_dict(DATA, HERE)
    assert len(suite.cells("smoke", seeds=[3, 3])) == len(suite.cells("smoke", seeds=[3]))
    with pytest.raises(SettingError, match="at least one seed"):
        suite.cells("smoke", seeds=[])
    with pytest.raises(SettingError, match=r"seed cannot be 0\.5: write a whole number"):
        suite.cells("smoke", seeds=[0.5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "group", ["set__method__inner_steps", "columns__four__method__inner_steps"]
)
def test_a_number_in_quotes_is_no_number(group: str) -> None:
    suite = from_dict(changed(**{f"rows__0__{group}": "2"}), HERE)
    with pytest.raises(SettingError, match=r"inner_steps cannot be '2': .* valid integer"):
        suite.cells("smoke")
    suite = from_dict(changed(budgets__smoke__outer_steps="2"), HERE)
    with pytest.raises(SettingError, match="budget: setting outer_steps cannot be '2'"):
        suite.cells("smoke")


def test_a_bad_value_names_the_place() -> None:
    with pytest.raises(SettingError, match="inner_lr cannot be -1") as error:
        from_dict(DATA, HERE).cells("smoke", [parse_override("method.inner_lr=-1")])
    assert error.value.__notes__ == ["suite small, row reverse, column one"]


@pytest.mark.parametrize("text", ["", "a", "a=1", ".b=1", "a.=1", "a.b", "=", ".=1"])
def test_overrides_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SettingError, match=r"write GROUP\.NAME=VALUE"):
        parse_override(text)


words = st.text("abcdefgh_", min_size=1)


@given(words, words, st.integers() | st.booleans() | st.floats(allow_nan=False))
def test_overrides_are_read_back(scope: str, name: str, value: Any) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    override = parse_override(f" {scope}.{name} = {text} ")
    assert (override.scope, override.name, override.value) == (scope, name, value)


groups = st.dictionaries(
    st.sampled_from(["task", "method"]),
    st.dictionaries(st.sampled_from("xyz"), st.integers(), max_size=3),
    max_size=2,
)


@given(st.lists(groups, max_size=4))
def test_merging_keeps_the_last_of_each(tables: list[dict[str, dict[str, int]]]) -> None:
    before = copy.deepcopy(tables)
    merged = merge(tables)
    assert tables == before
    expected = {
        (group, name): value
        for table in tables
        for group, values in table.items()
        for name, value in values.items()
    }
    assert {(g, n): v for g, values in merged.items() for n, v in values.items()} == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows__1__id": "reverse"}, "two rows are called 'reverse'"),
        ({"columns__1__id": "one"}, "two columns are called 'one'"),
        ({"budgets__paper": None}, "no budget 'paper'"),
        ({"paper__0__row": "nobody"}, "a paper number names row 'nobody'"),
        ({"paper__0__column": "nowhere"}, "a paper number names column 'nowhere'"),
        ({"paper__0__pm": 0.5}, "of what? give pm_meaning"),
        ({"rows__2__skip": ["five"]}, "names column 'five'"),
        ({"rows__2__skip_reason": ""}, "without a skip_reason"),
        ({"rows__0__budgets": {"huge": {}}}, "names budget 'huge'"),
        ({"titel": "x"}, "no setting called 'titel'; near: title"),
        ({"rows__0__methd": "x"}, "row reverse: no setting called 'methd'; near: method"),
        ({"rows__0__method": None}, "row reverse: method is missing"),
        ({"metric": None}, "small.toml: metric is missing"),
        ({"goal": "best"}, "goal"),
        ({"rows": []}, "rows"),
        ({"budgets__smoke__seeds": []}, "seeds"),
        ({"budgets__smoke__outer_step": 1}, "outer_step"),
        (
            {"rows__0__set": {"methods": {}}},
            "row reverse: set: no group of settings 'methods'; near: method",
        ),
        ({"titel": "x", "title": None}, "near: title"),
        ({"budgets__smoke__outer_step": 1}, "near: outer_steps"),
        ({"budgets__smoke__limits": {"hvps": 9}}, "budgets.smoke: no setting called 'limits'"),
        ({"rows__0__metod": "x"}, "near: method"),
        ({"columns__0__labl": "x"}, "near: label"),
        ({"paper__0__sorce": "x"}, "near: source"),
        ({"paper__0__label": "reppo"}, "near: repo"),
        ({"paper__0__value": math.nan}, "value"),
        ({"budgets__smoke__seeds": [0, 1, 0]}, "a seed stands there twice"),
        ({"budgets": [{"seeds": [0]}]}, "budgets"),
        ({"rows__1__id": "method"}, "a row cannot be called 'method'"),
        ({"columns__1__id": ""}, "a column cannot be called ''"),
        ({"name": "../there"}, "a suite cannot be called '../there'"),
        ({"percent": "yes"}, "percent cannot be 'yes': input should be a valid boolean"),
        ({"logs": 1}, "logs cannot be 1: input should be a valid boolean"),
        (
            {"paper__0__value": "1"},
            "paper number 1: value cannot be '1': input should be a valid number",
        ),
        ({"title": datetime.date(2020, 1, 1)}, "title cannot be {'date': '2020-01-01'}: "),
    ],
)
def test_what_is_no_suite_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SuiteError) as error:
        from_dict(changed(**change), HERE)
    assert str(error.value).startswith("small.toml: ")
    assert says in str(error.value)


def test_load_reads_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    assert suites.load(path).name == "mine"
    path.write_text('kind = "arean"\n' + TEXT)
    with pytest.raises(SuiteError, match="no kind 'arean'; near: arena; known: arena; a suite has"):
        suites.load(path)
    path.write_text("title = ")
    with pytest.raises(SuiteError, match="not TOML"):
        suites.load(path)
    path.write_text("title = " + "[" * 5000)
    with pytest.raises(SuiteError, match="not TOML: nested too deeply"):
        suites.load(path)
    path.write_text("title = " + "1" * 5000)
    with pytest.raises(SuiteError, match="not TOML"):
        suites.load(path)
    path.write_text(TEXT, encoding="utf-8-sig")
    assert suites.load(path).name == "mine", "some editors begin a file with a byte order mark"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SuiteError, match="not TOML"):
        suites.load(str(path))
    with pytest.raises(SuiteError, match="no suite file"):
        suites.load(tmp_path / "none.toml")


def test_load_names_the_nearest_suite() -> None:
    with pytest.raises(UnknownName, match=r"no suite 'omniglt'; near: omniglot[;,] .*\.toml file"):
        suites.load("omniglt")
    with pytest.raises(UnknownName, match="no budget of suite 'small' called 'lapto'; near: lap"):
        from_dict(DATA, HERE).cells("lapto")


@pytest.mark.parametrize("name", suite_names())
@pytest.mark.parametrize("budget", suites.BUDGETS)
def test_built_in_suites_are_whole(name: str, budget: str) -> None:
    suite = suites.load(name)
    cells = suite.cells(budget)
    seeds = suite.budget(budget).seeds
    assert len(cells) == len(suite.rows) * len(suite.columns) * len(seeds)
    assert suite.title and suite.description
    from metabench.core.registry import tasks

    for column in suite.columns:
        task: Any = tasks.get(column.task)
        if task.metric == suite.metric:
            assert task.goal == suite.goal


@pytest.mark.parametrize("budget", suites.BUDGETS)
@pytest.mark.parametrize(("companion", "name"), [
    ("pbgd-hypercleaning-f1", "pbgd-hypercleaning"),
    ("ift-inverse-hessian-distance", "ift-inverse-hessian"),
    ("ift-overfit-validation-test", "ift-overfit-validation"),
    ("hypergradient-fidelity-direction", "hypergradient-fidelity"),
    ("autorag-squad-recall", "autorag-squad"),
    ("autorag-squad-simple", "autorag-squad"),
])  # fmt: skip
def test_suites_that_say_so_show_the_same_cells(companion: str, name: str, budget: str) -> None:
    one, two = (suites.load(n).cells(budget, seeds=[0]) for n in (companion, name))
    assert [c.cell.key for c in one] == [c.cell.key for c in two]


def test_what_differs_by_row_budget_and_column_wins_over_both() -> None:
    cells = {"laptop": {"four": {"method": {"inner_steps": 9}}}}
    suite = from_dict(changed(rows__0__cells=cells), HERE)

    def steps(budget: str) -> dict[str, int]:
        return {
            item.column: item.cell.method_settings["inner_steps"]
            for item in suite.cells(budget, seeds=[0])
            if item.row == "reverse"
        }

    assert steps("laptop") == {"one": 4, "four": 9}
    assert steps("paper") == {"one": 3, "four": 6}
    with pytest.raises(SuiteError, match="row reverse names column 'five'"):
        from_dict(changed(rows__0__cells={"laptop": {"five": {}}}), HERE)
    with pytest.raises(SuiteError, match="reverse names budget 'lap'"):
        from_dict(changed(rows__0__cells={"lap": {}}), HERE)


@pytest.mark.parametrize("seed", ["-1", "true", '"0"', "0.0"])
def test_seeds_are_numbers_from_0_on(seed: str) -> None:
    """As on the command line."""
    data = tomllib.loads(TEXT)
    data["budgets"]["smoke"]["seeds"] = tomllib.loads(f"v = [{seed}]")["v"]
    with pytest.raises(SuiteError, match=r"budgets\.smoke\.seeds\.0"):
        from_dict(data, HERE)


def test_costs_that_nothing_counts_are_refused_before_anything_runs() -> None:
    from_dict(changed(costs=["hvps", "derivatives", "peak_tensor_bytes"]), HERE)
    with pytest.raises(SuiteError, match="no cost 'hvp'; near: hvps"):
        from_dict(changed(costs=["hvp"]), HERE)


CLAIM = {"better": ["reverse"], "than": "heavy", "source": "A 2020"}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"better": ["revers"]}, "a claim: no row 'revers'; near: reverse"),
        ({"than": "hevy"}, "a claim: no row 'hevy'; near: heavy"),
        ({"columns": ["fore"]}, "a claim: no column 'fore'; near: four"),
        ({"than": "reverse"}, "a claim compares row 'reverse' with itself"),
        ({"better": []}, "claim 1: better .*at least 1"),
        ({"better": ["reverse", "reverse"]}, "a claim names 'reverse' twice"),
        ({"columns": ["four", "four"]}, "a claim names 'four' twice"),
        ({"source": ""}, "claim 1: source .*at least 1"),
        ({"or_equal": "no"}, "claim 1: or_equal .*boolean"),
        ({"or_eqal": True}, "or_eqal'; near: or_equal"),
    ],
)
def test_claims_name_rows_that_are_run(claim: dict[str, Any], message: str) -> None:
    from_dict(changed(claims=[CLAIM]), HERE)
    with pytest.raises(SuiteError, match=message):
        from_dict(changed(claims=[{**CLAIM, **claim}]), HERE)
    with pytest.raises(SuiteError, match="claims are tested by differences"):
        from_dict(changed(claims=[CLAIM], logs=True), HERE)


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        ({}, r"\[reach\] has level or within, one of the two"),
        ({"level": 1.0, "within": 0.1}, r"\[reach\] has level or within, one of the two"),
        ({"level": 1.0, "cost": "inner_gradient"}, "no cost 'inner_gradient'; near: inner_grad"),
        ({"within": 0}, "reach.within .*greater than 0"),
        ({"withn": 0.1}, "withn'; near: within"),
    ],
)
def test_a_level_to_reach_is_one_and_its_cost_is_counted(reach, message) -> None:
    from_dict(changed(reach={"metric": "loss", "within": 1e-3}), HERE)
    with pytest.raises(SuiteError, match=message):
        from_dict(changed(reach={"metric": "loss", **reach}), HERE)
    with pytest.raises(SuiteError, match=r"a claim has by = \"reach\", and the suite has no"):
        from_dict(changed(claims=[{**CLAIM, "by": "reach"}]), HERE)


def test_a_level_of_another_metric_says_which_is_better() -> None:
    """A table of psnr that inherits a level of the loss would maximise the loss."""
    table = changed(reach={"metric": "loss", "within": 0.05})
    from_dict(table, HERE)
    turned = {**table, "metric": "psnr", "goal": "max"}
    message = r"\[reach\] metric 'loss' is not the table's 'psnr': .*goal = \"min\" or goal ="
    with pytest.raises(SuiteError, match=message):
        from_dict(turned, HERE)
    said = from_dict({**turned, "reach": {**table["reach"], "goal": "min"}}, HERE)
    assert said.reach is not None and said.reach.goal == "min"


def test_a_suite_can_show_another_metric_of_the_same_cells(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TEXT)
    other = tmp_path / "other.toml"
    other.write_text('extends = "small"\ntitle = "Other"\nmetric = "residual"\npaper = []\n')
    one, two = suites.load(tmp_path / "small.toml"), suites.load(other)
    assert (two.name, two.title, two.metric, two.paper) == ("other", "Other", "residual", [])
    assert [c.cell.key for c in one.cells("laptop")] == [c.cell.key for c in two.cells("laptop")]
    first = one.columns[0].id
    other.write_text(f'extends = "small"\ncolumns = ["{first}"]\n')
    narrow = suites.load(other)
    assert [c.id for c in narrow.columns] == [first] and len(one.columns) > 1
    # What the other suite's curves are of, where cells are the same.
    assert [s.extended_metric for s in (one, two, narrow)] == ["", one.metric, one.metric]
    assert {c.cell.key for c in narrow.cells("laptop")} == {
        c.cell.key for c in one.cells("laptop") if c.column == first
    }
    assert {n.column for n in narrow.paper} <= {first}
    claims = "".join(
        f'[[claims]]\nbetter = ["reverse"]\nthan = "heavy"\nsource = "{name}"\ncolumns = {names}\n'
        for name, names in {"all": [], "one": ["one"], "both": ["one", "four"]}.items()
    )
    (tmp_path / "small.toml").write_text(TEXT + claims)
    other.write_text('extends = "small"\ncolumns = ["four"]\n')
    narrow = suites.load(other)
    assert [(c.source, c.columns) for c in narrow.claims] == [("all", []), ("both", ["four"])]
    inherited = 'extends = "small"\nmetric = "residual"\npaper = []\n'
    other.write_text(inherited)
    message = (
        r"claims of small are of its metric 'loss'; this suite's is 'residual': .*claims = \[\]"
    )
    with pytest.raises(SuiteError, match=message):
        suites.load(other)
    other.write_text(inherited + "claims = []\n")
    assert suites.load(other).claims == []
    (tmp_path / "small.toml").write_text(TEXT)
    other.write_text(f'extends = "small"\ncolumns = ["{first}x"]\n')
    with pytest.raises(SuiteError, match=f"no column '{first}x'; near: {first}"):
        suites.load(other)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "small.toml").write_text(TEXT)
    for missing in ("none", "other", "below/small", str(tmp_path / "below" / "small")):
        other.write_text(f'extends = "{missing}"\n')
        with pytest.raises(SuiteError, match=f"extends '{missing}': no whole suite"):
            suites.load(other)


TUNED = {"tuned": "validation loss", "trials": 4, "seeds": [0, 7]}


@pytest.mark.parametrize(
    ("chosen", "at"),
    [
        ("published", {"smoke": "published", "laptop": "published", "paper": "published"}),
        (
            {"laptop": TUNED, "paper": "published"},
            {"smoke": "own", "laptop": Tuned("validation loss", 4, [0, 7]), "paper": "published"},
        ),
        (
            {**TUNED, "trials": "3 to 5 a column", "seeds": "not recorded"},
            {"paper": Tuned("validation loss", "3 to 5 a column", "not recorded")},
        ),
    ],
)
def test_a_row_says_how_its_settings_were_chosen(chosen: Any, at: dict[str, Any]) -> None:
    row = from_dict(changed(rows__0__chosen=chosen), HERE).rows[0]
    assert {budget: row.how(budget) for budget in at} == at


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seeds": "0"}, "seeds = '0' has numbers as text; say seeds = [0]"),
        ({"seeds": "0 and 7, in the table"}, "has numbers as text; say seeds = [0, 7]"),
        ({"trials": "12"}, "trials = '12' is a number as text; say trials = 12"),
    ],
)
def test_numbers_that_are_known_are_no_text(given: dict[str, Any], says: str) -> None:
    for chosen in ({**TUNED, **given}, {"laptop": {**TUNED, **given}, "paper": "published"}):
        with pytest.raises(SuiteError, match="row reverse: chosen: ") as error:
            from_dict(changed(rows__0__chosen=chosen), HERE)
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"set": {"method": {"truncate": 5}}}, False),
        ({"set": {"task": {"dim": 3}}}, True),
        ({"columns": {"four": {"method": {"truncate": 5}}}}, False),
        ({"budgets": {"laptop": {"method": {"truncate": 5}}}}, False),
        ({"budgets": {"smoke": {"method": {"truncate": 5}}}}, True),
    ],
)
def test_a_row_that_sets_its_method_is_not_of_the_methods_defaults(
    change: dict[str, Any], right: bool
) -> None:
    row = {k: v for k, v in DATA["rows"][0].items() if k in ("id", "method")}
    data = changed(rows__0={**row, "chosen": "default", **change})
    if right:
        from_dict(data, HERE)
    else:
        with pytest.raises(
            SuiteError, match=r"row reverse: chosen is 'default', and the row sets truncate of"
        ):
            from_dict(data, HERE)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (None, "row 'reverse': chosen is missing; say"),
        ("publishd", "row 'reverse': chosen cannot be 'publishd'; say"),
        ("", "row 'reverse': chosen cannot be ''"),
        ({**TUNED, "seeds": []}, "row 'reverse': chosen cannot be {'tuned'"),
        ({**TUNED, "seeds": [-1]}, "row 'reverse': chosen cannot be {'tuned'"),
        ({**TUNED, "trials": 0}, "row 'reverse': chosen cannot be {'tuned'"),
        ({"tuned": "validation loss", "trials": 4}, "row 'reverse': chosen cannot be {'tuned'"),
        ({**TUNED, "trails": 4}, "row 'reverse': chosen cannot be {'tuned'"),
        ({"lap": "own"}, "row reverse: chosen: no budget 'lap'"),
        ({"laptop": "own"}, "row reverse: chosen says nothing of budget 'paper'"),
    ],
)
def test_a_row_that_does_not_say_it_is_refused_with_a_right_line(chosen: Any, says: str) -> None:
    with pytest.raises(SuiteError) as error:
        from_dict(changed(rows__0__chosen=chosen), HERE)
    assert says in str(error.value)
    if "nothing" not in says:
        line = str(error.value).rpartition("or chosen = ")[2].partition(";")[0]
        right = tomllib.loads(f"chosen = {line}")["chosen"]
        from_dict(changed(rows__0__chosen=right), HERE)
