"""What an arena's trials and finals say: which trial plays, scores, costs to a target, who wins.

Scores are normalised: 0 is what no outer learning has, 1 the bound of the problem. A run that ends
without numbers scores 0 or as the worst of its method on the problem, whichever is lower, and never
reaches a target. One block is one problem: seeds of a problem are repetitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from metabench.analysis import stats
from metabench.core.costs import COUNT_NAMES, equivalents
from metabench.core.errors import MetabenchError
from metabench.core.text import counted
from metabench.store.record import Curve, Record
from metabench.suites.arena import AS_SHIPPED, Arena, ArenaProblem, Chosen
from metabench.suites.planning import NEVER_RUN, Planned

NEAR = 0.9
"""A trial ends well that has this part of the best score of its method on the problem."""


@dataclass(frozen=True)
class Trial:
    """One setting of a method on a problem: its scores on the tuning seeds, None where a run ended
    without numbers."""

    number: int
    scores: tuple[float | None, ...]

    @property
    def failures(self) -> int:
        """Runs without numbers."""
        return sum(score is None for score in self.scores)


Trials = Mapping[tuple[str, str], Sequence[Trial]]
"""Method and problem to its trials."""


def selection_score(problem: ArenaProblem, record: Record, metric: str) -> float | None:
    """The score of the state that a run selected, on the examples that it was selected by; None
    where it ended without numbers."""
    if record.status != "done":
        return None
    split = "selection" if problem.select == "best_selection" else "valid"
    return problem.score(record.metrics[split][metric].mean)


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
    found: dict[tuple[str, str], dict[int, list[float | None]]] = {}
    for p in planned:
        if p.record is None:
            continue
        method, _, number = p.row.rpartition("#")
        score = selection_score(problems[p.column], p.record, metrics[p.column])
        found.setdefault((method, p.column), {}).setdefault(int(number), []).append(score)
    return {
        pair: [Trial(n, tuple(scores)) for n, scores in sorted(by_number.items())]
        for pair, by_number in found.items()
    }


def means(trials: Sequence[Trial]) -> list[float]:
    """The mean score of each trial of a method on a problem."""
    finished = [s for t in trials for s in t.scores if s is not None]
    worst = min([0.0, *finished])
    return [stats.mean([worst if s is None else s for s in t.scores]) for t in trials]


def choose(trials: Trials) -> Chosen:
    """The trial with the best mean score; of equals the one tried first."""
    out = {}
    for pair, of in trials.items():
        score = means(of)
        out[pair] = of[score.index(max(score))].number
    return out


@dataclass(frozen=True)
class Robustness:
    """How a method's settings fare on a problem: the share that ends near its best, the share of
    runs without numbers, and how far the settings as shipped are below the best."""

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
    return Robustness(sum(near) / len(near), failed, best - score[0])


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected best score of k = 1, 2, ... of these trials, drawn without replacement: what a
    budget of k trials is worth (Dodge et al. 2019, there with replacement)."""
    ordered, n = sorted(scores), len(scores)
    return [
        math.fsum(s * math.comb(i, k - 1) for i, s in enumerate(ordered)) / math.comb(n, k)
        for k in range(1, n + 1)
    ]


def cost_to_target(problem: ArenaProblem, curve: Curve, metric: str) -> float | None:
    """What a run had spent, in inner gradients, at its first look with the target; None: never."""
    split = "selection" if problem.select == "best_selection" else "valid"
    for i, value in enumerate(curve.get(f"{split}/{metric}", [])):
        if value is not None and problem.score(value) >= problem.score(problem.target):
            counts = {name: curve[f"cost/{name}"][i] or 0.0 for name in COUNT_NAMES}
            return equivalents(counts, problem.prices)
    return None


def median_cost(costs: Sequence[float | None]) -> float | None:
    """The median over seeds of a cost to target, a run that never had it being the dearest; None
    where half of them, or more, never had it."""
    ordered = sorted(math.inf if c is None else c for c in costs)
    n = len(ordered)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return middle if middle < math.inf else None


def cost_profile(
    costs: Mapping[str, Mapping[str, float | None]], ratios: Sequence[float]
) -> dict[str, list[float]]:
    """Method to the share of problems on which its cost to target is at most each ratio times the
    least of any method (Dolan, Moré 2002); ``costs``: problem to method to cost. Problems whose
    target nobody has count as unsolved by all."""
    methods = list(dict.fromkeys(m for of in costs.values() for m in of))
    out: dict[str, list[float]] = {}
    for method in methods:
        share = []
        for ratio in ratios:
            solved = 0
            for of in costs.values():
                least = min((c for c in of.values() if c is not None), default=math.inf)
                mine = of.get(method)
                solved += mine is not None and mine <= ratio * least
            share.append(solved / len(costs))
        out[method] = share
    return out


