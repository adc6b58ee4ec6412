"""What plans estimate by before a first run: the shipped table, and when it is used."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from metabench import api
from metabench.cli.printing.cells import print_plan
from metabench.core.cell import make_cell
from metabench.store.published import RECORDS, Published
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites import loading, published_costs
from metabench.suites.listing import listed_suites
from metabench.suites.published_costs import Place, PublishedSuite, Table, settings_key

RESULTS = Path(__file__).parents[2] / "results"
BUDGET = {"outer_steps": 10, "eval_every": 5, "valid_episodes": 1, "test_episodes": 7}


def cell_of(steps: int = 10, seed: int = 0, **method: float):
    budget = {**BUDGET, "outer_steps": steps}
    return make_cell("quadratic", "bilevel", seed=seed, set={"budget": budget, "method": method})


def table_of(cell, **cost: float) -> Table:
    place = Place("r", "c", settings_key(cell), 0, 10.0, cost)
    return Table("command", [cell.budget], {"s": PublishedSuite("a machine", 1, 9.0, [place])})


def test_another_budget_scales_training_by_steps_and_evaluation_by_episodes() -> None:
    table = table_of(cell_of(), seconds=20.0, evaluation_seconds=10.0)
    assert table.of(cell_of(seed=5)) == (30.0, "a machine")
    # 3 evaluations on the way and 7 test episodes are 10; with 20 steps 5 and 7.
    assert table.of(cell_of(20)) == (40.0 + 10.0 * 12 / 10, "a machine")
    assert table.of(cell_of(inner_lr=0.123)) is None  # other settings


def test_a_budget_in_counts_needs_the_counts() -> None:
    whole, half = (
        make_cell(
            "quadratic",
            "bilevel",
            set={"budget": {"inner_gradients": n, "eval_every": 5, "valid_episodes": 1}},
        )
        for n in (100, 50)
    )
    assert table_of(cell_of(), seconds=20.0, evaluation_seconds=0.0).of(half) is None
    known = table_of(whole, seconds=20.0, evaluation_seconds=0.0, inner_gradients=100.0)
    assert known.of(half) == (10.0, "a machine")


def test_what_ran_under_the_same_budget_is_taken_before_what_would_be_scaled() -> None:
    long, short = cell_of(10), cell_of(5)
    places = [
        Place("r", "c", settings_key(long), n, steps, {"seconds": s, "evaluation_seconds": 1.0})
        for n, (steps, s) in enumerate([(10.0, 20.0), (4.0, 7.0)])
    ]
    suites = {"s": PublishedSuite("a machine", 2, 9.0, places)}
    table = Table("command", [long.budget, short.budget], suites)
    assert table.of(short) == (8.0, "a machine")  # it ended at step 4 of 5, and took all the same
    assert table.of(long) == (21.0, "a machine")


def test_the_shipped_table_is_that_of_the_committed_records() -> None:
    table = published_costs.table()
    committed = {p.parent.parent.name for p in RESULTS.glob(f"*/laptop/{RECORDS}")}
    assert committed == set(table.suites), f"run: {table.command}"
    name = "cehpo-parabola"
    records = {r.key: r for r in Published(RESULTS / name / "laptop" / RECORDS).records()}
    suite = table.suites[name]
    groups: dict[tuple[str, str], list[Record]] = {}
    for item in loading.load(name).cells("laptop"):
        if item.cell.key in records:
            groups.setdefault((item.row, item.column), []).append(records[item.cell.key])
    assert {(p.row, p.column) for p in suite.places} == set(groups)
    planned = 0.0
    for place in suite.places:
        group = groups[place.row, place.column]
        for clock in ("seconds", "evaluation_seconds"):
            mean = statistics.fmean(r.cost[clock] for r in group)
            assert place.cost[clock] == pytest.approx(mean, rel=1e-3)
        found = table.of(group[0].cell)
        assert found is not None and found[1] == suite.machine and "cores" in suite.machine
        planned += found[0] * len(group)
    assert planned == pytest.approx(suite.seconds, rel=1e-3)  # a plan says what the list says
    listed = next(s for s in listed_suites() if s.name == name)
    assert (listed.cells, listed.seconds) == (suite.cells, suite.seconds)


def test_it_is_used_where_the_store_has_nothing_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel"])
    cell = suite.cells("smoke")[0].cell
    monkeypatch.setattr(
        published_costs, "table", lambda: table_of(cell, seconds=90.0, evaluation_seconds=0.0)
    )
    store = Store(tmp_path)
    before, other = api.plan(suite, budget="smoke", seeds=[0, 1], store=store)
    assert (before.published_seconds, before.published_on) == (90.0, "a machine")
    assert before.estimated_seconds is None
    console = Console(width=80, force_terminal=False)
    with console.capture() as told:
        print_plan(console, "title", [before, replace(other, published_seconds=None)])
    words = " ".join(told.get().split())
    assert "published: 1 min 30 s" in words and "1 of unknown cost" in words
    told_of = "1 of them about 1 min 30 s, one after another, on the machine of the published run"
    assert told_of in words
    api.run(suite, budget="smoke", store=store)
    (_, after) = api.plan(suite, budget="smoke", seeds=[0, 1], store=store)
    assert after.estimated_seconds is not None and after.published_seconds is None
