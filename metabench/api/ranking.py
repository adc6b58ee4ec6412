"""Where a method stands in an arena: its own trials and finals are run, the baselines' are read.

Counted cost does not depend on the machine, so that records of any machine count; seconds are
compared nowhere. Records of baselines are read into memory and written into no store.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api import arena as verbs
from metabench.api.verbs import open_store
from metabench.cluster import hints
from metabench.core.capabilities import causes
from metabench.core.catalogue import arena_names
from metabench.core.cell import Cell, canonical
from metabench.core.errors import (
    MetabenchError,
    NotApplicable,
    SettingError,
    SuiteError,
    WrongPath,
)
from metabench.core.settings import place
from metabench.core.text import counted
from metabench.store import published
from metabench.store.published import Published
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites import arena_scores
from metabench.suites import entrant as entrants
from metabench.suites import planning as plans
from metabench.suites.arena import AS_SHIPPED, Arena, ArenaMethod, Chosen
from metabench.suites.arena_scores import ArenaScores
from metabench.suites.entrant import Source
from metabench.suites.planning import NEVER_RUN, TO_RUN, Planned
from metabench.suites.suite import SuiteCell

if TYPE_CHECKING:
    from metabench.analysis.arena import Trial
    from metabench.analysis.entrant import Place
    from metabench.reports.arena.endings import Ending
    from metabench.run.events import Listener
    from metabench.run.workers.local_launcher import Summary

OUT_OF_REACH = frozenset({"missing data", "missing package", "closed"})
"""States of cells that this machine cannot run; their problems are left out, and named."""


@dataclass(frozen=True)
class Contest:
    """A method, the arena that it enters (with its problems narrowed down), the budget, and what
    is known of the baselines: records by key, the file that they are from (None: the store)."""

    arena: Arena
    entrant: ArenaMethod
    source: Source
    budget: str
    store: Store
    baselines: Mapping[str, Record]
    file: Path | None = None
    bad: Sequence[str] = ()
    """What of the file does not count, and why."""
    quick: bool = False
    typed: str = ""
    """The name of the arena, or its file."""

    @property
    def command(self) -> str:
        """What to type to run the baselines."""
        return hints.command(["arena", self.typed, "--budget", self.budget], self.store.root)

    @property
    def tuned(self) -> bool:
        """Whether the method has a space and trials to search it with."""
        return bool(self.entrant.space) and self.arena.budget(self.budget).trials > 1

    @property
    def own(self) -> Arena:
        """The arena with the method alone."""
        return replace(self.arena, methods=[self.entrant])

    @cached_property
    def others(self) -> list[_Played]:
        """What the baselines have played."""
        return [_played(self, m, self.baselines.values(), True) for m in self.arena.methods]


@dataclass(frozen=True)
class Plan:
    """The cells of the method. ``finals`` has those as shipped, and those of the trial that is
    chosen once no trial is missing. ``to_come``: seconds of the finals that nobody has chosen yet
    (None: not known) and their number. ``refused``: problem to the reason why the method does not
    apply; ``lacking``: to what this machine lacks, where it would apply."""

    trials: list[Planned]
    finals: list[Planned]
    to_come: tuple[float | None, int] = (None, 0)
    refused: Mapping[str, str] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)

    @property
    def left(self) -> list[Planned]:
        """What has not ended, trials first: as long as there is some, nobody is ranked."""
        return [p for p in (*self.trials, *self.finals) if p.state in verbs.TO_COME]

    @property
    def to_play(self) -> list[Planned]:
        """What is run next time, trials first: also what has failed."""
        return [p for p in (*self.trials, *self.finals) if p.state in verbs.TO_PLAY]

    @property
    def endings(self) -> list[Ending]:
        """How runs have ended where a standing does not say it, in words."""
        from metabench.reports.arena.endings import endings

        return endings(self.trials, self.finals)

    @property
    def has_failed(self) -> bool:
        """Whether a run of these ended in an exception."""
        from metabench.reports.arena.endings import has_failed

        return has_failed([*self.trials, *self.finals])


def default_arena() -> str:
    """The newest built-in arena. Raises SuiteError where there is none."""
    names = arena_names()
    if not names:
        raise SuiteError(
            "there is no built-in arena here: give the path of an arena's .toml file; "
            "docs/arena.md says how to write one"
        )
    return names[-1]


def contest(
    file_or_name: str,
    *,
    method: str | None = None,
    arena: str | Path | None = None,
    baselines: str | Path | None = None,
    space: str | Path | None = None,
    quick: bool = False,
    budget: str | None = None,
    store: str | Path | Store | None = None,
) -> Contest:
    """What is to be ranked, against whom: nothing is run. ``arena``: a name or a file, the newest
    built-in one where it is None; ``budget``: None is :func:`metabench.api.arena.default_budget`;
    ``baselines``: a file of published scores or records, or a store, beside those of the store; of
    a built-in arena None means those that ship with it.

    Raises what :mod:`metabench.suites.entrant` and :func:`metabench.suites.arena.load` raise, and
    StoreError for a file of records that cannot be read.
    """
    source = entrants.find(file_or_name, method)
    name = default_arena() if arena is None else arena
    whole = verbs.load(name)
    budget = budget or verbs.default_budget(whole)
    made = entrants.entrant(whole, source.name, space)
    narrow = entrants.narrowed(whole, budget, quick)
    kept = open_store(store)
    known = {r.key: r for r in kept.records()}
    file: Path | None = None
    given: Store | Published | ArenaScores | None
    if baselines is not None:
        file = place("--baselines", baselines)
        given = _baselines(file, whole, budget)
    elif (given := verbs.shipped(whole, budget)) is not None:
        file = given.root
    bad: list[str] = []
    if given is not None:
        bad = [str(b) for b in given.problems()]
        bad += given.outdated() if isinstance(given, ArenaScores) else []
        records = given.records()
        if not records and not bad:
            bad.append(f"{file}: there is no record in it")
        known |= {r.key: r for r in records}
    typed = hints.absolute(name if isinstance(name, Path) else str(name))
    return Contest(narrow, made, source, budget, kept, known, file, bad, quick, typed)


def _baselines(path: Path, arena: Arena, budget: str) -> Store | Published | ArenaScores:
    if path.is_dir():
        return Store(path)
    return ArenaScores(path, arena, budget) if arena_scores.is_one(path) else Published(path)


def plan(contest: Contest) -> Plan:
    """The method's cells and how they stand; nothing is run. Seconds of cells of which nothing like
    them has been run are those that the baselines took on the problem, wherever they were run.

    Raises NotApplicable where the method applies to no problem.
    """
    from metabench.analysis import arena as analysis

    own, store, budget = contest.own, contest.store, contest.budget
    records = store.records()
    first = {(contest.entrant.id, p.id): 0 for p in own.problems}
    shipped = plans.plan(_as_shipped(own.finals(budget, first)), store, records)
    refused, lacking = _out(shipped)
    played = [p for p in own.problems if p.id not in refused and p.id not in lacking]
    if not played:
        raise _plays_nowhere(contest, refused, lacking)
    own = replace(own, problems=played)
    seconds = _seconds(contest)
    shipped = _estimated([p for p in shipped if p.column not in {*refused, *lacking}], seconds)
    if not contest.tuned:
        return Plan([], shipped, (0.0, 0), refused, lacking)
    trials = _estimated(plans.plan(own.trials(budget), store, records), seconds)
    if any(p.record is None for p in trials):
        known = [p.estimated_seconds for p in shipped]
        each = [seconds.get(p.column) or p.estimated_seconds for p in shipped]
        told = [s for s in each if s is not None]
        return Plan(
            trials, shipped, (sum(told) if len(told) == len(each) else None, len(known)),
            refused, lacking,
        )  # fmt: skip
    chosen = analysis.choose(analysis.trials_of(own, trials, verbs.metrics(own)))
    finals = plans.plan(own.finals(budget, chosen), store, records)
    return Plan(trials, _estimated(finals, seconds), (0.0, 0), refused, lacking)


def run(
    contest: Contest,
    *,
    jobs: int = 1,
    device: str | None = None,
    listener: Listener | None = None,
) -> list[Summary]:
    """Run what is missing of the method: the trials, then the finals, unless it is interrupted.
    What is done is read, and what has failed is tried again."""
    done: list[Summary] = []
    for finals in (False, True):
        planned = plan(contest)
        cells = planned.finals if finals else planned.trials
        done.append(verbs.play(cells, contest.store, jobs, device, listener))
        if done[-1].interrupted:
            break
    return done


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
    from metabench.analysis import arena as analysis
    from metabench.analysis import entrant as comparing

    check_baselines(contest)
    planned = plan(contest)
    if left := planned.left:
        raise MetabenchError(
            f"{counted(len(left), 'cell')} of {contest.entrant.id} are not done, the first "
            f"{left[0].row}/{left[0].column} seed {left[0].cell.seed}: {left[0].why}"
        )
    mine = _played(contest, contest.entrant, contest.store.records(), contest.tuned)
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
    peers: list[_Played]
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


def own_records(contest: Contest) -> list[Record]:
    """The records of the method's trials and finals, each once."""
    planned = plan(contest)
    found = {p.record.key: p.record for p in (*planned.trials, *planned.finals) if p.record}
    return [*found.values()]


