"""What a number of trials is worth: the expected best of k of the settings that a method tried.

Of k settings drawn without replacement from the n that were tried, the best by its tuning score is
taken. Its expectation is a sum over order statistics, exact, without any sampling (Dodge et al.:
Show Your Work, 2019, there with replacement): the i-th best of n settings, counted from the worst
and from 0, is the best of k in C(i, k - 1) of C(n, k) draws.

Scores have no lower end: one run that ran away, at -1e12, would be all that an expectation says. So
a run below :data:`~metabench.analysis.arena.scores.LEAST` counts as that: whoever tries the setting
throws it away, however far it went. A median would do so, too, but would say nothing of the half of
the settings below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metabench.analysis.arena.scores import LEAST, Trial, means, test_means
from metabench.analysis.stats import mean

if TYPE_CHECKING:
    import numpy as np


def expected_best(scores: Sequence[float], worth: Sequence[float] | None = None) -> list[float]:
    """The expected ``worth`` (None: the score itself) of the setting with the best score among
    k = 1, 2, ... of these, in the order tried: of equal ones the first is taken."""
    worth = scores if worth is None else worth
    order = _from_the_worst(scores)
    return [
        math.fsum(share * worth[i] for share, i in zip(shares, order, strict=True))
        for shares in _shares(len(order))
    ]


def _from_the_worst(scores: Sequence[float]) -> list[int]:
    """Indices from the worst score to the best; of equal ones the first tried is the best."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], -i))


def _shares(n: int) -> list[list[float]]:
    """[k - 1][i]: how often the i-th from the worst of n is the best of k."""
    return [
        [math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)
    ]  # fmt: skip


@dataclass(frozen=True)
class BestOf:
    """The expected best of k = 1, 2, ... trials, the mean over problems.

    ``tuning``: the score that trials are chosen by, which a choice among many makes too good.
    ``test``: the test score of the chosen states on the tuning seeds, and its 95 % band by a
    bootstrap of the trials of each problem: other settings drawn from the same space would have
    given another curve. A run below ``LEAST`` counts as ``LEAST`` in all of them.
    """

    tuning: tuple[float, ...]
    test: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def one_trial(problems: Sequence[Sequence[Trial]]) -> float:
    """The test score that one of a method's settings on each problem is expected to have, the mean
    over problems: :attr:`BestOf.test` at k = 1."""
    return mean([mean(test_means(trials, LEAST)) for trials in problems])


def best_of(problems: Sequence[Sequence[Trial]], *, samples: int = 1000, seed: int = 0) -> BestOf:
    """Of a method's trials on each problem; k goes up to the least number of trials of any."""
    import numpy as np

    most = min(map(len, problems))
    draws = np.random.default_rng(seed)
    tuning, test, drawn = [], [], []
    for trials in problems:
        score, worth = means(trials), test_means(trials, LEAST)
        tuning.append(expected_best(score, means(trials, LEAST))[:most])
        test.append(expected_best(score, worth)[:most])
        drawn.append(_resampled(score, worth, draws, samples)[:, :most])
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975], axis=0)
    return BestOf(
        tuple(np.mean(tuning, axis=0).tolist()),
        tuple(np.mean(test, axis=0).tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
    )


def _resampled(
    scores: Sequence[float], worth: Sequence[float], draws: np.random.Generator, samples: int
) -> np.ndarray[Any, Any]:
    """:func:`expected_best` [samples, k] of as many settings drawn with replacement."""
    import numpy as np

    n = len(scores)
    ordered = np.array([worth[i] for i in _from_the_worst(scores)])
    places = np.sort(draws.integers(0, n, (samples, n)), axis=1)
    out: np.ndarray[Any, Any] = ordered[places] @ np.array(_shares(n)).T
    return out
