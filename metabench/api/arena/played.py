"""What a method has played of an arena, read from records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metabench.api.arena import tournament
from metabench.core.capabilities import causes
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites import planning as plans
from metabench.suites.arena.definition import AS_SHIPPED, Arena, ArenaMethod, Chosen
from metabench.suites.planning import NEVER_RUN, Planned
from metabench.suites.suite import SuiteCell

if TYPE_CHECKING:
    from metabench.analysis.arena.scores import Trial


@dataclass(frozen=True)
class Played:
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
        from metabench.analysis.arena.scores import failed_throughout

        rows = failed_throughout(self.finals, names)
        return {n: ["every final failed"] for n in names if self.method.id in rows}


def played(
    arena: Arena,
    method: ArenaMethod,
    budget: str,
    store: Store,
    records: Iterable[Record],
    tuned: bool,
) -> Played:
    """What these records have of a method under a budget, ``tuned`` or as shipped alone; ``store``
    says of what has no record why it has none."""
    from metabench.analysis.arena import scores as analysis

    own, records = replace(arena, methods=[method]), list(records)
    lacks: dict[str, list[str]] = {}
    metrics = tournament.metrics(own)

    def whole(cells: Sequence[SuiteCell]) -> list[Planned]:
        """The cells of the problems on which none is missing."""
        planned = plans.states_of(cells, store, records)
        for p in planned:
            if p.state in NEVER_RUN:
                lacks.setdefault(p.column, causes(p.reason, method.method))
            elif p.record is None:
                lacks.setdefault(p.column, ["records are missing"])
        return [p for p in planned if p.column not in lacks]

    trials: dict[tuple[str, str], Sequence[Trial]] = {}
    chosen: Chosen = {(method.id, p.id): 0 for p in own.problems}
    if tuned:
        trials = dict(analysis.trials_of(own, whole(own.trials(budget)), metrics))
        chosen = analysis.choose(trials)
        own = replace(own, problems=[p for p in own.problems if (method.id, p.id) in chosen])
    cells = own.finals(budget, chosen)
    finals = whole(cells if tuned else as_shipped(cells))
    scores = analysis.finals_scores(own, finals, metrics)
    return Played(
        method,
        {name: of for (_, name), of in trials.items()},
        {True: scores.get(method.id, {}), False: scores.get(method.id + AS_SHIPPED, {})},
        lacks,
        finals,
    )


def as_shipped(cells: Iterable[SuiteCell]) -> list[SuiteCell]:
    """Those of these finals that are played with the settings of the class."""
    return [c for c in cells if c.row.endswith(AS_SHIPPED)]
