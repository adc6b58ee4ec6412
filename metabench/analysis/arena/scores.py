"""What an arena's trials and finals say: which trial plays, scores, and where the rows stand.

Costs to a target are in :mod:`metabench.analysis.arena.costs`, pairs of methods in
:mod:`metabench.analysis.arena.pairs`, what a number of trials is worth in
:mod:`metabench.analysis.arena.tuning`, and all that is known of one track in
:mod:`metabench.analysis.arena.track`.

Scores are normalised: 0 is what no outer learning has, 1 the bound of the problem. A run that ends
without numbers scores 0 or as the worst of its method on the problem, whichever is lower
(:func:`filled`), and never reaches a target; a row that lost every seed of a problem has the worst
rank there, and a pair of methods counts a lost run below whatever the two have, whatever they
score. One block is one problem: seeds of a problem are repetitions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from metabench.analysis import stats
from metabench.core.errors import MetabenchError
from metabench.core.text import counted
from metabench.store.record import RETRAINED, Record
from metabench.suites.arena.definition import AS_SHIPPED, Arena, ArenaProblem, Chosen
from metabench.suites.planning import NEVER_RUN, Planned

NEAR = 0.9
"""A trial ends well that has this part of the best score of its method on the problem."""
LEAST = -0.25
"""What a run that scores less is worth where scores are averaged over settings: a quarter of the
way to the bound is lost, however far it went. The axis of the performance profile
(:mod:`metabench.reports.figures.profiles`) ends there, too."""


@dataclass(frozen=True)
class Trial:
    """One setting of a method on a problem: the scores on the tuning seeds that it is chosen by,
    and those of the same states on the test split; None where a run ended without numbers."""

    number: int
    scores: tuple[float | None, ...]
    tests: tuple[float | None, ...] = ()

    @property
    def failures(self) -> int:
        """Runs without numbers."""
        return sum(score is None for score in self.scores)


Trials = Mapping[tuple[str, str], Sequence[Trial]]
"""Method and problem to its trials."""
Cells = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Row to problem to a number for each seed, in the order of the seeds; None where a run has none,
of scores: where it ended without numbers."""


def selection_score(problem: ArenaProblem, record: Record, metric: str) -> float | None:
    """The score of the state that a run selected, on the examples that it was selected by; None
    where it ended without numbers."""
    if record.status != "done":
        return None
    split = "selection" if problem.select == "best_selection" else "valid"
    return problem.score(record.metrics[split][metric].mean)


def test_score(
    problem: ArenaProblem, record: Record, metric: str, readout: str = ""
) -> float | None:
    """The score of the selected state on the test split; None where the run, or the readout's own
    training, ended without numbers. ``readout``: "" for the theta that the method ends with,
    RETRAINED for one that is trained anew at its lam."""
    if record.status != "done" or (readout and "test" + readout not in record.metrics):
        return None
    return problem.score(record.metrics["test" + readout][metric].mean)


def trials_of(arena: Arena, planned: Sequence[Planned], metrics: Mapping[str, str]) -> Trials:
    """The scores of all trials; ``metrics``: problem to its metric.

    Raises MetabenchError where cells have not been run: a trial that is missing might have won.
    """
    missing = [p for p in planned if p.record is None and p.state not in NEVER_RUN]
    if missing:
        first = missing[0]
        raise MetabenchError(
            f"{counted(len(missing), 'trial cell')} of {arena.name} have not been run, the first "
            f"{first.row}/{first.column} seed {first.cell.seed}: {first.why}"
        )
    problems = {p.id: p for p in arena.problems}
    found: dict[tuple[str, str], dict[int, list[tuple[float | None, float | None]]]] = {}
    for p in planned:
        if p.record is None:
            continue
        method, _, number = p.row.rpartition("#")
        problem, metric = problems[p.column], metrics[p.column]
        both = selection_score(problem, p.record, metric), test_score(problem, p.record, metric)
        found.setdefault((method, p.column), {}).setdefault(int(number), []).append(both)
    return {
        pair: [Trial(n, *zip(*both, strict=True)) for n, both in sorted(by_number.items())]
        for pair, by_number in found.items()
    }


def means(trials: Sequence[Trial], least: float = -math.inf) -> list[float]:
    """The mean score of each trial of a method on a problem; a run below ``least`` counts as
    ``least``."""
    return _means([t.scores for t in trials], least)


def test_means(trials: Sequence[Trial], least: float = -math.inf) -> list[float]:
    """The mean test score of each trial of a method on a problem, on the tuning seeds; a run below
    ``least`` counts as ``least``."""
    return _means([t.tests for t in trials], least)


def _means(rows: Sequence[Sequence[float | None]], least: float = -math.inf) -> list[float]:
    worst = lost_score(rows)
    return [stats.mean([max(least, worst if s is None else s) for s in row]) for row in rows]


def lost_score(rows: Iterable[Sequence[float | None]]) -> float:
    """What a run without numbers scores beside these: 0, or the least of them."""
    return min([0.0, *(s for row in rows for s in row if s is not None)])


