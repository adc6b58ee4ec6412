"""Two sides: which cells belong together, and what their differences show."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import t, ttest_rel

from metabench.analysis.side_by_side import Run, Side, View, pair_up, side_by_side
from metabench.core.cell import Cell
from metabench.store.record import Estimate, Record

VIEW = View("test", "loss", "min")


def run(
    value: float = 0.5,
    seed: int = 0,
    place: str = "",
    curve: dict[str, Any] | None = None,
    method: str = "maml",
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    budget = {"outer_steps": settings.pop("steps", 3)}
    cell = Cell("ridge", method, "sgd", seed, {}, settings, {}, budget)
    metrics = {"test": {"loss": Estimate(value, 3)}}
    record = Record(key=cell.key, cell=cell, status="done", metrics=metrics, **(changes or {}))
    row, _, column = place.partition("/")
    return Run(record, lambda _: curve or {"step": [0]}, row, column)


def compare(a: list[Run], b: list[Run], view: View = VIEW) -> Any:
    return side_by_side(Side("a", tuple(a)), Side("b", tuple(b)), lambda *_: view)


def test_the_difference_and_its_test_are_those_of_scipy() -> None:
    one, two = [0.5, 0.7, 0.4, 0.9], [0.45, 0.5, 0.41, 0.6]
    line = compare([run(x, s) for s, x in enumerate(one)], [run(x, s) for s, x in enumerate(two)])
    (line,) = line.lines
    reference = ttest_rel(two, one)
    low, high = reference.confidence_interval()
    assert line.pair.gain == pytest.approx(sum(two) / 4 - sum(one) / 4, rel=1e-12)
    assert line.pair.pm == pytest.approx((high - low) / 2, rel=1e-9)
    assert line.pair.p == pytest.approx(reference.pvalue, rel=1e-9)
    spread = line.pair.spread / 2
    # A difference of that size has a t that exceeds the critical value in four runs of five.
    shift = line.detectable / spread
    from scipy.stats import nct

    assert nct.sf(t.ppf(0.975, 3), 3, shift) == pytest.approx(0.8, abs=1e-6)
    assert line.verdict == "not told apart"


def test_holm_is_over_all_lines_and_the_better_side_is_by_the_goal() -> None:
    def side(shift: float) -> list[Run]:
        near = [run(0.1 * s + shift + 0.001 * (s == 2), s, "near/x", lr=1) for s in range(4)]
        return near + [run(0.1 * s + 0.1 * shift * s, s, "far/x", lr=2) for s in range(4)]

    found = compare(side(0.0), side(0.3))
    assert [line.label for line in found.lines] == ["near/x", "far/x"]
    near, far = found.lines
    assert near.pair.p is None  # the same in every seed: nothing is left to chance
    assert far.pair.p == pytest.approx(
        ttest_rel([0.13 * s for s in range(4)], [0.1 * s for s in range(4)]).pvalue
    )
    assert found.tests == 1
    three = [run(0.5 + 0.1 * s, s, f"r{i}/x", lr=i) for i in range(3) for s in range(4)]
    worse = [
        run(1.5 + 0.1 * s + 0.01 * i * s**2, s, f"r{i}/x", lr=i) for i in range(3) for s in range(4)
    ]
    found = compare(three, worse)
    assert found.tests == 2
    smallest = min(line.pair.p for line in found.lines if line.pair.p is not None)
    gains = [[1 + 0.01 * i * s**2 for s in range(4)] for i in (1, 2)]
    assert smallest == pytest.approx(2 * min(ttest_rel(g, [0] * 4).pvalue for g in gains))
    assert found.lines[1].verdict == "A better"
    higher = compare(three, worse, replace(VIEW, goal="max"))
    assert higher.lines[1].verdict == "B better"


def test_cells_are_paired_by_key_then_place_then_settings_then_names() -> None:
    same = run(0.1, 0, "x/c", lr=1)
    assert [p[1].place for p in pair_up([same, run(0, 5)], [run(1, 7), run(0.2, 0, "y/c", lr=1)])]
    by_place = pair_up([run(0, 0, "r/c", lr=1), run(0, 1, "r/c", lr=1)],
                       [run(0, 1, "r/c", lr=2), run(0, 0, "r/c", lr=2)])  # fmt: skip
    assert [(a.cell.seed, b.cell.seed) for a, b in by_place] == [(0, 0), (1, 1)]
    by_budget = pair_up([run(lr=1), run(lr=2)], [run(lr=2, steps=9), run(lr=1, steps=9)])
    assert [b.cell.method_settings for _, b in by_budget] == [{"lr": 1}, {"lr": 2}]
    by_name = pair_up([run(lr=1), run(method="ift")], [run(lr=5), run(method="fixed")])
    assert [(a.cell.method, b.cell.method_settings) for a, b in by_name] == [("maml", {"lr": 5})]
    # Two of a name are no pair: which of them is meant is not known.
    assert pair_up([run(lr=1), run(lr=2)], [run(lr=5), run(method="fixed")]) == []
    assert len(pair_up([run(lr=1, seed=3)], [run(method="ift")])) == 1  # two runs are a pair


def test_rows_of_one_cell_are_paired_by_their_places() -> None:
    a = [run(0, 0, "one/c", lr=1), run(0, 0, "two/c", lr=1)]
    b = [run(0, 0, "one/c", lr=1, steps=9), run(0, 0, "two/c", lr=2, steps=9)]
    assert [(x.place, y.place) for x, y in pair_up(a, b)] == [
        ("one/c", "one/c"),
        ("two/c", "two/c"),
    ]


def test_identical_is_said_where_every_bit_is_equal_and_nowhere_else() -> None:
    side = [run(0.5, s, curve={"step": [0], "valid/loss": [0.25]}) for s in range(3)]
    found = compare(side, side)
    assert found.identical and found.lines[0].verdict == "identical"
    assert found.lines[0].pair.gain == 0.0
    clocks = {"cost": {"seconds": 5.0, "hvps": 2.0}, "ended": "later", "attempts": 3}
    faster = [run(0.5, s, curve={"step": [0]}, changes=clocks) for s in range(3)]
    slower = {**clocks, "cost": {"seconds": 9.0, "hvps": 2.0}}
    assert compare(faster, [run(0.5, s, changes=slower) for s in range(3)]).identical
    counts = {**clocks, "cost": {"seconds": 5.0, "hvps": 3.0}}
    assert not compare(faster, [run(0.5, s, changes=counts) for s in range(3)]).identical
    bent = list(side)
    bent[1] = run(0.5, 1, curve={"step": [0], "valid/loss": [math.nextafter(0.25, 1)]})
    found = compare(side, bent)
    assert found.lines[0].identical == (0, 2) and not found.identical
    assert found.lines[0].verdict == "not tested (2 identical)"
    assert not compare(side, side[:2]).identical  # not the same cells


def test_what_one_side_has_alone_is_told_with_what_the_other_has_instead() -> None:
    a = [run(0.5, s, "r/c") for s in range(3)]
    broken = replace(a[2], record=replace(a[2].record, status="diverged", metrics={}))
    found = compare(a, [*a[:1], broken, run(0.1, 9, "other/c", lr=3)])
    told = {(o.side, o.label, o.seeds, o.why) for o in found.only}
    assert told == {
        ("A", "r/c", (1,), ""),
        ("A", "r/c", (2,), "diverged"),
        ("B", "other/c", (9,), ""),
    }


@pytest.mark.parametrize("place", ["r/c", ""])
def test_the_survivors_of_lost_runs_are_not_shown_to_be_better(place: str) -> None:
    """As in a suite's table: B's fourth run ran away, and says so in no number."""
    a = [run(0.50 + 0.010 * s, s, place) for s in range(4)]
    b = [run(0.30 + 0.011 * s, s, place, steps=9) for s in range(4)]
    assert [line.verdict for line in compare(a, b).lines] == ["B better"]
    gone = replace(b[3], record=replace(b[3].record, status="diverged", metrics={}))
    (line,) = compare(a, [*b[:3], gone]).lines
    assert line.pair.p < 0.05 and line.verdict == "not shown: B lost runs"
    # It can still be shown to be worse.
    (line,) = compare(a, [*[run(0.9 + 0.011 * s, s, place, steps=9) for s in range(3)], gone]).lines
    assert line.verdict == "A better"


def test_settings_and_machines_that_differ_are_told() -> None:
    def made(torch: str, dirty: bool = False) -> dict[str, Any]:
        git = {"commit": "a" * 40, "dirty": dirty}
        versions = {"torch": torch, "numpy": "2"}
        environment = {"versions": versions, "machine": {"cores": 2}, "git": git, "device": "cpu"}
        return {"environment": environment}

    a = [run(0.5, 0, f"{r}/c", lr=r, changes=made("2.6")) for r in (1, 2)]
    b = [run(0.6, 0, f"{r}/c", lr=r, steps=9, extra=r, changes=made("2.7", True)) for r in (1, 2)]
    found = compare(a, b)
    assert {(d.what, d.a, d.b) for d in found.made_with} == {
        ("version of torch", "2.6", "2.7"),
        ("commit", "a" * 10, "a" * 10 + " with changes"),
    }
    assert [(d.what, d.a, d.b) for d in found.settings] == [("budget.outer_steps", "3", "9")]
    assert [dict(line.settings) for line in found.lines] == [
        {"method.extra": ("not set", "1")},
        {"method.extra": ("not set", "2")},
    ]


def test_logarithms_are_compared_where_all_numbers_are_positive() -> None:
    view = replace(VIEW, logs=True)
    a, b = [run(10.0**-s, s) for s in range(3)], [run(10.0 ** (-s - 1), s) for s in range(3)]
    (line,) = compare(a, b, view).lines
    assert line.logs and line.pair.gain == pytest.approx(-math.log(10))
    (line,) = compare(a, [run(0.0, 0), *b[1:]], view).lines
    assert not line.logs


def test_numbers_below_the_resolution_are_equal() -> None:
    view = replace(VIEW, resolution=0.2)
    (line,) = compare([run(0.1, s) for s in range(3)], [run(0.05, s) for s in range(3)], view).lines
    assert (line.a, line.b) == pytest.approx((0.1, 0.05)) and line.pair.gain == 0.0
    # Of 0 there is a logarithm then, as in the table of a suite.
    b = [run(v, s) for s, v in enumerate((0.0, 2.0, 0.2))]
    (line,) = compare([run(2.0, s) for s in range(3)], b, replace(view, logs=True)).lines
    assert line.logs and line.pair.gain == pytest.approx(2 * math.log(0.1) / 3)
