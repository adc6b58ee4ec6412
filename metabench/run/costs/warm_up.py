"""A method's init and first outer step, taken before the clock starts and thrown away."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from metabench.contract.method import Context
from metabench.core.costs import Meter
from metabench.core.errors import BudgetSpent
from metabench.run import determinism
from metabench.run.attempts.checkpoint import detached
from metabench.run.evaluation import Stopwatch

MOST_SECONDS = 2.0
"""After which a step that is to be thrown away is given up: what it compiles and allocates then is
little beside what it takes."""


class _Deadline(Meter):
    """Counts of their own; the first one after ``seconds`` raises BudgetSpent."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.perf_counter() + seconds

    def add(self, **more: int) -> None:
        if time.perf_counter() > self._end:
            raise BudgetSpent("seconds of warm-up", int(MOST_SECONDS))
        super().add(**more)


def warm_up(ctx: Context, method: Any) -> tuple[float, float | None]:
    """Take the method's init and its first outer step again and forget them, so that training time
    has nothing in it of what a process does once: load libraries, compile, allocate, read what a
    problem reads when it is first asked. The seconds that it took, and those of the init alone,
    which the run has taken before (None where it was given up).

    Nothing of the run moves: random streams are set anew before every step, counts and notes are
    the step's own, and a problem's answers depend on no earlier ones (or no run could go on from a
    checkpoint). A step of more than ``MOST_SECONDS`` is given up at its next count.

    Raises what a step to be captured as a graph raises, as the run's own would.
    """
    clock, inits = Stopwatch(ctx.device), Stopwatch(ctx.device)
    began = None
    aside = replace(ctx, meter=_Deadline(MOST_SECONDS), notes=copy.deepcopy(ctx.notes), step=0)
    # What fails here fails in the run's own first step, which makes a record of it; not so a
    # capture, after which the process may be unable to do what it could before.
    failures = BudgetSpent if ctx.graphs is not None else Exception
    with suppress(failures), clock:
        determinism.seed_globals(ctx.seeds.method, ctx.device)
        with inits:
            state = method.init(aside)
        began = inits.seconds
        determinism.seed_globals(ctx.seeds.method + 1, ctx.device)
        method.step(aside, detached(state))
    return clock.seconds, began
