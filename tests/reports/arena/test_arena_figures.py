"""Figures and tables of an arena's track, from records whose numbers are known."""

import csv
import math
from itertools import pairwise
from pathlib import Path

import matplotlib.text
import pytest
from arenas import arena, played

from metabench.analysis.arena.track import TrackResults, collect
from metabench.core.errors import NotDrawn
from metabench.reports.arena import costs, figures, pairs, scores, strips, tables
from metabench.reports.figures.style import styled
from metabench.reports.tables.renderers import text
from metabench.store.record import RETRAINED

GOOD = {"alpha": 1.0, "beta": 0.5, "gamma": 0.85}


def score(method: str, problem: str, trial: int, seed: int) -> float | None:
    """Trial 1 is the best; "gamma" ends without numbers in its last trial."""
    if method == "gamma" and trial == 3:
        return None
    return GOOD[method] * (0.5, 1.0, 0.95, 0.2)[trial] + 0.001 * int(problem[1:])


def track(problems: int, methods: tuple[str, ...] = tuple(GOOD), **words: object) -> TrackResults:
    made = arena([f"p{i}" for i in range(problems)], methods, **words)
    one = played(made, score, gap=0.02, lift=-0.25)
    return collect(one.arena, one.scores, one.finals, one.metrics, "A", one.curve)


@pytest.fixture(scope="module")
def three() -> TrackResults:
    return track(3)


@pytest.fixture(scope="module")
def seven() -> TrackResults:
    return track(7, alone=["beta"], anew=[f"p{i}" for i in range(7)])


@pytest.fixture(scope="module")
def drawn_of_seven(seven: TrackResults) -> tuple[dict, dict]:
    """Every figure, drawn once; and why some are not."""
    return figures.figures(seven)


def names(figure) -> str:
    """Every text of a figure that somebody sees."""
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text)).replace("\n", " ")


def test_below_six_problems_nothing_is_inferred_and_it_is_said(three: TrackResults) -> None:
    drawn, not_drawn = figures.figures(three)
    assert set(not_drawn) == {"critical-difference", "retrained"}
    assert not_drawn["retrained"] == "no problem of track A has theta trained anew"
    assert "there are 3 on 3" in not_drawn["critical-difference"]
    assert "nothing is tested below 6 problems" in names(drawn["pairs"])
    assert "With 3 problems nothing is tested" in names(drawn["ranks"])
    assert "*" not in names(drawn["pairs"])


def test_from_six_on_ranks_are_tested_and_pairs_have_stars(drawn_of_seven) -> None:
    drawn, not_drawn = drawn_of_seven
    assert not not_drawn and "Friedman test over 7 problems" in names(drawn["critical-difference"])
    # Seven problems, three pairs: each has p = 2 / 2^7, times 3.
    assert names(drawn["pairs"]).count("1.00*") == names(drawn["pairs"]).count("0.00*") == 3
    assert "no p can be below" not in names(drawn["pairs"])


def test_many_pairs_on_few_problems_are_told_to_be_hopeless() -> None:
    said = " ".join(pairs.pairs_caption(track(6)))
    assert "With 6 problems and 3 pairs no p can be below 0.094" in said


@pytest.mark.parametrize("kind", list(figures.KINDS))
def test_every_caption_says_what_a_figure_cannot_say_and_stands_below_it(
    kind: str, seven: TrackResults, drawn_of_seven
) -> None:
    said = " ".join(figures.KINDS[kind].caption(seven))
    assert "cannot" in said
    shown = names(drawn_of_seven[0][kind])
    last = " ".join(figures.KINDS[kind].caption(seven)[-1].split())
    assert last in " ".join(shown.split())


def test_the_cost_figure_counts_who_has_the_target(three: TrackResults) -> None:
    with styled():
        figure = costs.cost_figure(three)
    shown = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    # A panel a problem: "alpha" and "gamma" have it on every seed, "beta" never.
    assert shown.count("3/3") == 6 and shown.count("0/3") == 3
    assert three.medians()["p0"] == {"alpha": 80.0, "beta": None, "gamma": 100.0}


def test_a_profile_has_the_shares_of_solved_problems(three: TrackResults) -> None:
    with styled():
        figure = costs.profile_figure(three)
    apart = {m: costs.APART * (1 - i) for i, m in enumerate(strips.order_of(three))}
    ends = {
        m: line.get_ydata()[-1] - apart[m]
        for m, line in zip(strips.order_of(three), figure.axes[0].lines, strict=True)
    }
    assert ends == pytest.approx({"alpha": 100, "gamma": 100, "beta": 0})


