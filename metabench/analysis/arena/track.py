"""All that is known of one track of an arena: scores, costs to target, gaps, trials, and standings.

Rows are ranked on the same problems: a method that is not applicable to one of them is left out of
the track, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from metabench.analysis import stats
from metabench.analysis.arena import scores as scoring
from metabench.analysis.arena.costs import cost_ratios, cost_to_target, median_cost, median_ratio
from metabench.analysis.arena.pairs import Duel, duels
from metabench.analysis.arena.scores import Cells, Standing, Trials
from metabench.analysis.arena.tuning import one_trial
from metabench.analysis.rankings import Ranked, judged
from metabench.core.errors import MetabenchError
from metabench.store.record import RETRAINED, Curve, Record
from metabench.suites.arena.definition import AS_SHIPPED, Arena, ArenaProblem
from metabench.suites.planning import Planned


@dataclass(frozen=True)
class Line:
    """A row of the table of standings: where it stands, on how many problems most of its seeds have
    the target, the median over problems of its cost to target in units of the least (None where it
    has the target on half of them or fewer), the score that one setting drawn from those it tried
    is expected to have on the test split (None where it tried one alone), the share of its trials'
    runs without numbers, validation minus test, and the interquartile mean of the scores of a theta
    trained anew (None where no problem has that readout)."""

    standing: Standing
    targets: int
    ratio: float | None
    one: float | None
    failed: float
    gap: float | None
    retrained: float | None = None


@dataclass(frozen=True)
class TrackResults:
    """The finals of a track and the trials that chose them.

    ``runs`` (scores, None for a run without numbers), ``costs`` (to the target, in inner gradients)
    and ``gaps`` (score of the tested state on the validation split minus on the test split) are by
    row, problem and seed, as are ``runs_anew`` (scores of a theta trained anew, on the problems
    that have it); rows are methods, and methods "as shipped". ``scores`` and ``retrained`` are the
    same with what a run without numbers scores. ``methods``: ids in the order of the file;
    ``numbers``: their places in it. ``left_out``: methods that do not play on every problem;
    ``failed``: those of which every tuned final ended in an exception, and which stand nowhere;
    ``nowhere``: those that apply to no problem of the track. ``unlearned``: methods that learn
    nothing outside.
    """

    arena: str
    title: str
    track: str
    problems: tuple[ArenaProblem, ...]
    methods: tuple[str, ...]
    numbers: tuple[int, ...]
    labels: Mapping[str, str]
    runs: Cells
    costs: Cells
    gaps: Cells
    trials: Trials
    left_out: tuple[str, ...] = ()
    runs_anew: Cells = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    nowhere: tuple[str, ...] = ()
    unlearned: tuple[str, ...] = ()

    def rows(self, tuned: bool) -> list[str]:
        """The rows of one ruleset."""
        return [m if tuned else f"{m}{AS_SHIPPED}" for m in self.methods]

    def label(self, row: str) -> str:
        """What a row is called."""
        method = row.removesuffix(AS_SHIPPED)
        return self.labels[method] + row[len(method) :]

    @cached_property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        """Row to problem to the scores of its runs."""
        return _filled(self.runs)

    @cached_property
    def retrained(self) -> dict[str, dict[str, list[float]]]:
        """Row to problem to the scores of a theta trained anew."""
        return _filled(self.runs_anew)

    @cached_property
    def duels(self) -> dict[tuple[str, str], Duel]:
        """Every pair of tuned methods."""
        return duels({m: self.runs[m] for m in self.methods})

    def medians(self, tuned: bool = True) -> dict[str, dict[str, float | None]]:
        """Problem to row to its median cost to the target."""
        return {
            p.id: {row: median_cost(self.costs[row][p.id]) for row in self.rows(tuned)}
            for p in self.problems
        }

    def ranks_on(self, problem: str, tuned: bool = True) -> list[float]:
        """The rank of each row of a ruleset on a problem, in the order of ``methods``."""
        return scoring.ranks_on(problem, {row: self.runs[row] for row in self.rows(tuned)})

    def ranked(self, tuned: bool = True) -> Ranked:
        """Ranks of the rows of a ruleset and their tests, a block a problem."""
        names = [p.id for p in self.problems]
        blocks = [tuple(self.ranks_on(name, tuned)) for name in names]
        return judged(self.rows(tuned), self.numbers, names, blocks)

    def ranked_anew(self) -> Ranked:
        """The same of the tuned methods by a theta trained anew, on the problems that have this
        readout."""
        rows = self._rows_anew()
        names = list(next(iter(rows.values()), {}))
        blocks = [tuple(scoring.ranks_on(name, rows)) for name in names]
        numbers = [n for m, n in zip(self.methods, self.numbers, strict=True) if m in rows]
        return judged(list(rows), numbers, names, blocks)

    def lines(self, tuned: bool = True) -> list[Line]:
        """The table of standings, the best mean rank first."""
        return self._tuned if tuned else self._shipped

    def retrained_standings(self) -> list[Standing]:
        """Where the tuned methods stand by a theta trained anew at the lam that each has found, on
        the problems that have this readout; empty where none has."""
        rows = self._rows_anew()
        return scoring.standings(rows, self.trials) if rows else []

    def _rows_anew(self) -> dict[str, Mapping[str, Sequence[float | None]]]:
        return {m: self.runs_anew[m] for m in self.methods if self.runs_anew.get(m)}

    @cached_property
    def _tuned(self) -> list[Line]:
        return self._lines(tuned=True)

    @cached_property
    def _shipped(self) -> list[Line]:
        return self._lines(tuned=False)

    def _lines(self, tuned: bool) -> list[Line]:
        rows = self.rows(tuned)
        found = scoring.standings({r: self.runs[r] for r in rows}, self.trials)
        medians = self.medians(tuned)
        ratios = cost_ratios(medians)
        return [self._line(s, medians, ratios[s.row]) for s in found]

    def _line(
        self,
        standing: Standing,
        medians: Mapping[str, Mapping[str, float | None]],
        ratios: Mapping[str, float],
    ) -> Line:
        row = standing.row
        tried = self.trials_of(row)
        several = all(len(trials) > 1 for trials in tried)
        gaps = [gap for p in self.problems if (gap := self.gap(row, p.id)) is not None]
        anew = [score for scores in self.retrained.get(row, {}).values() for score in scores]
        return Line(
            standing,
            sum(of[row] is not None for of in medians.values()),
            median_ratio(ratios),
            one_trial(tried) if several else None,
            stats.mean([scoring.robustness(t).failed for t in tried]),
            stats.mean(gaps) if gaps else None,
            stats.iqm(anew) if anew else None,
        )

    def trials_of(self, row: str) -> list[Sequence[scoring.Trial]]:
        """The trials of a row's method, problem by problem."""
        return [self.trials[row.removesuffix(AS_SHIPPED), p.id] for p in self.problems]

    def gap(self, row: str, problem: str) -> float | None:
        """The mean over finished seeds of validation minus test."""
        known = [gap for gap in self.gaps[row][problem] if gap is not None]
        return stats.mean(known) if known else None