@dataclass(frozen=True)
class _Played:
    """What a method has of the arena, by problem: its trials, what it lacks, and by whether it was
    tuned its scores in the finals, None for a run without numbers."""

    method: ArenaMethod
    trials: Mapping[str, Sequence[Trial]]
    scores: Mapping[bool, Mapping[str, Sequence[float | None]]]
    lacks: Mapping[str, list[str]]
    finals: Sequence[Planned]

    def lacks_of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Those of these problems on which it is not compared, and why."""
        out = [n for n in names if not all(n in self.scores[tuned] for tuned in (True, False))]
        return {n: self.lacks.get(n, ["the arena does not have it play there"]) for n in out}

    def failed_on(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The same for one of which every final on these problems has failed."""
        from metabench.analysis.arena import failed_throughout

        rows = failed_throughout(self.finals, names)
        return {n: ["every final failed"] for n in names if self.method.id in rows}


def _played(
    contest: Contest, method: ArenaMethod, records: Iterable[Record], tuned: bool
) -> _Played:
    from metabench.analysis import arena as analysis

    own, records = replace(contest.arena, methods=[method]), list(records)
    lacks: dict[str, list[str]] = {}
    metrics = verbs.metrics(own)

    def whole(cells: Sequence[SuiteCell]) -> list[Planned]:
        """The cells of the problems on which none is missing."""
        planned = plans.states_of(cells, contest.store, records)
        for p in planned:
            if p.state in NEVER_RUN:
                lacks.setdefault(p.column, causes(p.reason, method.method))
            elif p.record is None:
                lacks.setdefault(p.column, ["records are missing"])
        return [p for p in planned if p.column not in lacks]

    trials: dict[tuple[str, str], Sequence[Trial]] = {}
    chosen: Chosen = {(method.id, p.id): 0 for p in own.problems}
    if tuned:
        trials = dict(analysis.trials_of(own, whole(own.trials(contest.budget)), metrics))
        chosen = analysis.choose(trials)
        own = replace(own, problems=[p for p in own.problems if (method.id, p.id) in chosen])
    cells = own.finals(contest.budget, chosen)
    finals = whole(cells if tuned else _as_shipped(cells))
    scores = analysis.finals_scores(own, finals, metrics)
    return _Played(
        method,
        {name: of for (_, name), of in trials.items()},
        {True: scores.get(method.id, {}), False: scores.get(method.id + AS_SHIPPED, {})},
        lacks,
        finals,
    )


