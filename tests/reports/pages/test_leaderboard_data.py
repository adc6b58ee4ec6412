"""What the page is told of an arena: records once, scores to be had from it, nobody's machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import arenas_by_formula as arenas
import pytest

from metabench.api.arena import tournament
from metabench.core.capabilities import CAPABILITIES
from metabench.core.cell import canonical
from metabench.core.costs import equivalents
from metabench.core.errors import MetabenchError
from metabench.reports.pages.leaderboard_data import page_data
from metabench.store.store import Store


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[tournament.Plan, Store]:
    folder = tmp_path_factory.mktemp("arena")
    path, store = folder / "small.toml", Store(folder / "runs")
    path.write_text(arenas.text())
    return arenas.play(path, store), store


def data_of(plan: tournament.Plan, store: Store) -> dict:
    curves = {p.record.key: store.curve(p.record) for p in plan.finals if p.record}
    return page_data(plan.arena, "smoke", plan.trials, plan.finals, plan.chosen, curves)


@pytest.fixture(scope="module")
def data(played: tuple[tournament.Plan, Store]) -> dict:
    return data_of(*played)


def test_every_final_is_there_once_with_its_test_metric(played, data: dict) -> None:
    plan, _ = played
    kept = {p.record.key: p.record for p in plan.finals if p.record}
    assert sorted(r["key"] for r in data["records"]) == sorted(kept)
    for found in data["records"]:
        record = kept[found["key"]]
        want = {split: {m: e.mean for m, e in of.items()} for split, of in record.metrics.items()}
        got = {s: {m: e["mean"] for m, e in of.items()} for s, of in found["metrics"].items()}
        assert (got, found["status"], found["reason"]) == (want, record.status, record.reason)


def test_a_row_names_its_records_in_the_order_of_the_seeds(played, data: dict) -> None:
    plan, _ = played
    entries = {e["id"]: e for e in data["entries"]}
    assert {m: sorted(e["pairs"]) for m, e in entries.items()} == {
        **{m: sorted(arenas.PROBLEMS) for m in ("bilevel", "onestep", "implicit")},
        "soba": ["two"],  # its theta is carried, which no other problem offers
    }
    for p in plan.finals:
        if p.record is None:
            continue
        method, _, shipped = p.row.partition(" as ")
        pair = entries[method]["pairs"][p.column]
        assert pair["chosen"] == plan.chosen[method, p.column]
        of = [data["records"][i] for i in pair["shipped" if shipped else "tuned"]]
        assert [r["cell"]["seed"] for r in of] == [0, 1, 2]
        assert p.record.key in [r["key"] for r in of]


def test_trials_have_the_settings_that_were_drawn_and_what_selects(played, data: dict) -> None:
    plan, _ = played
    (entry,) = [e for e in data["entries"] if e["id"] == "implicit"]
    cells = [p for p in plan.trials if p.column == "ridge6" and p.row.startswith("implicit#")]
    trials = entry["pairs"]["ridge6"]["trials"]
    assert [t["number"] for t in trials] == [0, 1, 2]
    assert [t["settings"]["method.outer_lr"] for t in trials] == [
        p.cell.method_settings["outer_lr"] for p in cells if p.cell.seed == 100
    ]
    values = [p.record.metrics["selection"]["loss"].mean for p in cells if p.record]
    assert [v for t in trials for v in t["values"]] == values and len(values) == 6


def test_a_problem_says_what_a_record_of_it_has(played, data: dict) -> None:
    plan, _ = played
    problems = {p["id"]: p for p in data["problems"]}
    for p in plan.finals:
        assert problems[p.column]["budget"] == p.cell.budget
        assert problems[p.column]["settings"] == p.cell.task_settings
    assert [p["split"] for p in data["problems"]] == ["valid", "valid", "selection", "valid"]
    assert [p["target"] for p in data["problems"]] == [pytest.approx(0.8)] * 4


def test_who_is_refused_is_told_cause_by_cause(data: dict) -> None:
    entries = {e["id"]: e for e in data["entries"]}
    assert {m: e["refused"] for m, e in entries.items() if m != "soba"} == {
        m: {} for m in ("bilevel", "onestep", "implicit")
    }
    cause = f"needs {CAPABILITIES['carried']}, which the task does not offer"
    assert entries["soba"]["refused"] == {p: [cause] for p in ("dim2", "dim5", "ridge6")}
    assert data["absent"] == []


def test_who_plays_nowhere_is_absent_with_the_reasons(tmp_path: Path) -> None:
    path, store = tmp_path / "small.toml", Store(tmp_path / "runs")
    one = {"bilevel": arenas.METHODS["bilevel"], "far": ("Far", "maml")}
    path.write_text(arenas.text(one))
    data = data_of(arenas.play(path, store), store)
    assert [e["id"] for e in data["entries"]] == ["bilevel"]
    (absent,) = data["absent"]
    assert (absent["id"], absent["label"]) == ("far", "Far")
    assert sorted(absent["refused"]) == sorted(arenas.PROBLEMS)


def test_the_second_readout_is_said_of_the_problems_that_have_it(data: dict) -> None:
    assert {p["id"] for p in data["problems"] if p["retrained"]} == set(arenas.RETRAINED)


def test_curves_are_in_counted_cost(played, data: dict) -> None:
    plan, store = played
    record = next(p.record for p in plan.finals if p.record and p.column == "ridge6")
    curve = store.curve(record)
    (found,) = [r["curve"] for r in data["records"] if r["key"] == record.key]
    prices = plan.arena.problems[2].prices
    names = ("inner_gradients", "hvps", "outer_gradients")
    want = [equivalents({n: curve[f"cost/{n}"][i] or 0 for n in names}, prices) for i in range(7)]
    assert found["cost"] == pytest.approx(want) and want[-1] == 36 + 0.9 * 18 + 0.5 * 12
    assert found["value"] == pytest.approx(curve["selection/loss"], rel=1e-5)
    assert found["step"] == curve["step"]


def test_nothing_names_a_machine_and_all_is_json(data: dict) -> None:
    text = canonical(data)  # raises for NaN
    assert json.loads(text)["arena"]["seeds"] == [0, 1, 2]
    assert "elsewhere" not in text and '"cores":2' in text
    assert len(data["environments"]) == 2  # with and without one


def test_finals_that_are_missing_are_named(played) -> None:
    plan, store = played
    gone = [dataclasses.replace(p, record=None, state="open") for p in plan.finals[:1]]
    with pytest.raises(MetabenchError, match=r"bilevel/dim2 seed 0: not run yet; run metabench"):
        data_of(dataclasses.replace(plan, finals=[*gone, *plan.finals[1:]]), store)
    with pytest.raises(MetabenchError, match="all are missing"):
        data_of(dataclasses.replace(plan, finals=[]), store)


def test_settings_that_methods_have_of_the_task_are_no_part_of_the_problem(tmp_path: Path) -> None:
    path, store = tmp_path / "own.toml", Store(tmp_path / "runs")
    own = arenas.text({"bilevel": arenas.METHODS["bilevel"]})
    path.write_text(own.replace('space."', 'set.task = { carried = false }\nspace."'))
    data = data_of(arenas.play(path, store), store)
    assert [p["free"] for p in data["problems"]] == [["carried"]] * 4
