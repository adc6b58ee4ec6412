"""One method ranked on a small arena: a stranger's, a bad one, a renamed copy; what is missing,
stopped, refused."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import contests
import pytest

from metabench.api.arena import entrant, ranking, tournament
from metabench.api.arena.contest import Contest, outdated
from metabench.api.arena.contest import contest as entered
from metabench.api.publication import publish_arena
from metabench.core import catalogue
from metabench.core.errors import (
    MetabenchError,
    NotApplicable,
    SettingError,
    StoreError,
    SuiteError,
)
from metabench.run.events import Finished
from metabench.store.published import Published, publish
from metabench.store.record import Record
from metabench.store.store import Store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return contests.played(tmp_path_factory.mktemp("arena"))


@pytest.fixture
def enter(small: tuple[Path, Path], tmp_path: Path, plugins_forgotten: None) -> Iterator[Any]:
    """Makes a contest of a file, against the baselines' records."""
    arena, records = small
    path, modules = [*sys.path], {*sys.modules}

    def made(file: str | Path, **given: Any) -> Contest:
        words = {"arena": arena, "baselines": records, "store": tmp_path / "runs", **given}
        return entered(str(file), budget="smoke", **words)

    yield made
    sys.path[:] = path
    for name in {m for m in sys.modules if m.startswith("hypercleaning")} - modules:
        del sys.modules[name]


def ranked(contest: Contest) -> dict[tuple[str, bool], Any]:
    entrant.run(contest)
    return {(p.track, p.tuned): p for p in ranking.places(contest)}


def test_a_strangers_method_stands_among_the_baselines(enter, tmp_path: Path) -> None:
    contest = enter(contests.third_party(tmp_path))
    found = ranked(contest)
    assert contest.entrant.id == "central_differences" and not contest.tuned
    assert set(found) == {("A", False), ("B", False)}, "without a space as shipped stands alone"
    here = found["A", False]
    assert [s.row for s in here.standings if s.row != "central_differences"]
    assert {a.other for a in here.against} == {"unrolled", "implicit"}
    assert here.own.near is None and here.problems == ["two", "three"] and here.of == 2
    # What it computes is the exact gradient that unrolling has; it only pays more for it.
    assert here.own.score <= max(s.score for s in here.standings)
    rows = {p.row for p in entrant.plan(contest).finals}
    assert rows == {"central_differences as shipped"}


def test_a_bad_method_is_last_and_shown_worse(enter, tmp_path: Path) -> None:
    found = ranked(enter(contests.plugin(tmp_path, "uphill", sign="-")))
    for tuned in (True, False):
        place = found["A", tuned]
        assert place.standings[-1].row == "uphill" and place.own.rank == 3.0
        assert place.own.score < min(s.score for s in place.standings[:-1])
    assert set(found["A", True].verdicts("worse")) == {"unrolled", "implicit"}


def test_a_renamed_copy_ties_with_its_original(enter, tmp_path: Path) -> None:
    found = ranked(enter(contests.plugin(tmp_path, "copy")))
    for place in found.values():
        assert place.verdicts("equal") == ["unrolled"]
        rows = {s.row: s for s in place.standings}
        assert replace(rows["unrolled"], row="copy") == rows["copy"]


def test_only_its_own_cells_are_run_and_kept(enter, tmp_path: Path) -> None:
    contest = enter(contests.plugin(tmp_path, "mine"), quick=True)
    ranked(contest)
    kept = contest.store.records()
    assert {r.cell.method for r in kept} == {"mine"} and {r.status for r in kept} == {"done"}
    assert {r.cell.task_settings["dim"] for r in kept} == {2} and len(kept) in (8, 13)
    *written, records = ranking.report(contest, ranking.places(contest), tmp_path / "out")
    assert {p.name for p in written} == {"standing.md", "standing.csv"}
    assert {r.key for r in Published(records).records()} == {r.key for r in kept}
    again = entrant.run(contest)
    assert all(s.reused == set(s.records) for s in again)


def test_stopped_and_started_again_it_is_the_same(enter, tmp_path: Path) -> None:
    contest = enter(contests.plugin(tmp_path, "mine"), quick=True)
    whole = enter(tmp_path / "mine_file.py", quick=True, store=tmp_path / "whole")
    ended: list[object] = []

    def stop(event: object) -> None:
        ended.append(event)
        if isinstance(event, Finished) and len([e for e in ended if isinstance(e, Finished)]) == 2:
            signal.raise_signal(signal.SIGINT)

    (only,) = entrant.run(contest, listener=stop)
    assert only.interrupted and entrant.plan(contest).trials
    with pytest.raises(MetabenchError, match="of mine are not done, the first mine#"):
        ranking.places(contest)
    before = {r.key: r.ended for r in contest.store.records()}
    assert 0 < len(before) < 3
    assert ranked(contest) == ranked(whole)
    after = {r.key: r.ended for r in contest.store.records()}
    assert before.items() <= after.items()