def test_the_figure_of_thetas_trained_anew_has_both_readouts(seven: TrackResults) -> None:
    """Filled at the score trained anew, hollow at the method's own, 0.25 to the right."""
    with styled():
        (axis,) = scores.retrained_figure(seven).axes
    marks = {
        (line.get_markerfacecolor() == "white", -line.get_ydata()[0]): line.get_xdata()[0]
        for line in axis.lines
        if line.get_marker() == "D"
    }
    for place, line in enumerate(seven.lines()):
        assert marks[True, place] == pytest.approx(line.standing.score)
        assert marks[False, place] == pytest.approx(line.standing.score - 0.25)


def test_what_cannot_be_drawn_says_why() -> None:
    alone = track(2, ("beta",), alone=["beta"])
    drawn, not_drawn = figures.figures(alone)
    missing = {"critical-difference", "pairs", "cost-profile", "trials", "retrained"}
    assert set(not_drawn) == missing
    assert "beta is alone" in not_drawn["pairs"]
    assert "all methods have one setting" in not_drawn["trials"]
    with pytest.raises(NotDrawn, match="on no problem do most seeds"):
        costs.profile_figure(alone)
    assert "With one setting, hence no share and no regret: Beta." in names(drawn["robustness"])


def test_a_method_that_does_not_play_everywhere_is_named() -> None:
    from dataclasses import replace

    left = replace(track(2), left_out=("beta",))
    assert scores.scores_caption(left)[-1] == "Left out, not on every problem: Beta."
    assert "Left out, not on every problem: Beta." in text(tables.standings_grid(left))


def test_a_method_that_applies_to_no_problem_is_named() -> None:
    from dataclasses import replace

    nowhere = replace(track(2), nowhere=("beta",))
    assert scores.scores_caption(nowhere)[-1] == "Left out, applies to no problem: Beta."
    assert "Left out, applies to no problem: Beta." in notes(nowhere)


def notes(found: TrackResults) -> list[str]:
    return [f.text for f in tables.standings_grid(found).footnotes]


def test_the_notes_say_on_which_split_the_target_is_and_how_fine_costs_are() -> None:
    from dataclasses import replace

    found = track(2)
    assert 'not on test (on "p0" and "p1": the validation split, which lam is' in notes(found)[0]
    assert "looks lie 1/10 of the cap apart" in notes(found)[0]
    apart, shared = found.problems
    mixed = (replace(apart, select="best_selection", looks=20), shared)
    said = notes(replace(found, problems=mixed))[0]
    assert (
        'not on test (on "p1": the validation split' in said and "1/20 to 1/10 of the cap" in said
    )
    apart = replace(apart, select="best_selection")
    assert "not on test. cost:" in notes(replace(found, problems=(apart, apart)))[0]


def test_what_no_learning_has_by_a_theta_trained_anew_is_said() -> None:
    """The second readout has a training of its own, so that its 0 is not no learning."""
    from dataclasses import replace

    found = track(2, anew=["p0", "p1"])
    assert "Compare with" not in notes(found)[1] and found.unlearned == ()
    said = notes(replace(found, unlearned=("beta",)))[1]
    assert said.endswith(" Compare with Beta, which has 0.25 there, not with 0.")


@pytest.mark.parametrize("methods", [("alpha", "beta"), tuple(GOOD)])
def test_no_two_names_of_a_figure_touch(methods: tuple[str, ...]) -> None:
    """Names beside the axis are inside the figure, at the resolution of its file."""
    found = track(2, methods)
    with styled():
        for draw in (scores.scores_figure, pairs.pairs_figure, costs.cost_figure):
            figure = draw(found)
            renderer = figure._get_renderer()
            boxes = [t.get_window_extent(renderer) for t in figure.axes[0].get_yticklabels()]
            assert min(box.x0 for box in boxes) >= 0
            boxes.sort(key=lambda box: box.y0)
            assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))


def test_the_table_of_standings_has_every_column(seven: TrackResults) -> None:
    lines = text(tables.standings_grid(seven)).splitlines()
    assert lines[0] == "Track A, lam in the inner loss, tuned: 7 problems"
    row = {line.split()[0]: line.split() for line in lines[4:7]}
    assert list(row) == ["Alpha", "Gamma", "Beta"]
    assert row["Alpha"][1:] == [
        "1.00", "1.00", "1.00–1.00", "0.75", "7/7", "1.00", "0.02", "0",
        "0.67", "50", "%", "0", "%", "0.50",
    ]  # fmt: skip
    assert row["Gamma"][5:7] == ["7/7", "1.25"] and row["Gamma"][12:14] == ["25", "%"]
    assert row["Beta"][5:7] == ["0/7", "—"] and row["Beta"][9:] == ["—", "—", "0", "%", "—"]
    shipped = text(tables.standings_grid(seven, tuned=False))
    assert "as shipped: 7 problems" in shipped and "regret" not in shipped


