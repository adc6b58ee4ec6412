"""Tests of ranks below an arena's table: who is marked, what is said; and the figure agrees."""

import csv
import io

import pytest
from arenas import arena, played
from matplotlib.text import Text

from metabench.analysis.arena.track import TrackResults, collect
from metabench.reports.arena import scores, tables
from metabench.reports.figures.style import styled
from metabench.reports.tables.renderers import WORSE, Grid

METHODS = ("first", "second", "third", "last")
SIX = tuple(f"p{i}" for i in range(6))


def track(place, problems: tuple[str, ...] = SIX, methods: tuple[str, ...] = METHODS, **words):
    """``place(method, problem)``: the score that a method has there in every run."""
    made = arena(problems, methods, **words)
    one = played(made, lambda method, problem, trial, seed: place(method, int(problem[1:])))
    return collect(one.arena, one.scores, one.finals, one.metrics, "A", one.curve)


def in_turn(method: str, problem: int) -> float:
    """Every method is as often first as last."""
    return 0.1 + 0.2 * ((METHODS.index(method) + problem) % len(METHODS))


def alike(method: str, problem: int) -> float:
    return 0.5


def one_behind(method: str, problem: int) -> float:
    """The last one is so everywhere, and the others take turns."""
    return 0.0 if method == "last" else 0.4 + 0.1 * ((METHODS.index(method) + problem) % 3)


def marked(grid: Grid) -> set[str]:
    return {row[0].text for row in grid.rows if any(item.worse for item in row)}


def note(grid: Grid) -> str:
    (found,) = [
        f.text for f in grid.footnotes if "Tests of the" in f.text or "Not tested" in f.text
    ]
    return found


@pytest.mark.parametrize("place", [in_turn, alike])
def test_equal_methods_have_no_mark(place) -> None:
    # Twelve problems, so that each has every place equally often.
    found = track(place, tuple(f"p{i}" for i in range(12)))
    for tuned in (True, False):
        grid = tables.standings_grid(found, tuned)
        assert marked(grid) == set()
        assert (
            "chi-squared is 0.0 with 3 degrees of freedom, p = 1. Two mean ranks would have to"
            in (note(grid))
        )
        assert "No row is shown to be worse than another." in note(grid)
        assert "The Friedman test finds no difference" in note(grid)
        assert WORSE not in note(grid)


def test_who_is_behind_everywhere_is_marked_and_named() -> None:
    """Mean ranks 2, 2, 2 and 4 over six problems: 12 / (6 4 5) (12^2 3 + 24^2) - 3 6 5 = 10.8."""
    found = track(one_behind, anew=SIX)
    for grid in (
        tables.standings_grid(found),
        tables.standings_grid(found, tuned=False),
        tables.retrained_grid(found),
    ):
        assert marked(grid) == {"Last"}
        rank = next(row[1] for row in grid.rows if row[0].text == "Last")
        assert rank.worse and rank.text == "4.00"
        said = note(grid)
        assert (
            "a block a problem (6, means over seeds): Friedman's chi-squared is 10.8 with" in said
        )
        assert "3 degrees of freedom, p = 0.013." in said
        assert (
            "differ at 5 % for all pairs together (Nemenyi) where they lie more than 1.91" in said
        )
        assert (
            f'{WORSE}: shown to be worse than some other row: "Last" than the first 3 rows.' in said
        )


def test_table_and_figure_say_the_same() -> None:
    """The bar of the diagram joins those without a mark, and its numbers are those of the note."""
    found = track(one_behind)
    order = found.ranked()
    assert order.ranking is not None and order.ranking.cliques() == [(0, 1, 2)]
    with styled():
        figure = scores.difference_figure(found)
    shown = " ".join(t.get_text() for t in figure.findobj(Text))
    said = note(tables.standings_grid(found))
    assert "critical difference 1.91" in shown and "more than 1.91 apart" in said
    assert "p = 0.013" in shown and "p = 0.013" in said


@pytest.mark.parametrize(
    ("problems", "methods"), [(SIX[:5], METHODS), (SIX, ("first", "last"))], ids=["few", "two"]
)
def test_too_little_is_not_tested_and_it_is_said_why(problems, methods) -> None:
    found = track(one_behind, problems, methods)
    for tuned in (True, False):
        grid = tables.standings_grid(found, tuned)
        assert marked(grid) == set()
        assert note(grid) == found.ranked().footnotes[0]
        assert f"there are {len(methods)} on {len(problems)}." in note(grid)


def of_csv(found: TrackResults) -> dict[str, str]:
    text = tables.csv_of(tables.STANDINGS, tables.standings_lines(found))
    return {x["row"]: x["rows_shown_better"] for x in csv.DictReader(io.StringIO(text))}


def test_the_csv_says_how_many_rows_are_better() -> None:
    assert of_csv(track(one_behind)) == {
        f"{m}{ruleset}": "3" if m == "last" else "0"
        for m in METHODS
        for ruleset in ("", " as shipped")
    }
    assert set(of_csv(track(one_behind, SIX[:5])).values()) == {""}
