"""Pairs of methods in an arena's finals: how probable it is that one scores higher than the other.

A block is a problem. From six problems on the interval resamples problems, then seeds within them,
and speaks of problems like these; p is that of the Wilcoxon test over problems. Below six there is
no test, and the interval resamples seeds alone: it speaks of these problems only.

A run that ended without numbers loses against one that has some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from metabench.analysis import stats
from metabench.analysis.arena.scores import Cells, lost_score
from metabench.analysis.rankings import FEWEST

if TYPE_CHECKING:
    import numpy as np

Runs = Mapping[str, Sequence[float | None]]
"""Problem to the scores of a method, in the order of the seeds."""


@dataclass(frozen=True)
class Duel:
    """Two methods over the problems that both have: how probable it is that the first scores
    higher on a seed of a problem (equal scores, and two lost runs, count half), its 95 % interval
    over ``over``, and p of the Wilcoxon test over problems, not corrected for being one of many
    (None below six problems, and where all are equal)."""

    wins: float
    low: float
    high: float
    p: float | None
    problems: int
    over: Literal["problems", "seeds"]


def matched(mine: Runs, other: Runs) -> list[tuple[list[float], list[float]]]:
    """The scores of two methods on each problem that both have. A lost run scores 0 or as the worst
    of the two, whichever is lower, so that its mean is not above what ends below no learning."""
    out = []
    for name in (n for n in mine if n in other):
        worst = lost_score([mine[name], other[name]])
        a, b = ([worst if s is None else s for s in of[name]] for of in (mine, other))
        out.append((a, b))
    return out


def duel(scores: Cells, a: str, b: str, *, samples: int = 2000, seed: int = 0) -> Duel | None:
    """a against b; None where they share no problem."""
    import numpy as np

    shared = [name for name in scores[a] if name in scores[b]]
    if not shared:
        return None
    won = [
        np.array([_wins(x, y) for x, y in zip(scores[a][p], scores[b][p], strict=True)])
        for p in shared
    ]
    enough = len(shared) >= FEWEST
    means = _resampled(won, np.random.default_rng(seed), samples, problems=enough)
    low, high = np.quantile(means, [0.025, 0.975])
    p = None
    if enough:
        pairs = matched(scores[a], scores[b])
        p = stats.wilcoxon(*([stats.mean(pair[i]) for pair in pairs] for i in (0, 1)))
    wins = float(np.mean([w.mean() for w in won]))
    over: Literal["problems", "seeds"] = "problems" if enough else "seeds"
    return Duel(wins, float(low), float(high), p, len(shared), over)


def _wins(x: float | None, y: float | None) -> float:
    one, two = (-math.inf if s is None else s for s in (x, y))
    return 1.0 if one > two else 0.5 * (one == two)


def _resampled(
    groups: Sequence[np.ndarray[Any, Any]],
    draws: np.random.Generator,
    samples: int,
    *,
    problems: bool,
) -> np.ndarray[Any, Any]:
    """Means over groups of the means within them [samples], with the groups drawn anew too where
    ``problems``. Every group weighs the same."""
    import numpy as np

    sizes = np.array([len(group) for group in groups])
    padded = np.zeros((len(groups), sizes.max()))
    for row, group in zip(padded, groups, strict=True):
        row[: len(group)] = group
    which = np.broadcast_to(np.arange(len(groups)), (samples, len(groups)))
    if problems:
        which = draws.integers(0, len(groups), (samples, len(groups)))
    size = sizes[which][..., None]
    at = (draws.random((*which.shape, padded.shape[1])) * size).astype(int)
    inside = np.arange(padded.shape[1]) < size
    drawn = padded[which[..., None], at] * inside
    means: np.ndarray[Any, Any] = (drawn.sum(-1) / size[..., 0]).mean(-1)
    return means


def duels(scores: Cells) -> dict[tuple[str, str], Duel]:
    """Every pair of methods, p corrected over all of them (Holm)."""
    found = {
        (a, b): one for a, b in combinations(scores, 2) if (one := duel(scores, a, b)) is not None
    }
    known = {pair: one.p for pair, one in found.items() if one.p is not None}
    for pair, p in zip(known, stats.holm([*known.values()]), strict=True):
        found[pair] = replace(found[pair], p=p)
    return found