def test_the_plan_says_how_long_it_takes_by_the_baselines(enter, tmp_path: Path) -> None:
    contest = enter(contests.plugin(tmp_path, "mine"))
    plan = entrant.plan(contest)
    assert {p.row for p in plan.trials} == {"mine#0", "mine#1", "mine#2"}
    assert {p.column for p in plan.trials} == {"two", "three", "start"}
    assert all(p.estimated_seconds and p.estimated_seconds > 0 for p in plan.left)
    assert len(plan.trials) == 9 and len(plan.finals) == 15 and plan.to_come[1] == 15
    took = [sum(r.cost.get(n, 0.0) for n in ("seconds", "evaluation_seconds"))
            for r in contest.baselines.values()]  # fmt: skip
    for each in plan.left:
        assert min(took) <= each.estimated_seconds <= max(took)
    unknown = entrant.plan(enter(tmp_path / "mine_file.py", baselines=None))
    assert unknown.to_come == (None, 15)
    assert not list((tmp_path / "runs").rglob("record.json"))


def test_where_a_method_does_not_apply_it_does_not_play(enter, tmp_path: Path) -> None:
    needs = '@property\n    def needs(self):\n        return super().needs | {"lam_in_inner_loss"}'
    contest = enter(contests.plugin(tmp_path, "inside", space=f"{contests.SPACE}\n\n    {needs}"))
    plan = entrant.plan(contest)
    assert set(plan.refused) == {"start"} and "lam" in plan.refused["start"]
    assert {p.column for p in plan.finals} == {"two", "three"}
    assert {track for track, _ in ranked(contest)} == {"A"}

    nowhere = '@property\n    def needs(self):\n        return super().needs | {"policy"}'
    contest = enter(contests.plugin(tmp_path, "nowhere", space=nowhere))
    with pytest.raises(NotApplicable, match=r"nowhere applies to no problem.*two, three, start:"):
        entrant.plan(contest)