def _filled(runs: Cells) -> dict[str, dict[str, list[float]]]:
    return {
        row: {name: scoring.filled(scores) for name, scores in of.items()}
        for row, of in runs.items()
    }


def playing(
    scores: Cells, problems: Sequence[str]
) -> tuple[dict[str, dict[str, Sequence[float | None]]], tuple[str, ...]]:
    """The rows that play on as many of ``problems`` as any does, and those that play on fewer."""
    rows = {
        row: {name: of[name] for name in problems if name in of} for row, of in scores.items()
    }  # fmt: skip
    rows = {row: of for row, of in rows.items() if of}
    most = max((len(of) for of in rows.values()), default=0)
    left_out = tuple(row for row, of in rows.items() if len(of) < most)
    return {row: of for row, of in rows.items() if row not in left_out}, left_out


def collect(
    arena: Arena,
    trials: Trials,
    finals: Sequence[Planned],
    metrics: Mapping[str, str],
    track: str,
    curve: Callable[[Record], Curve],
) -> TrackResults:
    """What the finals and the trials say of a track; ``metrics``: problem to its metric; ``curve``
    gives the learning curve of a record.

    Raises MetabenchError where finals have not been run, or where nobody plays in the track.
    """
    scores = scoring.finals_scores(arena, finals, metrics)
    of_track = {p.id: p for p in arena.problems if p.track == track}
    failed = scoring.failed_throughout(finals, of_track)
    known = {row: of for row, of in scores.items() if row.removesuffix(AS_SHIPPED) not in failed}
    rows, left_out = playing(known, list(of_track))
    if not rows and failed:
        raise MetabenchError(f"every final of track {track!r} of {arena.name} failed")
    if not rows:
        raise MetabenchError(
            f"nobody plays in track {track!r} of {arena.name}, or no trial is finished"
        )
    anew = scoring.finals_scores(arena, finals, metrics, RETRAINED)
    numbers = {m.id: i for i, m in enumerate(arena.methods) if m.id in rows}
    costs: dict[str, dict[str, list[float | None]]] = {}
    gaps: dict[str, dict[str, list[float | None]]] = {}
    for p in finals:
        if p.record is None or p.column not in rows.get(p.row, ()):
            continue
        problem, metric, cost, gap = of_track[p.column], metrics[p.column], None, None
        if p.record.status == "done":
            cost = cost_to_target(problem, curve(p.record), metric)
            on = p.record.metrics
            gap = problem.score(on["valid"][metric].mean) - problem.score(on["test"][metric].mean)
        costs.setdefault(p.row, {}).setdefault(p.column, []).append(cost)
        gaps.setdefault(p.row, {}).setdefault(p.column, []).append(gap)
    names = next(iter(rows.values()))
    return TrackResults(
        arena.name,
        arena.title,
        track,
        tuple(p for p in of_track.values() if p.id in names),
        tuple(numbers),
        tuple(numbers.values()),
        {m.id: m.label or m.id for m in arena.methods},
        rows,
        costs,
        gaps,
        trials,
        tuple(row for row in left_out if not row.endswith(AS_SHIPPED)),
        {row: {k: v for k, v in anew.get(row, {}).items() if k in names} for row in rows},
        tuple(m.id for m in arena.methods if m.id in failed),
        _nowhere(arena, scores, track),
        tuple(m.id for m in arena.methods if m.method == "fixed"),
    )


def _nowhere(arena: Arena, scores: Cells, track: str) -> tuple[str, ...]:
    """The methods of a track that have no final on any problem of it that somebody has played."""
    of_track = {p.id for p in arena.problems if p.track == track}
    played = of_track & {name for of in scores.values() for name in of}
    return tuple(
        m.id
        for m in arena.methods
        if track in m.tracks
        and (not m.problems or played.intersection(m.problems))
        and not played.intersection(scores.get(m.id, ()))
    )
