"""A contest: a method that enters an arena, and what is known of the baselines.

Records of baselines are read into memory and written into no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from metabench.api.arena import tournament
from metabench.api.arena.played import Played, played
from metabench.api.arguments import open_store
from metabench.cluster.submitting import hints
from metabench.core.settings import place
from metabench.store.published import Published
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites.arena import entrant as entrants
from metabench.suites.arena import scores as arena_scores
from metabench.suites.arena.definition import Arena, ArenaMethod
from metabench.suites.arena.entrant import Source
from metabench.suites.arena.scores import ArenaScores


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
    def others(self) -> list[Played]:
        """What the baselines have played."""
        records = self.baselines.values()
        return [
            played(self.arena, method, self.budget, self.store, records, True)
            for method in self.arena.methods
        ]


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
    built-in one where it is None; ``budget``: None is
    :func:`metabench.api.arena.tournament.default_budget`; ``baselines``: a file of published scores
    or records, or a store, beside those of the store; of a built-in arena None means those that
    ship with it.

    Raises what :mod:`metabench.suites.arena.entrant` and
    :func:`metabench.suites.arena.definition.load` raise, and StoreError for a file of records that
    cannot be read.
    """
    source = entrants.find(file_or_name, method)
    name = tournament.default_arena() if arena is None else arena
    whole = tournament.load(name)
    budget = budget or tournament.default_budget(whole)
    made = entrants.entrant(whole, source.name, space)
    narrow = entrants.narrowed(whole, budget, quick)
    kept = open_store(store)
    file: Path | None = None
    given: Store | Published | ArenaScores | None
    if baselines is not None:
        file = place("--baselines", baselines)
        given = _baselines(file, whole, budget)
    elif (given := tournament.shipped(whole, budget)) is not None:
        file = given.root
    bad: list[str] = []
    records: list[Record] = []
    if given is not None:
        bad = [str(b) for b in given.problems()]
        bad += given.outdated() if isinstance(given, ArenaScores) else []
        records = given.records()
        if not records and not bad:
            bad.append(f"{file}: there is no record in it")
    known = tournament.joined(records, kept)
    typed = hints.absolute(name if isinstance(name, Path) else str(name))
    return Contest(narrow, made, source, budget, kept, known, file, bad, quick, typed)


def _baselines(path: Path, arena: Arena, budget: str) -> Store | Published | ArenaScores:
    if path.is_dir():
        return Store(path)
    return ArenaScores(path, arena, budget) if arena_scores.is_one(path) else Published(path)


def outdated(contest: Contest) -> int:
    """How many cells of the method were run before its file was last changed. Keys hold settings
    and no code: nothing but the time of the change tells."""
    if contest.source.file is None:
        return 0
    changed = contest.source.file.stat().st_mtime
    mine = [r for r in contest.store.records() if r.cell.method == contest.source.name]
    return sum(datetime.fromisoformat(r.started).timestamp() < changed for r in mine if r.started)
