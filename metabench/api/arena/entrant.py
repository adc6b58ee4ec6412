"""The cells of a method that enters an arena: how its trials and finals stand, and running them.

Counted cost does not depend on the machine, so that records of any machine count; seconds are
compared nowhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from metabench.api.arena import tournament
from metabench.api.arena.contest import Contest
from metabench.api.arena.played import as_shipped
from metabench.core.cell import Cell, canonical
from metabench.core.errors import MetabenchError, NotApplicable
from metabench.store.record import Record
from metabench.suites import planning as plans
from metabench.suites.planning import NEVER_RUN, TO_RUN, Planned

if TYPE_CHECKING:
    from metabench.reports.arena.endings import Ending
    from metabench.run.events import Listener
    from metabench.run.workers.local_launcher import Summary

OUT_OF_REACH = frozenset({"missing data", "missing package", "closed"})
"""States of cells that this machine cannot run; their problems are left out, and named."""


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
        return [p for p in (*self.trials, *self.finals) if p.state in tournament.TO_COME]

    @property
    def to_play(self) -> list[Planned]:
        """What is run next time, trials first: also what has failed."""
        return [p for p in (*self.trials, *self.finals) if p.state in tournament.TO_PLAY]

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


def plan(contest: Contest) -> Plan:
    """The method's cells and how they stand; nothing is run. Seconds of cells of which nothing like
    them has been run are those that the baselines took on the problem, wherever they were run.

    Raises NotApplicable where the method applies to no problem.
    """
    from metabench.analysis.arena import scores as analysis

    own, store, budget = contest.own, contest.store, contest.budget
    records = store.records()
    first = {(contest.entrant.id, p.id): 0 for p in own.problems}
    shipped = plans.plan(as_shipped(own.finals(budget, first)), store, records)
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
    chosen = analysis.choose(analysis.trials_of(own, trials, tournament.metrics(own)))
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
        done.append(tournament.play(cells, contest.store, jobs, device, listener))
        if done[-1].interrupted:
            break
    return done


def own_records(contest: Contest) -> list[Record]:
    """The records of the method's trials and finals, each once."""
    planned = plan(contest)
    found = {p.record.key: p.record for p in (*planned.trials, *planned.finals) if p.record}
    return [*found.values()]


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