@dataclass(frozen=True)
class Duel:
    """Two methods over the problems that both have: how probable it is that the first scores
    higher on a seed of a problem, its interval, and p of the Wilcoxon test over problems (None
    where all are equal), not corrected for being one of many."""

    wins: float
    low: float
    high: float
    p: float | None
    problems: int


Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Method to problem to its scores in the finals, in the order of the seeds."""


def duel(scores: Scores, a: str, b: str, *, samples: int = 2000, seed: int = 0) -> Duel | None:
    """a against b; None where they share no problem. The interval resamples problems, then seeds
    within them."""
    import numpy as np

    shared = [name for name in scores[a] if name in scores[b]]
    if not shared:
        return None
    won = [
        np.array(
            [(x > y) + 0.5 * (x == y) for x, y in zip(scores[a][p], scores[b][p], strict=True)]
        )
        for p in shared
    ]
    draws = np.random.default_rng(seed)
    means = [
        np.mean(
            [
                draws.choice(won[i], len(won[i])).mean()
                for i in draws.integers(0, len(won), len(won))
            ]
        )
        for _ in range(samples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    p = stats.wilcoxon(
        [stats.mean(scores[a][name]) for name in shared],
        [stats.mean(scores[b][name]) for name in shared],
    )
    wins = float(np.mean([w.mean() for w in won]))
    return Duel(wins, float(low), float(high), p, len(shared))


def duels(scores: Scores) -> dict[tuple[str, str], Duel]:
    """Every pair of methods, p corrected over all of them (Holm)."""
    found = {
        (a, b): one for a, b in combinations(scores, 2) if (one := duel(scores, a, b)) is not None
    }
    tested = [pair for pair, one in found.items() if one.p is not None]
    corrected = stats.holm([found[pair].p or 0.0 for pair in tested])
    for pair, p in zip(tested, corrected, strict=True):
        one = found[pair]
        found[pair] = Duel(one.wins, one.low, one.high, p, one.problems)
    return found


def iqm_of(scores: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """The interquartile mean of a method's scores over all problems and seeds, and its interval by
    a bootstrap within problems (Agarwal et al. 2021)."""
    groups = list(scores.values())
    low, high = stats.bootstrap(groups, lambda x: stats.iqm(x.tolist()))
    return stats.iqm([v for group in groups for v in group]), low, high


@dataclass(frozen=True)
class Standing:
    """Where a row of the finals stands: interquartile mean of its scores over problems and seeds
    with a 95 % interval, mean rank over problems (1 the best), runs without numbers, and of the
    method's trials the mean share that ends near its best and the mean regret of the settings as
    shipped (None where it had one trial)."""

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
    arena: Arena, finals: Sequence[Planned], metrics: Mapping[str, str]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """Row to problem to test scores in the order of the seeds, and the failures of each row.

    Raises MetabenchError where finals have not been run.
    """
    problems = {p.id: p for p in arena.problems}
    raw: dict[str, dict[str, list[float | None]]] = {}
    for p in finals:
        if p.state in NEVER_RUN:
            continue
        if p.record is None:
            raise MetabenchError(
                f"finals of {arena.name} have not been run: {p.row}/{p.column} seed {p.cell.seed}"
            )
        value = None
        if p.record.status == "done":
            estimate = p.record.metrics["test"][metrics[p.column]]
            value = problems[p.column].score(estimate.mean)
        raw.setdefault(p.row, {}).setdefault(p.column, []).append(value)
    scores: dict[str, dict[str, list[float]]] = {}
    failures: dict[str, int] = {}
    for row, of in raw.items():
        failures[row] = sum(v is None for values in of.values() for v in values)
        scores[row] = {}
        for name, values in of.items():
            worst = min([0.0, *(v for v in values if v is not None)])
            scores[row][name] = [worst if v is None else v for v in values]
    return scores, failures


def standings(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    failures: Mapping[str, int],
    trials: Trials,
) -> list[Standing]:
    """Rows of one ruleset on the same problems, the best mean rank first; ties by score."""
    names = list(next(iter(scores.values())))
    if any(list(of) != names for of in scores.values()):
        raise ValueError("rows are ranked on the same problems: rank tracks apart")
    ranks = [stats.ranks([stats.mean(of[name]) for of in scores.values()]) for name in names]
    out = []
    for i, (row, of) in enumerate(scores.items()):
        value, low, high = iqm_of(of)
        method = row.removesuffix(AS_SHIPPED)
        each = [robustness(trials[method, n]) for n in names if len(trials[method, n]) > 1]
        out.append(
            Standing(
                row, value, low, high, stats.mean([r[i] for r in ranks]), failures[row], len(names),
                stats.mean([e.near for e in each]) if each else None,
                stats.mean([e.regret for e in each]) if each else None,
            )
        )  # fmt: skip
    return sorted(out, key=lambda s: (s.rank, -s.score))
