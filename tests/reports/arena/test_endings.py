"""What a standing does not say of runs: exceptions by reason, and runs that made no outer step."""

from __future__ import annotations

from dataclasses import replace

import arenas
import pytest

from metabench.analysis.arena import scores as scoring
from metabench.analysis.arena import track as arena_track
from metabench.core.errors import MetabenchError
from metabench.reports.arena.endings import endings, has_failed
from metabench.reports.arena.tables import standings_grid
from metabench.suites.planning import Planned


def ended(planned: Planned, status: str, reason: str = "", steps: int = 3) -> Planned:
    assert planned.record is not None
    record = replace(planned.record, status=status, reason=reason, steps=steps)  # type: ignore[arg-type]
    return replace(planned, state=status, record=record)  # type: ignore[arg-type]


@pytest.fixture
def played() -> arenas.Played:
    """Two methods on two problems, three seeds: 24 rows of finals; "one" played as shipped."""
    known = arenas.arena(["p", "q"], ["one", "two"], alone=["one"])
    return arenas.played(known, lambda *_: 0.5)


def test_each_exception_is_told_once_with_whose_it_is(played: arenas.Played) -> None:
    def broken(p: Planned) -> Planned:
        if not p.row.startswith("one"):
            return p
        return ended(p, "failed", "ValueError: my own bug" if p.column == "p" else "KeyError: 'x'")

    runs = len({p.cell.key for p in played.finals})
    finals = [broken(p) for p in played.finals]
    said = endings(played.trials, finals)
    assert [e.text for e in said] == [
        f"3 of {runs} finals failed (one on p): ValueError: my own bug",
        f"3 of {runs} finals failed (one on q): KeyError: 'x'",
    ]
    assert [e.failed.task_settings["dim"] for e in said if e.failed] == [2, 3]
    assert has_failed(finals) and not has_failed(played.finals)
    alone = [p for p in finals if p.row.startswith("one") and p.column == "p"]
    (only,) = endings([], alone)
    assert only.text == "3 of 3 finals failed: ValueError: my own bug"
    trials = [broken(p) for p in played.trials]
    assert endings(trials, played.finals)[0].text.startswith(f"2 of {len(trials)} trials failed (")


def test_runs_without_an_outer_step_are_told(played: arenas.Played) -> None:
    assert endings(played.trials, played.finals) == []
    idle = [ended(p, "done", steps=0) if p.column == "q" else p for p in played.finals]
    runs = len({p.cell.key for p in played.finals})
    n = len({p.cell.key for p in idle if p.column == "q"})
    (said,) = endings(played.trials, idle)
    assert (
        said.text == f"{n} of {runs} finals made no outer step within the cap: one on q; two on q"
    )
    assert said.failed is None
    lost = [ended(p, "diverged", "nan", steps=0) for p in played.finals]
    assert endings(played.trials, lost) == [], "the table counts them as lost"


def test_who_failed_throughout_stands_nowhere(played: arenas.Played) -> None:
    def track(finals: list[Planned]) -> arena_track.TrackResults:
        return arena_track.collect(
            played.arena, played.scores, finals, played.metrics, "A", played.curve
        )

    def failing(rows: tuple[str, ...], but: str = "") -> list[Planned]:
        return [
            ended(p, "failed", "KeyError") if p.row in rows and p.column != but else p
            for p in played.finals
        ]

    both = ("one", "one as shipped")
    found = track(failing(both))
    assert found.methods == ("two",) and found.failed == ("one",) and found.left_out == ()
    assert "Left out, every final failed: One." in [f.text for f in standings_grid(found).footnotes]
    # A problem that some of its runs stand on, or numbers that were lost, are results.
    assert track(failing(both, but="q")).methods == ("one", "two")
    lost = [ended(p, "diverged", "nan") if p.row in both else p for p in played.finals]
    assert track(lost).methods == ("one", "two") and track(lost).failed == ()
    assert scoring.failed_throughout(failing(("one",)), ["p", "q"]) == {"one"}
    everybody = failing((*both, "two", "two as shipped"))
    with pytest.raises(MetabenchError, match="every final of track 'A' of small failed"):
        track(everybody)
