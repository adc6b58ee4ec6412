"""An arena's verbs: plan, run and rank. Trials first; once all are done, the finals they chose."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arguments import DEFAULT_BUDGET, open_store
from metabench.api.running import run_planned
from metabench.core.catalogue import arena_names, published_folder
from metabench.core.environment import garbage
from metabench.core.errors import MetabenchError, StoreError, SuiteError
from metabench.core.text import counted
from metabench.store.store import Store
from metabench.suites import planning as plans
from metabench.suites.arena import definition as arenas
from metabench.suites.arena import scores as arena_scores
from metabench.suites.arena.definition import Arena, Chosen
from metabench.suites.arena.recalled import recall
from metabench.suites.arena.scores import ArenaScores
from metabench.suites.planning import NEVER_RUN, Planned

if TYPE_CHECKING:
    from metabench.analysis.arena.scores import Standing, Trials
    from metabench.analysis.arena.track import TrackResults
    from metabench.reports.tables.renderers import Grid
    from metabench.run.events import Listener
    from metabench.run.workers.local_launcher import Summary
    from metabench.store.record import Curve, Record

TO_COME = frozenset({"open", "running", "timeout"})
"""States of the cells that have not ended."""
TO_PLAY = TO_COME | {"failed"}
"""States of the cells that are run. One that has diverged has its score: it would diverge again.
One that has failed shows an exception in somebody's code, which may be mended by now."""


@dataclass(frozen=True)
class Plan:
    """How the cells of an arena stand. ``chosen`` and ``finals`` are empty until no trial is
    missing; ``shipped`` are the scores that came with the arena, beside the records of the
    store."""

    arena: Arena
    trials: list[Planned]
    finals: list[Planned]
    scores: Trials
    chosen: Chosen
    shipped: ArenaScores | None = None


def default_arena() -> str:
    """The newest built-in arena. Raises SuiteError where there is none."""
    names = arena_names()
    if not names:
        raise SuiteError(
            "there is no built-in arena here: give the path of an arena's .toml file; "
            "docs/arena.md says how to write one"
        )
    return names[-1]


def load(arena: str | Path | Arena) -> Arena:
    """The arena that a verb is given. Raises SuiteError."""
    return arena if isinstance(arena, Arena) else arenas.load(Path(arena))


def shipped(arena: Arena, budget: str) -> ArenaScores | None:
    """The scores that ship with a built-in arena under this budget; None where there are none.

    Raises StoreError for a file that is damaged: nobody is to be ranked by a part of it.
    """
    if not ships(arena, budget):
        return None
    found = ArenaScores(published_folder(arena.name, budget) / arena_scores.FILE, arena, budget)
    if bad := found.problems():
        raise StoreError(f"{bad[0]}; what ships with {arena.name} is to be installed again")
    return found


def ships(arena: Arena, budget: str) -> bool:
    """Whether scores ship with an arena under this budget."""
    if arena.name not in arena_names():
        return False
    return (published_folder(arena.name, budget) / arena_scores.FILE).is_file()


def default_budget(arena: Arena) -> str:
    """ "laptop", unless only other budgets have scores that ship with the arena: then the first of
    these, so that there is somebody to compare with."""
    ship = [budget for budget in arena.budgets if ships(arena, budget)]
    return ship[0] if ship and DEFAULT_BUDGET not in ship else DEFAULT_BUDGET


def other_budgets(arena: Arena, budget: str, store: Store, *, anew: bool = False) -> str:
    """Which budgets other than this one have records, as the end of an error; "" where none has.
    ``anew``: records that ship with the arena do not count."""
    told = ""
    for name in arena.budgets:
        if name != budget:
            found = plan(arena, budget=name, store=store, anew=anew)
            kept = {p.cell.key for p in (*found.trials, *found.finals) if p.record is not None}
            if kept:
                told += f"; budget {name} has {counted(len(kept), 'record')}: --budget {name}"
    return told


@garbage.uncollected()  # thousands of cells and records are made here, and all are kept
def plan(
    arena: str | Path | Arena,
    *,
    budget: str,
    store: str | Path | Store | None = None,
    anew: bool = False,
    scores: ArenaScores | None = None,
) -> Plan:
    """Every trial, and every final that the finished trials choose; nothing is run. ``scores``
    (None: those that ship with the arena) count as the store's records do, unless ``anew``.

    Raises StoreError as :func:`shipped`.
    """
    from metabench.analysis.arena import scores as analysis

    arena, store = load(arena), open_store(store)
    recall(arena, budget)
    came = None if anew else scores or shipped(arena, budget)
    records = [*joined(came.records() if came is not None else (), store).values()]
    trials = plans.plan(arena.trials(budget), store, records, TO_PLAY)
    possible = [p for p in trials if p.state not in NEVER_RUN]
    if any(p.record is None for p in possible):
        return Plan(arena, trials, [], {}, {}, came)
    of_trials = analysis.trials_of(arena, possible, metrics(arena))
    chosen = analysis.choose(of_trials)
    finals = plans.plan(arena.finals(budget, chosen), store, records, TO_PLAY)
    return Plan(arena, trials, finals, of_trials, chosen, came)


def joined(came: Iterable[Record], store: Store) -> dict[str, Record]:
    """Key to record of those that came with an arena or as its baselines, and of the store's own: a
    finished one of the store is the one that counts."""
    known = {r.key: r for r in came}
    return known | {r.key: r for r in store.records() if r.status == "done" or r.key not in known}


