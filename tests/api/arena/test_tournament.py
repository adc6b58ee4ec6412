"""A small arena from trials to standings: resume, a bad method, a renamed copy, what is missing."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from metabench.api.arena import tournament
from metabench.api.arena.leaderboard import leaderboard, publish_records
from metabench.api.publication import publish_arena
from metabench.core import catalogue
from metabench.core.errors import MetabenchError, StoreError
from metabench.store.merge import merge
from metabench.store.published import Published
from metabench.store.store import Store

HEAD = """
kind = "arena"
title = "Quadratics"

[budgets.smoke]
trials = 3
tuning_seeds = [100]
seeds = [0, 1, 2]
"""
SMOKE = """
[budgets.smoke]
trials = 3
tuning_seeds = [100]
seeds = [0, 1, 2]
"""
PROBLEM = """
[[problems]]
id = "{id}"
track = "{track}"
task = "quadratic"
set.task = {{ {set} }}
fixed = {fixed}
bound = 0.0
cap = 150.0
looks = 5
select = "best_valid"
smoothness = 3.0
prices = {{ inner_gradients = 1.0, outer_gradients = 1.0, hvps = 1.0, mixed_products = 1.0, function_evaluations = 0.5 }}
"""  # noqa: E501
METHOD = """
[[methods]]
id = "{id}"
method = "{method}"
tracks = ["A"]
set.method = {{ {set} }}
space."method.outer_lr" = {{ low = {low}, high = {high}, log = true }}
"""
PROBLEMS = "".join(
    PROBLEM.format(id=f"dim{d}", track="A", set=f"dim = {d}", fixed=2.0 * d) for d in (2, 5)
)
FIELD = (
    METHOD.format(id="bilevel", method="bilevel", set="inner_steps = 10", low=0.01, high=1.0)
    + METHOD.format(id="copy", method="bilevel", set="inner_steps = 10", low=0.01, high=1.0)
    + METHOD.format(id="bad", method="bilevel", set="inner_steps = 10", low=1e-9, high=1e-8)
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("arena")
    path = folder / "small.toml"
    path.write_text(HEAD + PROBLEMS + FIELD)
    tournament.run(path, budget="smoke", store=folder / "runs")
    return path, folder / "runs"


def test_the_trials_choose_who_plays_and_the_bad_method_is_last(played) -> None:
    path, store = played
    plan = tournament.plan(path, budget="smoke", store=store)
    assert {p.state for p in plan.finals} == {"done"}
    assert set(plan.chosen) == {(m, f"dim{d}") for m in ("bilevel", "copy", "bad") for d in (2, 5)}
    found = tournament.standings(plan, track="A")
    assert found[-1].row == "bad" and found[-1].rank == 3.0
    first, second = found[:2]
    assert {first.row, second.row} == {"bilevel", "copy"}
    assert first.low <= second.high and second.low <= first.high  # they are not told apart
    assert found[-1].score < min(first.score, second.score) - 0.1
    shipped = tournament.standings(plan, track="A", tuned=False)
    assert {s.row for s in shipped} == {f"{m} as shipped" for m in ("bilevel", "copy", "bad")}
    assert shipped[0].score == pytest.approx(shipped[2].score)  # all three have the same defaults


def test_what_is_done_is_not_run_again(played) -> None:
    path, store = played
    trials, finals = tournament.run(path, budget="smoke", store=store)
    assert trials.reused == set(trials.records) and finals.reused == set(finals.records)


def test_a_new_method_runs_no_cell_of_the_others(played, tmp_path: Path) -> None:
    path, store = played
    more = tmp_path / "more.toml"
    own = METHOD.format(id="mine", method="one_step", set="inner_steps = 10", low=0.01, high=1.0)
    more.write_text(path.read_text() + own)
    plan = tournament.plan(more, budget="smoke", store=store)
    open_ = {p.row.partition("#")[0] for p in plan.trials if p.state == "open"}
    assert open_ == {"mine"} and not plan.finals and not plan.chosen


def test_nobody_is_ranked_before_all_have_played(played, tmp_path: Path) -> None:
    path, _ = played
    plan = tournament.plan(path, budget="smoke", store=tmp_path / "empty")
    assert {p.state for p in plan.trials} == {"open"} and not plan.finals
    with pytest.raises(MetabenchError, match="no trial is finished"):
        tournament.standings(plan, track="A")


def test_every_run_costs_no_more_than_the_cap(played) -> None:
    path, store = played
    plan = tournament.plan(path, budget="smoke", store=store)
    prices = plan.arena.problems[0].prices
    for p in (*plan.trials, *plan.finals):
        assert p.record is not None
        spent = sum(p.record.cost[name] * price for name, price in prices.items())
        assert 0.6 * 150 <= spent <= 150, p.row
        looks = Store(store).curve(p.record)["looks/cost"]
        assert looks[0] > 0 and looks[-1] == pytest.approx(len(looks) * looks[0])


def test_a_method_that_cannot_run_on_a_problem_plays_the_others(tmp_path: Path) -> None:
    # SOBA needs a theta that is carried from step to step, which only the second problem has.
    method = METHOD.format(id="soba", method="soba", set="", low=0.01, high=1.0)
    carried = PROBLEM.format(id="carried", track="A", set="dim = 2, carried = true", fixed=4.0)
    path = tmp_path / "part.toml"
    path.write_text(
        HEAD.replace("trials = 3", "trials = 2")
        + PROBLEM.format(id="fresh", track="A", set="dim = 2", fixed=4.0)
        + carried
        + method
    )
    tournament.run(path, budget="smoke", store=tmp_path / "runs")
    plan = tournament.plan(path, budget="smoke", store=tmp_path / "runs")
    assert {p.column for p in plan.finals} == {"carried"} == {name for _, name in plan.chosen}
    assert [s.row for s in tournament.standings(plan, track="A")] == ["soba"]


@pytest.mark.slow
def test_figures_and_tables_of_every_track_are_written(played, tmp_path: Path) -> None:
    path, store = played
    plan = tournament.plan(path, budget="smoke", store=store)
    (track,) = tournament.tracks(plan, store=store)
    assert track.methods == ("bilevel", "copy", "bad") and track.track == "A"
    assert track.duels["bilevel", "bad"].wins > 0.9
    assert [x.standing for x in track.lines()] == tournament.standings(plan, track="A")
    files = {p.name for p in tournament.figures([track], out=tmp_path)}
    assert {"A-scores.png", "A-cost-to-target.pdf", "standings.md", "pairs.csv"} <= files
    assert files == {p.name for p in tmp_path.iterdir()}


def test_without_finals_there_is_nothing_to_draw(played, tmp_path: Path) -> None:
    path, _ = played
    plan = tournament.plan(path, budget="smoke", store=tmp_path / "empty")
    with pytest.raises(MetabenchError, match="nobody has played in any track"):
        tournament.figures(tournament.tracks(plan, store=tmp_path / "empty"), out=tmp_path)


@pytest.fixture
def built_in(played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The arena as one that is built in and whose scores ship with it."""
    path, store = played
    folder, home = tmp_path / "suites", tmp_path / "results"
    folder.mkdir()
    (folder / "arena-7.toml").write_text(path.read_text())
    monkeypatch.setattr(catalogue, "suite_folder", lambda: folder)
    monkeypatch.setattr("metabench.suites.arena.definition.suite_folder", lambda: folder)
    monkeypatch.setattr(tournament, "published_folder", lambda *names: home.joinpath(*names))
    publish_arena("arena-7", budget="smoke", store=store, out=home / "arena-7" / "smoke")
    return "arena-7"


