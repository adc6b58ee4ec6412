"""One track of an arena, from records whose numbers are known: costs, gaps, lines, who plays."""

from dataclasses import replace

import pytest
from arenas import Played, arena, played

from metabench.analysis.arena import track as tracks
from metabench.core.errors import MetabenchError


def collected(found: Played, track: str = "A") -> tracks.TrackResults:
    return tracks.collect(
        found.arena, found.scores, found.finals, found.metrics, track, found.curve
    )


def score(method: str, problem: str, trial: int, seed: int) -> float | None:
    """Trial 2 is the best of "good", trial 0 that of "plain"; "lost" ends without numbers on odd
    seeds of problem q."""
    if method == "good":
        return {0: 0.2, 1: 0.5, 2: 1.0, 3: 0.95}[trial] * (1.0 if problem == "p" else 0.9)
    if method == "plain":
        return 0.4
    return None if problem == "q" and seed % 2 else 0.85


@pytest.fixture(scope="module")
def found() -> tracks.TrackResults:
    one = played(arena(["p", "q"], ["good", "plain", "lost"], alone=["plain"]), score, gap=0.05)
    assert one.chosen["good", "p"] == 2 and one.chosen["plain", "p"] == 0
    return collected(one)


def test_costs_are_those_of_the_first_look_with_the_target(found: tracks.TrackResults) -> None:
    # On validation, "good" ends at 1.05 on p: 0.84 at the eighth of ten looks.
    assert found.costs["good"]["p"] == [80.0] * 3
    assert found.costs["plain"]["p"] == [None] * 3
    assert found.costs["lost"]["p"] == [90.0] * 3
    assert found.costs["lost"]["q"] == [90.0, None, 90.0]
    assert found.medians()["q"] == {"good": 90.0, "plain": None, "lost": 90.0}


def test_gaps_are_validation_minus_test_of_what_has_numbers(found: tracks.TrackResults) -> None:
    assert found.gaps["good"]["p"] == pytest.approx([0.05] * 3)
    assert found.gaps["lost"]["q"][1] is None
    assert found.gap("lost", "q") == pytest.approx(0.05)


def test_a_line_of_the_table_has_it_all(found: tracks.TrackResults) -> None:
    good, lost, plain = found.lines()
    assert [x.standing.row for x in (good, lost, plain)] == ["good", "lost", "plain"]
    assert (good.targets, lost.targets, plain.targets) == (2, 2, 0)
    assert (good.ratio, lost.ratio, plain.ratio) == (1.0, pytest.approx((90 / 80 + 1) / 2), None)
    assert good.one == pytest.approx((0.2 + 0.5 + 1.0 + 0.95) / 4 * 0.95)
    assert plain.one is None and plain.failed == 0  # one setting: nothing was drawn
    assert lost.failed == pytest.approx((0 + 1 / 2) / 2)  # tuning seeds 100 and 101 on q
    assert good.gap == pytest.approx(0.05)
    assert good.standing.regret == pytest.approx(0.8 * 0.95)
    assert good.standing.near == 2 / 4
    assert lost.standing.failures == 1


def test_rows_as_shipped_have_lines_of_their_own(found: tracks.TrackResults) -> None:
    rows = [x.standing.row for x in found.lines(tuned=False)]
    assert set(rows) == {"good as shipped", "plain as shipped", "lost as shipped"}
    assert rows[-1] == "good as shipped" and found.label(rows[-1]) == "Good as shipped"
    assert found.costs["good as shipped"]["p"] == [None] * 3


def test_pairs_and_ranks_are_of_the_tuned_and_have_a_block_a_problem(
    found: tracks.TrackResults,
) -> None:
    assert set(found.duels) == {("good", "plain"), ("good", "lost"), ("plain", "lost")}
    assert found.duels["good", "plain"].wins == 1.0 and found.duels["good", "plain"].p is None
    order = found.ranked()
    assert order.ranks == ((1.0, 3.0, 2.0), (1.0, 3.0, 2.0)) and order.ranking is None
    assert order.footnotes[0].startswith("Not tested: it would need 3 methods on 6 problems")


def test_from_six_problems_on_ranks_are_tested() -> None:
    one = played(arena([f"p{i}" for i in range(6)], ["good", "plain", "lost"]), score)
    order = collected(one).ranked()
    assert order.ranking is not None and order.ranking.blocks == 6
    assert order.ranking.p == pytest.approx(0.0024788, rel=1e-4)  # exp(-6): chi2 of 12, 2 degrees


def test_who_does_not_play_everywhere_is_left_out_and_named() -> None:
    one = played(arena(["p", "q"], ["good", "plain", "lost"]), score)
    finals = [
        replace(f, state="not applicable", record=None)
        if f.row.startswith("plain") and f.column == "q"
        else f
        for f in one.finals
    ]
    found = collected(replace(one, finals=finals))
    assert found.methods == ("good", "lost") and found.numbers == (0, 2)
    assert found.left_out == ("plain",)
    with pytest.raises(MetabenchError, match="nobody plays in track 'C' of small"):
        collected(one, "C")


def test_lost_runs_are_counted_on_the_problems_of_the_track() -> None:
    """ "lost" loses seed 1 on q, and all seeds on r of another track."""

    def two(method: str, problem: str, trial: int, seed: int) -> float | None:
        return None if method == "lost" and problem == "r" else score(method, problem, trial, seed)

    one = played(arena(["p", "q", "r"], ["good", "lost"], tracks={"r": "C"}), two)
    counts = {
        (track, tuned): {s.row: s.failures for line in lines for s in [line.standing]}
        for track in ("A", "C")
        for tuned in (True, False)
        for lines in [collected(one, track).lines(tuned)]
    }
    assert counts["A", True] == {"good": 0, "lost": 1}
    assert counts["A", False] == {"good as shipped": 0, "lost as shipped": 1}
    assert counts["C", True] == {"good": 0, "lost": 3}
    assert counts["C", False] == {"good as shipped": 0, "lost as shipped": 3}


def test_who_lost_every_seed_is_last_in_ranks_tests_and_the_second_readout() -> None:
    def crashing(method: str, problem: str, trial: int, seed: int) -> float | None:
        if method == "lost":
            return None if problem == "q" else 0.9
        return -3.0 if problem == "q" else 0.5

    one = played(arena(["p", "q"], ["poor", "lost"], anew=["p", "q"]), crashing)
    found = collected(one)
    assert found.scores["lost"]["q"] == [0.0] * 3
    assert found.ranked().ranks == ((2.0, 1.0), (1.0, 2.0))
    assert found.ranks_on("q", tuned=False) == [1.0, 2.0]
    assert {line.standing.row: line.standing.rank for line in found.lines()} == {
        "poor": 1.5, "lost": 1.5,
    }  # fmt: skip
    assert {s.row: (s.rank, s.failures) for s in found.retrained_standings()} == {
        "poor": (1.5, 0), "lost": (1.5, 3),
    }  # fmt: skip


def test_who_applies_to_no_problem_is_named() -> None:
    one = played(arena(["p", "q", "r"], ["good", "plain"], tracks={"r": "C"}), score)
    finals = [f for f in one.finals if not f.row.startswith("plain") or f.column == "r"]
    found = collected(replace(one, finals=finals))
    assert found.methods == ("good",) and found.nowhere == ("plain",) and found.left_out == ()
    assert collected(replace(one, finals=finals), "C").nowhere == ()