def curve(plan: Plan, store: Store, record: Record) -> Curve:
    """The learning curve of a record of the plan, from the store or from what came with it."""
    came = plan.shipped
    if came is not None and came.get(record.key) is record:
        return came.curve(record)
    return store.curve(record)


def metrics(arena: Arena) -> dict[str, str]:
    """Problem to the metric of its task."""
    return arena.metrics


def run(
    arena: str | Path | Arena,
    *,
    budget: str,
    store: str | Path | Store | None = None,
    jobs: int = 1,
    device: str | None = None,
    listener: Listener | None = None,
    anew: bool = False,
) -> list[Summary]:
    """Run what is missing: the trials, then the finals; what has failed is tried again, what has
    diverged stays as it is. ``anew``: also what has scores that ship with the arena.

    Raises MetabenchError where trials are left that cannot be run here, or that were stopped.
    """
    arena, store = load(arena), open_store(store)
    done = []
    first = plan(arena, budget=budget, store=store, anew=anew)
    done.append(play(own(first, first.trials), store, jobs, device, listener))
    then = plan(arena, budget=budget, store=store, anew=anew)
    if not then.finals:
        left = [p for p in then.trials if p.record is None and p.state not in NEVER_RUN]
        raise MetabenchError(
            f"{counted(len(left), 'trial cell')} of {arena.name} not done, so nobody is chosen for "
            f"the finals; the first is {left[0].row}/{left[0].column} seed "
            f"{left[0].cell.seed}: {left[0].why}"
        )
    done.append(play(own(then, then.finals), store, jobs, device, listener))
    return done


def own(plan: Plan, planned: list[Planned]) -> list[Planned]:
    """Without those whose records came with the arena: the store has none, and would run them."""
    came = plan.shipped
    return [
        p
        for p in planned
        if came is None or p.record is None or came.get(p.cell.key) is not p.record
    ]


def due(plan: Plan, states: Collection[str] = TO_COME) -> tuple[str, list[Planned]]:
    """What is to be run now: "trials" as long as one of them is in ``states`` or stands in the way
    of the finals, then "finals"."""
    if not plan.finals or any(p.state in states for p in plan.trials):
        return "trials", plan.trials
    return "finals", plan.finals


def play(
    planned: list[Planned],
    store: Store,
    jobs: int,
    device: str | None,
    listener: Listener | None,
) -> Summary:
    """Run the cells of a plan that have no score, or have failed."""
    ready = [p for p in planned if p.state == "done" or p.state in TO_PLAY]
    return run_planned(ready, store, jobs=jobs, device=device, listener=listener)


def standings(plan: Plan, *, track: str, tuned: bool = True) -> list[Standing]:
    """Where the methods of a track stand in the finals, tuned or as shipped, the best first; one of
    which every final has failed stands nowhere.

    Raises MetabenchError where finals are missing, or where nobody plays in the track.
    """
    from metabench.analysis.arena import scores as analysis
    from metabench.analysis.arena.track import playing

    problems = [p.id for p in plan.arena.problems if p.track == track]
    scores = analysis.finals_scores(plan.arena, plan.finals, metrics(plan.arena))
    failed = analysis.failed_throughout(plan.finals, problems)
    scores = {row: of for row, of in scores.items() if row not in failed}
    of_ruleset = {r: of for r, of in scores.items() if r.endswith(arenas.AS_SHIPPED) != tuned}
    rows, _ = playing(of_ruleset, problems)
    if not rows:
        raise MetabenchError(
            f"nobody plays in track {track!r} of {plan.arena.name}, or no trial is finished"
        )
    return analysis.standings(rows, plan.scores)


def tracks(plan: Plan, *, store: str | Path | Store | None = None) -> list[TrackResults]:
    """All that is known of each track that has problems in the plan, in the order of their letters,
    but for those where every final has failed; ``store`` is where the learning curves are.

    Raises MetabenchError where finals are missing, StoreError for a curve that cannot be read.
    """
    from metabench.analysis.arena import track as arena_track

    of, known = partial(curve, plan, open_store(store)), metrics(plan.arena)
    played = {
        p.column
        for p in plan.finals
        if p.state not in NEVER_RUN and (p.record is None or p.record.status != "failed")
    }
    letters = sorted({p.track for p in plan.arena.problems if p.id in played})
    return [
        arena_track.collect(plan.arena, plan.scores, plan.finals, known, track, of)
        for track in letters
    ]


def grids(found: list[TrackResults]) -> list[Grid]:
    """The tables of standings, two or three a track: tuned, by a theta trained anew where problems
    have that readout, and as shipped."""
    from metabench.reports.arena.tables import retrained_grid, standings_grid

    out = []
    for track in found:
        anew = retrained_grid(track)
        out += [standings_grid(track), *([anew] if anew else []), standings_grid(track, False)]
    return out


def figures(found: list[TrackResults], *, out: str | Path) -> list[Path]:
    """Write figures and tables of these tracks into the folder ``out``; returns the paths: PNG and
    PDF of each figure, ``standings.md`` with captions, ``.txt``, and three CSV files.

    Raises MetabenchError where there is no track, or where a file cannot be written.
    """
    from metabench.api.output import told
    from metabench.reports.arena import figures as drawing

    if not found:
        raise MetabenchError("no figures: nobody has played in any track")
    with told(Path(out)):
        return drawing.write(found, Path(out))