def filled(scores: Sequence[float | None]) -> list[float]:
    """The scores of a method's runs on a problem, those without numbers by :func:`lost_score`."""
    worst = lost_score([scores])
    return [worst if s is None else s for s in scores]


def choose(trials: Trials) -> Chosen:
    """The trial with the best mean score; of equals the one with the fewest runs without numbers,
    then the one tried first."""
    out = {}
    for pair, of in trials.items():
        scored = zip(means(of), of, strict=True)
        out[pair] = max(scored, key=lambda one: (one[0], -one[1].failures))[1].number
    return out


@dataclass(frozen=True)
class Robustness:
    """How a method's settings fare on a problem: the share that ends near its best, the share of
    runs without numbers, and how far the settings as shipped are below the best, where a run below
    ``LEAST`` counts as ``LEAST``."""

    near: float
    failed: float
    regret: float


def robustness(trials: Sequence[Trial]) -> Robustness:
    """Of the trials of a method on a problem, the first being the settings as shipped."""
    score = means(trials)
    best = max(score)
    near = [s >= (NEAR * best if best > 0 else best) for s in score]
    runs = sum(len(t.scores) for t in trials)
    failed = sum(t.failures for t in trials) / runs
    worth = means(trials, LEAST)
    return Robustness(sum(near) / len(near), failed, max(worth) - worth[0])


def iqm_of(scores: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """The interquartile mean of a method's scores over all problems and seeds, and its interval by
    a bootstrap within problems (Agarwal et al. 2021)."""
    groups = list(scores.values())
    low, high = stats.iqm_interval(groups)
    return stats.iqm([v for group in groups for v in group]), low, high


@dataclass(frozen=True)
class Standing:
    """Where a row of the finals stands: interquartile mean of its scores over problems and seeds
    with a 95 % interval, mean rank over problems (1 the best), runs without numbers on these
    problems, and of the method's trials the mean share that ends near its best and the mean regret
    of the settings as shipped (None where it had one trial)."""

    row: str
    score: float
    low: float
    high: float
    rank: float
    failures: int
    problems: int
    near: float | None = None
    regret: float | None = None


def finals_scores(
    arena: Arena, finals: Sequence[Planned], metrics: Mapping[str, str], readout: str = ""
) -> dict[str, dict[str, list[float | None]]]:
    """Row to problem to test scores in the order of the seeds; for the readout RETRAINED on the
    problems that have it.

    Raises MetabenchError where finals have not been run.
    """
    problems = {p.id: p for p in arena.problems}
    scores: dict[str, dict[str, list[float | None]]] = {}
    for p in finals:
        if p.state in NEVER_RUN:
            continue
        if p.record is None:
            raise MetabenchError(
                f"finals of {arena.name} have not been run: {p.row}/{p.column} seed {p.cell.seed}"
            )
        problem = problems[p.column]
        if readout == RETRAINED and problem.retrain is None:
            continue
        value = test_score(problem, p.record, metrics[p.column], readout)
        scores.setdefault(p.row, {}).setdefault(p.column, []).append(value)
    return scores


def failed_throughout(finals: Sequence[Planned], problems: Collection[str]) -> set[str]:
    """The rows of which every final on these problems ended in an exception: somebody's code is at
    fault, and where the method stands is not known."""
    ended: dict[str, set[str]] = {}
    for p in finals:
        if p.column in problems and p.record is not None:
            ended.setdefault(p.row, set()).add(p.record.status)
    return {row for row, statuses in ended.items() if statuses == {"failed"}}


def ranks_on(problem: str, scores: Cells) -> list[float]:
    """The rank of each row of ``scores`` on a problem by its mean score, 1 the best; rows that lost
    every seed share the last ranks: a crash is not to stand above a result."""
    kept = [row for row, of in scores.items() if any(s is not None for s in of[problem])]
    means = [stats.mean(filled(scores[row][problem])) for row in kept]
    found = dict(zip(kept, stats.ranks(means), strict=True))
    last = (len(kept) + 1 + len(scores)) / 2
    return [found.get(row, last) for row in scores]


def standings(scores: Cells, trials: Trials) -> list[Standing]:
    """Rows of one ruleset on the same problems, the best mean rank first; ties by score."""
    names = list(next(iter(scores.values())))
    if any(list(of) != names for of in scores.values()):
        raise ValueError("rows are ranked on the same problems: rank tracks apart")
    ranks = [ranks_on(name, scores) for name in names]
    out = []
    for i, (row, of) in enumerate(scores.items()):
        value, low, high = iqm_of({name: filled(runs) for name, runs in of.items()})
        method = row.removesuffix(AS_SHIPPED)
        each = [robustness(trials[method, n]) for n in names if len(trials[method, n]) > 1]
        out.append(
            Standing(
                row, value, low, high, stats.mean([r[i] for r in ranks]),
                sum(s is None for runs in of.values() for s in runs), len(names),
                stats.mean([e.near for e in each]) if each else None,
                stats.mean([e.regret for e in each]) if each else None,
            )
        )  # fmt: skip
    return sorted(out, key=lambda s: (s.rank, -s.score))