def _as_shipped(cells: Iterable[SuiteCell]) -> list[SuiteCell]:
    return [c for c in cells if c.row.endswith(AS_SHIPPED)]


def _out(planned: Iterable[Planned]) -> tuple[dict[str, str], dict[str, str]]:
    """Problems that the method does not apply to, and those out of this machine's reach."""
    refused = {p.column: p.reason for p in planned if p.state in NEVER_RUN}
    lacking = {p.column: p.why for p in planned if p.state in OUT_OF_REACH and p.record is None}
    return refused, lacking


def _plays_nowhere(
    contest: Contest, refused: Mapping[str, str], lacking: Mapping[str, str]
) -> MetabenchError:
    reasons: dict[str, list[str]] = {}
    for name, why in {**refused, **lacking}.items():
        reasons.setdefault(why, []).append(name)
    told = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    if lacking:
        return MetabenchError(f"no problem of {contest.arena.name} can be run here: {told}")
    return NotApplicable(
        f"{contest.entrant.id} applies to no problem of arena {contest.arena.name}: {told}"
    )


def _seconds(contest: Contest) -> dict[str, float]:
    """Problem to the median seconds of the baselines' finished runs on it, where there are some:
    all have the same counted cost to spend."""
    spent: dict[str, list[float]] = {}
    for r in contest.baselines.values():
        if r.status == "done":
            took = r.cost.get("seconds", 0.0) + r.cost.get("evaluation_seconds", 0.0)
            spent.setdefault(_problem(r.cell), []).append(took)
    first = {(contest.entrant.id, p.id): 0 for p in contest.arena.problems}
    cells = contest.own.finals(contest.budget, first)
    keys = {c.column: _problem(c.cell) for c in cells}
    return {name: statistics.median(spent[key]) for name, key in keys.items() if key in spent}


def _problem(cell: Cell) -> str:
    return canonical([cell.task, cell.task_settings, cell.budget])


def _estimated(planned: Iterable[Planned], seconds: Mapping[str, float]) -> list[Planned]:
    return [
        replace(p, estimated_seconds=seconds[p.column], similar=1)
        if p.state in TO_RUN and p.estimated_seconds is None and p.column in seconds
        else p
        for p in planned
    ]


def outdated(contest: Contest) -> int:
    """How many cells of the method were run before its file was last changed. Keys hold settings
    and no code: nothing but the time of the change tells."""
    if contest.source.file is None:
        return 0
    changed = contest.source.file.stat().st_mtime
    mine = [r for r in contest.store.records() if r.cell.method == contest.source.name]
    return sum(datetime.fromisoformat(r.started).timestamp() < changed for r in mine if r.started)


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