def test_a_theta_trained_anew_has_a_column_where_a_problem_says_so(three: TrackResults) -> None:
    some = track(3, anew=["p0", "p2"])
    lines = text(tables.standings_grid(some)).splitlines()
    assert lines[2].split()[:5] == ["rank", "score", "95", "%", "retrained"]
    row = next(line.split() for line in lines if line.startswith("Alpha"))
    assert row[1:5] == ["1.00", "1.00", "1.00–1.00", "0.75"]
    assert "trained anew at the lam found (on p0 and p2)" in text(tables.standings_grid(some))
    assert "retrained" in text(tables.standings_grid(some, tuned=False))
    assert "retrained" not in text(tables.standings_grid(three))
    assert tables.retrained_grid(three) is None
    anew = text(tables.retrained_grid(some)).splitlines()
    assert "theta trained anew: 2 problems" in anew[0]
    order = [line.split()[0] for line in anew if line.startswith(("Alpha", "Beta", "Gamma"))]
    assert order == ["Alpha", "Gamma", "Beta"]
    by_problem = {
        x["problem"]: x["score_retrained"]
        for x in tables.problem_lines(some)
        if x["row"] == "beta as shipped"
    }
    assert by_problem["p1"] is None
    assert by_problem["p2"] == pytest.approx(GOOD["beta"] * 0.5 + 0.002 - 0.25)


def test_a_readout_that_ran_away_counts_as_no_learning() -> None:
    """The run's own score stays."""
    made = arena(["p0"], tuple(GOOD), anew=["p0"])
    one = played(made, score, lift=-0.25)
    for p in one.finals:
        if p.row == "alpha" and p.cell.seed == 0:
            del p.record.metrics["test" + RETRAINED]
    whole = collect(one.arena, one.scores, one.finals, one.metrics, "A", one.curve)
    anew = whole.retrained["alpha"]["p0"]
    assert anew[0] == 0.0 and min(anew[1:]) > 0.5
    assert min(whole.scores["alpha"]["p0"]) > 0.9


def test_files_are_whole_and_their_numbers_those_of_the_track(
    seven: TrackResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: figures.KINDS[name] for name in ("scores", "pairs")}
    monkeypatch.setattr(figures, "KINDS", kinds)
    written = figures.write([seven], tmp_path)
    assert sorted(p.name for p in written) == sorted(p.name for p in tmp_path.iterdir())
    assert len(written) == 2 * len(figures.KINDS) + 5
    page = (tmp_path / "standings.md").read_text()
    for kind in figures.KINDS:
        assert f"(A-{kind}.png)" in page
    with (tmp_path / "standings.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [tuple(x) for x in found[:1]] == [tables.STANDINGS] and len(found) == 6
    assert found[0]["row"] == "alpha" and float(found[0]["cost_ratio"]) == 1.0
    with (tmp_path / "problems.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 2 * 7 * 3
    tuned = [x for x in found if x["ruleset"] == "tuned" and x["row"] == "alpha"]
    assert {x["trial"] for x in tuned} == {"1"} and {x["cost_to_target"] for x in tuned} == {"80.0"}
    assert [float(x["score"]) for x in tuned] == pytest.approx([1 + 0.001 * i for i in range(7)])
    with (tmp_path / "pairs.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(x["a"], x["b"]) for x in found] == list(seven.duels)
    assert float(found[0]["p_holm"]) == pytest.approx(3 * 2.0**-6)


def test_dots_of_a_line_are_spread_about_it() -> None:
    assert strips.spread(1) == [0.0] and math.isclose(sum(strips.spread(5)), 0.0)
    assert max(strips.spread(9)) <= strips.SPREAD / 2


def test_a_score_far_below_no_learning_is_a_power_of_ten(monkeypatch) -> None:
    """One step that runs away has a loss of any size, which no column is as wide as."""
    found = track(2)
    of = found.scores["beta"]
    away = {**found.scores, "beta": {**of, "p0": [-2.726e27, *of["p0"][1:]]}}
    monkeypatch.setitem(vars(found), "scores", away)
    lines = text(tables.problems_grid(found)).splitlines()
    beta = next(line.split() for line in lines if line.startswith("Beta"))
    assert beta[1].startswith("-") and "e+2" in beta[1] and len(beta[1]) == len("-3e+27")