def test_a_baseline_without_its_records_is_left_out_and_named(
    enter, small: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = Published(small[1])
    some = [r for r in whole.records() if r.cell.method != "ift"]
    fewer = publish(some, whole, tmp_path / "fewer.jsonl.gz")  # type: ignore[arg-type]
    contest = enter(contests.plugin(tmp_path, "mine", space=""), baselines=fewer)
    place = ranked(contest)["A", False]
    assert {s.row for s in place.standings} == {"mine", "unrolled"}
    assert place.left_out == {"implicit": {n: ["records are missing"] for n in ("two", "three")}}

    none = enter(tmp_path / "mine_file.py", baselines=None)
    with pytest.raises(MetabenchError, match=r"no baseline to compare with.*--baselines FILE"):
        ranking.check_baselines(none)


def test_a_baseline_of_which_every_final_failed_is_left_out(
    enter, small: tuple[Path, Path], tmp_path: Path
) -> None:
    """Nobody is better than an exception in somebody's code."""
    whole = Published(small[1])

    def broken(record: Record) -> Record:
        if record.cell.method != "ift" or record.cell.seed >= 100:
            return record
        return replace(record, status="failed", reason="ValueError: a bug", metrics={}, lam={})

    records = [broken(r) for r in whole.records()]
    some = publish(records, whole, tmp_path / "some.jsonl.gz")  # type: ignore[arg-type]
    contest = enter(contests.plugin(tmp_path, "mine", space=""), baselines=some)
    place = ranked(contest)["A", False]
    assert {s.row for s in place.standings} == {"mine", "unrolled"}
    assert place.left_out == {"implicit": {n: ["every final failed"] for n in ("two", "three")}}


def test_a_baseline_that_does_not_play_everywhere_is_left_out(
    enter, small: tuple[Path, Path], tmp_path: Path
) -> None:
    some = tmp_path / "some.toml"
    text = contests.ARENA.replace('method = "ift"', 'method = "ift"\nproblems = ["two"]')
    some.write_text(text)
    file = contests.plugin(tmp_path, "mine", space="")
    ranking.check_baselines(enter(file, arena=some, quick=True))
    contest = enter(file, arena=some)
    place = ranked(contest)["A", False]
    assert place.left_out == {"implicit": {"three": ["the arena does not have it play there"]}}
    assert {s.row for s in place.standings} == {"mine", "unrolled"}


def test_a_store_of_baselines_does_as_well(enter, small: tuple[Path, Path], tmp_path: Path) -> None:
    file = contests.plugin(tmp_path, "mine")
    by_file, by_store = enter(file), enter(file, baselines=small[0].parent / "baselines")
    assert by_file.baselines.keys() == by_store.baselines.keys()
    ranking.check_baselines(by_store)


def test_a_finished_record_of_the_store_counts_before_that_of_a_file(
    enter, small: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second, *_ = Published(small[1]).records()
    store = Store(tmp_path / "runs")
    store.write(replace(first, attempts=7, files={}))
    store.write(replace(second, status="failed", metrics={}, files={}))
    known = enter(contests.plugin(tmp_path, "mine")).baselines
    assert (known[first.key].attempts, known[second.key].status) == (7, "done")
    assert enter(tmp_path / "mine_file.py", baselines=None).baselines[second.key].status == "failed"


def test_scores_that_ship_with_a_built_in_arena_are_found(
    enter, small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "suites"
    folder.mkdir()
    monkeypatch.setattr(catalogue, "suite_folder", lambda: folder)
    with pytest.raises(SuiteError, match="no built-in arena"):
        tournament.default_arena()
    for name in ("arena-2.toml", "arena-10.toml"):
        (folder / name).write_text(contests.ARENA)
    (folder / "suite.toml").write_text('title = "kind = \'arena\'"\n[budgets]\nkind = "arena"\n')
    assert catalogue.arena_names() == ["arena-2", "arena-10"]
    assert catalogue.suite_names() == ["suite"]
    assert tournament.default_arena() == "arena-10"
    home = tmp_path / "results"
    where = "metabench.api.arena.tournament.published_folder"
    monkeypatch.setattr(where, lambda *names: home.joinpath(*names))
    monkeypatch.setattr("metabench.suites.arena.definition.suite_folder", lambda: folder)
    store, out = small[0].parent / "baselines", home / "arena-10" / "smoke"
    shipped = publish_arena("arena-10", budget="smoke", store=store, out=out).files[0]
    contest = enter(contests.plugin(tmp_path, "mine"), arena=None, baselines=None)
    assert contest.arena.name == "arena-10" and contest.file == shipped
    ranking.check_baselines(contest)
    with pytest.raises(SettingError, match="is the folder of the baselines"):
        ranking.check_output(contest, shipped.parent)


def test_scores_do_as_well_as_whole_records(
    enter, small: tuple[Path, Path], tmp_path: Path
) -> None:
    arena, records = small
    store, file = arena.parent / "baselines", contests.plugin(tmp_path, "mine")
    scores = publish_arena(arena, budget="smoke", store=store, out=tmp_path / "out").files[0]
    entrant.run(enter(file))
    by_records, by_scores = (ranking.places(enter(file, baselines=b)) for b in (records, scores))
    assert by_records == by_scores and len(by_scores) == 4
    moved = tmp_path / "small.toml"
    moved.write_text(contests.ARENA.replace("cap = 90.0", "cap = 80.0", 1))
    changed = enter(file, arena=moved, baselines=scores)
    assert len(changed.bad) == 2 and "unrolled on two does not count: settings" in changed.bad[0]
    with pytest.raises(StoreError, match=r"line 1: arena is 'small', and 'other' is asked for"):
        enter(file, arena=moved.rename(tmp_path / "other.toml"), baselines=scores)


def test_cells_of_an_older_file_are_counted(enter, tmp_path: Path) -> None:
    file = contests.plugin(tmp_path, "mine", space="")
    os.utime(file, (1, 1))
    contest = enter(file, quick=True)
    entrant.run(contest)
    assert outdated(contest) == 0
    later = time.time() + 60
    os.utime(file, (later, later))
    assert outdated(contest) == len(contest.store.records()) == 5


def test_a_damaged_line_is_told(enter, small: tuple[Path, Path], tmp_path: Path) -> None:
    import gzip

    lines = gzip.decompress(small[1].read_bytes()).splitlines(keepends=True)
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(gzip.compress(b"".join([b"{}\n", *lines[1:]])))
    contest = enter(contests.plugin(tmp_path, "mine"), baselines=bad)
    assert len(contest.bad) == 1 and "line 1" in contest.bad[0]
    assert len(contest.baselines) == len(lines) - 1
    assert Store(tmp_path / "runs").records() == []