def test_scores_that_ship_are_read_and_written_into_no_store(
    built_in: str, played, tmp_path: Path
) -> None:
    empty = tmp_path / "runs"
    plan = tournament.plan(built_in, budget="smoke", store=empty)
    assert {p.state for p in (*plan.trials, *plan.finals)} == {"done"}
    own = tournament.plan(played[0], budget="smoke", store=played[1])
    assert tournament.standings(plan, track="A") == tournament.standings(own, track="A")
    (track,) = tournament.tracks(plan, store=empty)  # with learning curves
    (same,) = tournament.tracks(own, store=played[1])
    assert replace(track, arena="small") == same and plan.chosen == own.chosen
    tournament.run(built_in, budget="smoke", store=empty)
    leaderboard(built_in, budget="smoke", store=empty, out=tmp_path / "page.html")
    curve = tournament.curve(plan, Store(empty), plan.finals[0].record)
    whole = tournament.curve(own, Store(played[1]), own.finals[0].record)
    assert curve and all(whole[name] == column for name, column in curve.items())
    assert Store(empty).records() == []
    with pytest.raises(MetabenchError, match="nothing to publish"):
        publish_arena(built_in, budget="smoke", store=empty, out=tmp_path / "out")


def test_an_unfinished_arena_goes_on_elsewhere(played, tmp_path: Path) -> None:
    path, store = played
    own = tournament.plan(path, budget="smoke", store=store)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for p in own.trials[:8]:
        here.write(p.record, Store(store).curve(p.record))
    done = publish_arena(path, budget="smoke", store=here, out=tmp_path / "out")
    assert [f.name for f in done.files] == ["scores.jsonl.gz"]
    left = len({p.cell.key for p in own.trials} - {r.key for r in here.records()})
    assert left > 0 and done.missing.startswith(f"{left} cells without a record; no final, since")
    assert f"metabench leaderboard {path} --budget smoke --records records.jsonl.gz" in done.missing
    file = publish_records(path, budget="smoke", store=here, out=tmp_path / "records.jsonl.gz")
    assert merge([Published(file)], there).copied == len(here.records())
    assert {r.key for r in there.records()} == {r.key for r in here.records()}
    trials, _ = tournament.run(path, budget="smoke", store=there)
    assert trials.reused == {r.key for r in here.records()}
    again = tournament.plan(path, budget="smoke", store=there)
    assert tournament.standings(again, track="A") == tournament.standings(own, track="A")


