"""Counting what a run costs, in units that compare across methods."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

from metabench.core.errors import BudgetSpent, Unpriced

CUT_STEP = "outer_step_cut_by_budget"
"""The note of a run that its budget has ended inside an outer step: that step's number, from 1."""

CUT_LOOK = "look_cut_by_budget"
"""The note of a run that its budget has ended in an evaluation that is charged: outer steps done
then; the state there was not looked at."""


@dataclass
class Counts:
    """Derivatives and values taken, each for one episode's batch.

    ``inner_gradients``: gradients of G in theta, recomputed ones too. ``outer_gradients``:
    gradients of F. ``hvps``: products of the Hessian of G in theta with a vector, or of the
    Jacobian in theta of the update map or of predictions. ``mixed_products``: products with the
    derivative of G's gradient (or of the update map) in lam. ``function_evaluations``: values of
    G or F without a derivative. ``trainings``: inner problems solved from scratch for one value of
    lam (gradient-free search).
    """

    inner_gradients: int = 0
    outer_gradients: int = 0
    hvps: int = 0
    mixed_products: int = 0
    function_evaluations: int = 0
    trainings: int = 0

    def as_dict(self) -> dict[str, int]:
        """Name to count."""
        return dict(vars(self))  # numbers: asdict would copy each, in every priced count of a run


PRICED = (
    "inner_gradients",
    "outer_gradients",
    "hvps",
    "mixed_products",
    "function_evaluations",
)
"""Counts that have a price; a training is no cost beside the gradients that it takes."""


def equivalents(counts: Mapping[str, float], prices: Mapping[str, float]) -> float | None:
    """What counts come to in inner gradients at ``prices``, which are those of one of each; None
    where a count that is not 0 has no price."""
    try:
        return cost_of(counts, prices)
    except Unpriced:
        return None


def cost_of(counts: Mapping[str, float], prices: Mapping[str, float]) -> float:
    """:func:`equivalents` of a run whose budget has these prices. Raises Unpriced."""
    used = {name: n for name, n in counts.items() if n and name in PRICED}
    for name in used:
        if name not in prices:
            raise Unpriced(name)
    return sum(n * prices[name] for name, n in used.items())


class Meter:
    """A thread-safe :class:`Counts`; inside a batch over n episodes each count is worth n."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts = counts or Counts()
        self._limits: Mapping[str, int] = {}
        self._priced: tuple[Mapping[str, float], float] | None = None
        self._lock = threading.Lock()
        self._local = threading.local()

    def add(self, **more: int) -> None:
        """Add to the named counts, times the size of the batch of episodes in progress. Raises
        BudgetSpent where one is beyond a limit then, Unpriced where one has no price."""
        if self.is_muted:
            return
        weight = self.weight
        with self._lock:
            for name, n in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + n * weight)
        self.check()

    def check(self) -> None:
        """Raise BudgetSpent where a count is beyond its limit, Unpriced where all of them together
        have one and a count has no price."""
        for name, most in self._limits.items():
            if getattr(self.counts, name) > most:
                raise BudgetSpent(name, most)
        if self._priced is not None:
            prices, dearest = self._priced
            if cost_of(self.counts.as_dict(), prices) > dearest:
                raise BudgetSpent("cost", dearest)

    @contextmanager
    def limited(
        self, limits: Mapping[str, int], priced: tuple[Mapping[str, float], float] | None = None
    ) -> Iterator[None]:
        """Inside, no count may go beyond its limit in ``limits``, nor all of them together at the
        prices of ``priced`` beyond its cost; checked once more at the end."""
        self._limits, self._priced = limits, priced
        try:
            yield
            self.check()
        finally:
            self._limits, self._priced = {}, None

    def grow(self, before: dict[str, int], after: Sequence[dict[str, int]]) -> None:
        """Set to ``before`` and what each of ``after`` has more: one count of several processes
        that have gone on from ``before``."""
        with self._lock:
            grown = {k: n + sum(more[k] - n for more in after) for k, n in before.items()}
            self.counts = Counts(**grown)

    @property
    def weight(self) -> int:
        """What one count of this thread is worth just now."""
        return int(getattr(self._local, "weight", 1))

    @property
    def is_muted(self) -> bool:
        """Whether this thread counts nothing just now."""
        return bool(getattr(self._local, "muted", False))

    def mute(self, muted: bool = True) -> None:
        """Whether this thread counts from now on: other threads are not touched."""
        self._local.muted = muted

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Inside, this thread counts nothing."""
        before = self.is_muted
        self.mute()
        try:
            yield
        finally:
            self.mute(before)

    def batch_of(self, episodes: int) -> _Weight:
        """Context: what this thread counts stands for ``episodes`` episodes (or chains) at once;
        such contexts multiply."""
        return _Weight(self._local, episodes)


class _Weight:
    def __init__(self, local: threading.local, weight: int) -> None:
        self.local, self.weight = local, weight

    def __enter__(self) -> None:
        self.before = getattr(self.local, "weight", 1)
        self.local.weight = self.before * self.weight

    def __exit__(self, *_: object) -> None:
        self.local.weight = self.before


COUNT_NAMES = tuple(f.name for f in fields(Counts))
