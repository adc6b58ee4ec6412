"""Where a method stands in an arena: its own trials and finals beside those of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arena.contest import Contest
from metabench.api.arena.entrant import own_records, plan
from metabench.api.arena.played import Played, played
from metabench.core.errors import MetabenchError, SettingError, WrongPath
from metabench.core.settings import place
from metabench.core.text import counted
from metabench.store import published
from metabench.suites.arena.definition import AS_SHIPPED

if TYPE_CHECKING:
    from metabench.analysis.arena.entrant import Place


def check_baselines(contest: Contest) -> None:
    """Raise MetabenchError where no baseline could be compared with, WrongPath where that is for
    the file that was given: before hours of running."""
    found = _tracks(contest)
    if any(track.peers for track in found):
        return
    if contest.bad:
        more = f" (and {counted(len(contest.bad) - 1, 'fault')} more)" * (len(contest.bad) > 1)
        raise WrongPath(
            f"--baselines {contest.bad[0]}{more}: nothing is left of it to compare "
            f"{contest.entrant.id} with; without it the baselines are run by: {contest.command}"
        )
    why = dict.fromkeys(
        f"{m}: {name}: {', '.join(reasons)}"
        for track in found
        for m, of in track.left_out.items()
        for name, reasons in of.items()
    )
    raise MetabenchError(
        f"arena {contest.arena.name} has no baseline to compare with under budget "
        f"{contest.budget} ({'; '.join([*why][:3]) or 'it has none in these tracks'}): give their "
        f"records, --baselines FILE, or run them: {contest.command}"
    )


def places(contest: Contest) -> list[Place]:
    """Where the method stands in each of its tracks, tuned and as shipped: nowhere where every
    final of it has failed.

    Raises MetabenchError where cells of the method are missing, where all of its finals have
    failed, or as :func:`check_baselines`.
    """
    from metabench.analysis.arena import entrant as comparing
    from metabench.analysis.arena import scores as analysis

    check_baselines(contest)
    planned = plan(contest)
    if left := planned.left:
        raise MetabenchError(
            f"{counted(len(left), 'cell')} of {contest.entrant.id} are not done, the first "
            f"{left[0].row}/{left[0].column} seed {left[0].cell.seed}: {left[0].why}"
        )
    mine = played(
        contest.arena, contest.entrant, contest.budget, contest.store, contest.store.records(),
        contest.tuned,
    )  # fmt: skip
    found = []
    for track in _tracks(contest):
        failed = analysis.failed_throughout(planned.finals, track.problems)
        rows, names = (mine, *track.peers), track.problems
        trials = {(o.method.id, n): o.trials.get(n, ()) for o in rows for n in names}
        for tuned in (True, False) if contest.tuned else (False,):
            if contest.entrant.id + AS_SHIPPED * (not tuned) in failed:
                continue
            scores = {o.method.id: {n: o.scores[tuned][n] for n in names} for o in rows}
            found.append(
                comparing.Place(
                    track.name, tuned, contest.entrant.id, names, track.of,
                    analysis.standings(scores, trials),
                    comparing.against(scores, contest.entrant.id), track.left_out,
                )
            )  # fmt: skip
    if not found:
        raise MetabenchError(
            f"every final of {contest.entrant.id} failed, so that it stands nowhere; the same "
            "command tries them again"
        )
    return found


@dataclass(frozen=True)
class _Track:
    """A track: the problems in it that the method plays, of how many, and who else has records of
    all of these."""

    name: str
    problems: list[str]
    of: int
    peers: list[Played]
    left_out: dict[str, dict[str, list[str]]]


def _tracks(contest: Contest) -> list[_Track]:
    """The tracks in which the method plays."""
    planned = plan(contest)
    played = {p.column for p in planned.finals}
    found = []
    for track in dict.fromkeys(p.track for p in contest.arena.problems):
        of = [p.id for p in contest.arena.problems if p.track == track]
        if names := [name for name in of if name in played]:
            others = [o for o in contest.others if track in o.method.tracks]
            out = {o.method.id: w for o in others if (w := o.lacks_of(names) or o.failed_on(names))}
            peers = [o for o in others if o.method.id not in out]
            found.append(_Track(track, names, len(of), peers, out))
    return found


def check_output(contest: Contest, out: Path) -> Path:
    """Where the report goes. Raises SettingError for the folder of the baselines."""
    if contest.file is not None and out.resolve() == contest.file.resolve().parent:
        raise SettingError(
            f"--output {out} is the folder of the baselines: give another one for the report"
        )
    return out


def report(contest: Contest, found: Sequence[Place], out: str | Path) -> list[Path]:
    """Write ``standing.md``, ``standing.csv`` and ``records.jsonl.gz`` (the method's own) into the
    folder ``out``; their paths."""
    from metabench.api.output import made, write
    from metabench.reports.tables import entrant as drawing

    folder = made(check_output(contest, place("out", out)))
    own = own_records(contest)
    planned = plan(contest)
    about = drawing.About(
        contest.entrant, contest.arena, contest.budget, contest.quick,
        {**planned.refused, **planned.lacking}, [e.text for e in planned.endings],
    )  # fmt: skip
    return [
        write(folder / "standing.md", drawing.markdown(about, found)),
        write(folder / "standing.csv", drawing.as_csv(found)),
        published.publish(own, contest.store, folder / published.RECORDS),
    ]