def test_what_ships_and_is_damaged_ranks_nobody(built_in: str, tmp_path: Path) -> None:
    file = tmp_path / "results" / "arena-7" / "smoke" / "scores.jsonl.gz"
    whole = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(whole.replace(b'"status":["done"', b'"status":["failed"', 1)))
    with pytest.raises(StoreError, match=r"scores.jsonl.gz: line 2: is not what was.*be installed"):
        tournament.plan(built_in, budget="smoke", store=tmp_path / "runs")


def test_all_of_it_can_be_run_anew(built_in: str, tmp_path: Path) -> None:
    plan = tournament.plan(built_in, budget="smoke", store=tmp_path / "runs", anew=True)
    assert {p.state for p in plan.trials} == {"open"} and not plan.finals


def test_the_budget_left_out_is_one_with_records(built_in: str, played, tmp_path: Path) -> None:
    assert tournament.default_budget(tournament.load(built_in)) == "smoke"
    assert tournament.default_budget(tournament.load(played[0])) == "laptop"
    (tmp_path / "results" / "arena-7" / "laptop").mkdir()
    assert tournament.default_budget(tournament.load(built_in)) == "smoke"
    file = tmp_path / "results" / "arena-7" / "laptop" / "scores.jsonl.gz"
    file.write_bytes((tmp_path / "results" / "arena-7" / "smoke" / file.name).read_bytes())
    arena_file = tmp_path / "suites" / "arena-7.toml"
    arena_file.write_text(
        arena_file.read_text().replace("[budgets.smoke]", "[budgets.laptop]", 1) + SMOKE
    )
    assert tournament.default_budget(tournament.load(built_in)) == "laptop"
