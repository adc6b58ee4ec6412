"""The page of three methods ranked on arena-1 follows from its CSV, and says what that has."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))  # benchmarks/ is no package that is installed
from benchmarks.studies import arena_entrants as study

RESULTS = study.ROOT / "results" / study.ARENA
AGAIN = "python -m benchmarks.studies.arena_entrants --store DIR"


def committed(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lines() -> list[study.Line]:
    return study.read(committed("entrants.csv"))


def test_the_committed_page_follows_from_the_committed_rows(lines: list[study.Line]) -> None:
    copied = study.read(committed("copy.csv"))
    assert committed("entrants.md") == study.rendered(lines, copied), AGAIN
    assert study.written(lines) == committed("entrants.csv")
    assert len(copied) == 40
    assert [p.entrant for p in study.places(lines)] == [
        e.name for e in study.ENTRANTS for _ in range(4)
    ]


def test_the_rows_beside_them_are_the_baselines_that_ship(lines: list[study.Line]) -> None:
    """In each table the same other rows, of which none is an entrant."""
    names = {e.name for e in study.ENTRANTS}
    for place in study.places(lines):
        rows = [r["row"] for r in place.rows]
        assert len(rows) == len(set(rows)) > 15 and names & {*rows} == {place.entrant}


@pytest.mark.parametrize("entrant", study.ENTRANTS, ids=lambda e: e.name)
def test_the_files_of_the_commands_are_there(entrant: study.Entrant) -> None:
    words = shlex.split(" ".join(entrant.command()))
    files = [study.ROOT / word for word in words if "/" in word]
    assert files and all(file.is_file() for file in files)


def row(name: str, rank: float, verdict: str = "", entrant: str = study.BAD) -> study.Line:
    words = {"row": name, "rank": str(rank), "verdict_seeds": verdict, "score": "0.1", "low": "0"}
    return words | {
        "high": "0.2", "entrant": entrant, "track": "A", "ruleset": "tuned", "problems": "2"
    }  # fmt: skip


def test_who_is_last_and_who_ties_is_read_off_the_rows() -> None:
    good, shared = row("good", 1.0, "worse"), row("shared", 2.5, "not told apart")
    (place,) = study.places([good, shared, row(study.BAD, 2.5)])
    assert place.number == 2 and not place.is_last and place.others("worse") == ["good"]
    (said,) = study.verdicts([place])[1:]
    assert said.startswith("forgetful is last in 0 of 1 tables; it is not behind shared.")
    assert said.endswith("shown better than nobody.")
    (last,) = study.places([good, shared, row(study.BAD, 3.0)])
    assert last.is_last and study.verdicts([last])[1].startswith(
        "forgetful is last in 1 of 1 tables."
    )
    copy = [row("bilevel", 1.0, "equal", "renamed"), row("renamed", 1.0, entrant="renamed")]
    assert study.verdicts([*study.places(copy)])[0] == (
        "renamed is equal to bilevel in 1 of 1 tables."
    )
    copy[0] = {**row("bilevel", 2.0, "not told apart", "renamed"), "p_seeds": "0.5"}
    assert study.verdicts([*study.places(copy)])[0] == (
        "renamed is equal to bilevel in 0 of 1 tables; in A, tuned, it is not told apart from it "
        "(p = 0.5), with mean ranks 1.00 and 2.00."
    )


def test_finals_are_the_same_to_the_last_bit_or_are_not() -> None:
    def final(problem: str, *values: str) -> study.Line:
        return dict(zip(study.COPY, (problem, "0", *values, "-0.5"), strict=True))

    said = study.of_the_copy(
        [final("one", "0.5", "0.6", "0.6"), final("one", "0.5", "0.5", "0.5000000000000001"),
         final("two", "0.25", "0.25", "0.25")]
    )  # fmt: skip
    assert "Of the 3 tuned finals" in said and "to the last bit in 2 where" in said
    assert said.endswith("(in scores): 0.2 on one, 0 on two.")
