"""The table of what problems have to give, from a small arena that is run here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from metabench.api.arena import tournament
from metabench.suites.arena import definition as suites

sys.path.insert(0, str(Path(__file__).parents[3]))  # benchmarks/ is no package that is installed
from benchmarks.studies import arena_calibration as calibration

FILE = """
kind = "arena"
title = "Two quadratics"

[budgets.calibration]
trials = 2
tuning_seeds = [100]
seeds = [0, 1]

[[problems]]
id = "near"
track = "A"
task = "quadratic"
fixed = 0.0
bound = -1.0
cap = 600.0
looks = 3
select = "best_valid"

[problems.prices]
inner_gradients = 1.0
outer_gradients = 1.0
hvps = 1.0
mixed_products = 1.0
function_evaluations = 0.5

[[methods]]
id = "unlearned"
method = "fixed"
tracks = ["A"]
set.budget = { outer_steps = 0 }
set.method = { inner_steps = 50 }

[[methods]]
id = "unrolled"
method = "bilevel"
tracks = ["A"]
set.method = { inner_steps = 10, outer_lr = 0.03 }
space."method.outer_lr" = { low = 0.01, high = 0.1, log = true }
"""


def test_headroom_is_the_gap_in_widths_of_the_wider_interval() -> None:
    assert calibration.headroom(1.0, 4.0, [0.1, 0.3]) == pytest.approx(5.0)
    assert calibration.headroom(4.0, 1.0, [0.5, 0.0]) == pytest.approx(-3.0)
    assert calibration.headroom(1.0, 4.0, [0.0, 0.0]) is None


def test_the_page_says_what_was_lost_and_who_is_below_the_headroom() -> None:
    row = calibration.Row(
        "wide", "loss", "min", 10, 2.0, 0.1, "ift", 1.0, 0.02, 0.9, 0.01, 0, 55.0, 5.5, 1.0
    )
    narrow = replace(row, problem="narrow", headroom=4.99, of_the_wider=4.99, lost=5)
    same = replace(row, problem="same", headroom=None, of_the_wider=None)
    page = calibration.page([row, narrow, same], dict.fromkeys(("wide", "narrow", "same"), ""))
    lines = {x.split()[1]: x for x in page.splitlines() if x.startswith("| ")}
    assert "| 5 of 20 |" in lines["narrow"] and "| 0 of 20 |" in lines["wide"]
    assert "Below that: narrow." in page
    assert "No problem is below that." in calibration.page([row], {"wide": ""})


def test_problems_become_a_table(tmp_path, capsys) -> None:
    path, store = tmp_path / "small.toml", str(tmp_path / "runs")
    path.write_text(FILE)
    asked = [str(path), "--budget", "calibration", "--store", store, "--out", str(tmp_path / "out")]
    assert calibration.main(asked) == 1
    assert "3 trials are not done" in capsys.readouterr().err
    tournament.run(path, budget="calibration", store=store)
    assert calibration.main(asked) == 0
    (row,) = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert row["problem"] == "near" and row["method"] == "unrolled" and row["goal"] == "min"
    assert row["fixed"] > 0.002 and row["best"] < row["fixed"] / 4
    assert row["long"] < row["best"] and row["lost"] == 0 and row["seeds"] == 10
    assert row["headroom"] is None  # the same at every seed
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "calibration.md").read_text() and "no spread" in printed
    before = {f: f.stat().st_mtime_ns for f in Path(store).rglob("record.json")}
    assert before and calibration.main(asked) == 0
    assert before == {f: f.stat().st_mtime_ns for f in Path(store).rglob("record.json")}


def test_who_is_best_is_said_by_the_trials_where_no_final_is_there(tmp_path) -> None:
    path, store = tmp_path / "small.toml", str(tmp_path / "runs")
    path.write_text(FILE)
    plan = tournament.plan(path, budget="calibration", store=store)
    tournament.play(plan.trials, tournament.open_store(store), 1, None, None)
    plan = tournament.plan(path, budget="calibration", store=store)
    assert plan.finals and calibration.leaders(plan) == {"near": ("unlearned", "unrolled")}


def test_the_candidates_that_were_left_out_can_be_planned() -> None:
    arena = suites.load(calibration.HERE / "arena_candidates.toml")
    trials = arena.trials("look")
    assert {c.column for c in trials} == {p.id for p in arena.problems}
    without = {c.column for c in trials if c.row.split("#")[0] in calibration.WITHOUT}
    assert without == {p.id for p in arena.problems}
