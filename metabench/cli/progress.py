"""What a launch is doing, for people: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from metabench.cli.printing import terminal
from metabench.core.cell import Cell
from metabench.core.text import counted, duration
from metabench.run.events import (
    UNNAMED,
    CellWords,
    Elsewhere,
    Event,
    Finished,
    Measured,
    Progress,
    Quarantined,
    Refused,
    Started,
    Stopping,
    Untracked,
    describe,
)
from metabench.store.record import STATUSES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_SECONDS = 30.0
"""Between two plain lines about running cells."""


@dataclass
class Running:
    """A cell at work: since when, from which part of its budget on, and how far it is."""

    cell: Cell
    since: float
    step: int = 0
    horizon: int | None = None
    first: float | None = None
    fraction: float = 0.0
    phase: str = "starting"
    latest: str = ""


class Tally:
    """How many cells of a launch are where, and how long the rest will take."""

    def __init__(
        self, total: int, jobs: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.jobs, self.clock = total, max(1, jobs), clock
        self.counts = dict.fromkeys((*STATUSES, "not applicable"), 0)
        self.reused = 0
        self.elsewhere: set[str] = set()
        self.running: dict[str, Running] = {}
        self.durations: list[float] = []

    def take(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Quarantined | Stopping | Measured | Untracked):
            return
        now = self.clock()
        if isinstance(event, Finished):
            key = event.record.key
            running = self.running.pop(key, None)
            self.elsewhere.discard(key)
            self.counts[event.record.status] += 1
            self.reused += event.reused
            if running is not None and event.record.status == "done":
                # A resumed cell did only part of its work here.
                part = 1.0 - (running.first or 0.0)
                if part > 0.05:
                    self.durations.append((now - running.since) / part)
            return
        key = event.cell.key
        if isinstance(event, Started):
            self.elsewhere.discard(key)
            self.running[key] = Running(event.cell, now, event.step)
        elif isinstance(event, Progress):
            running = self.running.setdefault(key, Running(event.cell, now))
            if running.first is None:
                running.first, running.since = event.fraction, now
            running.step, running.horizon = event.step, event.horizon
            running.fraction, running.phase = event.fraction, event.phase
            running.latest = ", ".join(f"{k} {v:.4g}" for k, v in event.latest.items())
        else:
            self.running.pop(key, None)
            if isinstance(event, Refused):
                self.counts["not applicable"] += 1
            elif isinstance(event, Elsewhere):
                self.elsewhere.add(key)

    @property
    def ended(self) -> int:
        """Cells that are finished or refused."""
        return sum(self.counts.values())

    def seconds_left(self) -> float | None:
        """An estimate, from finished cells and from how fast the running ones go; None where
        nothing is known yet."""
        now = self.clock()
        whole: list[float] = list(self.durations)
        rest = 0.0
        unknown = 0
        for running in list(self.running.values()):
            part = running.fraction - (running.first or 0.0)
            if part > 0.01:
                each = (now - running.since) / part
                whole.append(each)
                rest += each * max(0.0, 1.0 - running.fraction)
            else:
                unknown += 1
        if not whole:
            return None
        waiting = self.total - self.ended - len(self.running) - len(self.elsewhere)
        mean = sum(whole) / len(whole)
        return (rest + mean * (max(0, waiting) + unknown)) / self.jobs

    def __str__(self) -> str:
        parts = [f"{self.ended}/{counted(self.total, 'cell')}"]
        parts += [f"{n} {what}" for what, n in self.counts.items() if n]
        if self.running:
            parts.append(f"{len(self.running)} running")
        if self.elsewhere:
            parts.append(f"{len(self.elsewhere)} running elsewhere")
        left = self.seconds_left()
        if left is not None and self.ended < self.total:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)


def view(
    total: int, jobs: int = 1, console: Console | None = None, words: CellWords = UNNAMED
) -> Live | Lines:
    """The right view of a launch of ``total`` cells for where the output goes; ``words``: how to
    name them."""
    console = console or terminal.console(stderr=True)
    tally = Tally(total, jobs)
    kind = Live if console.is_terminal else Lines
    return kind(tally, console, words)


class Lines:
    """One line for each thing that happens, and now and then one about the running cells."""

    def __init__(self, tally: Tally, console: Console, words: CellWords = UNNAMED) -> None:
        self.tally, self.console, self.words = tally, console, words
        self._last = tally.clock()
        self._counted = ""

    def __call__(self, event: Event) -> None:
        """Print what is worth a line."""
        self.tally.take(event)
        now = self.tally.clock()
        if isinstance(event, Progress):
            if now - self._last < LINE_SECONDS:
                return
            for running in list(self.tally.running.values()):
                self._print(self._line_of(running))
            self._count()
        else:
            text = describe(event, self.words)
            if not text:
                return
            self._print(text)
            if isinstance(event, Finished) and not event.reused:
                self._count()
        self._last = now

    def _line_of(self, running: Running) -> str:
        parts: Sequence[str] = (
            self.words.of(running.cell),
            f"{_steps(running)} ({running.fraction:.0%})",
            running.phase,
            running.latest,
        )
        return "  ".join(part for part in parts if part)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _count(self) -> None:
        """How many cells are where, unless that is what was said last."""
        if (text := str(self.tally)) != self._counted:
            self._print(text)
            self._counted = text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count()


class Live:
    """Bars of the running cells below what has happened, redrawn in place."""

    def __init__(self, tally: Tally, console: Console, words: CellWords = UNNAMED) -> None:
        from rich.live import Live as RichLive

        self.tally, self.console, self.words = tally, console, words
        self._live = RichLive(
            console=console, refresh_per_second=4, get_renderable=self.render, transient=True
        )

    def __call__(self, event: Event) -> None:
        """Print what stays; the rest is drawn from the tally."""
        self.tally.take(event)
        quiet = isinstance(event, Started) or (isinstance(event, Finished) and event.reused)
        text = "" if quiet else describe(event, self.words)
        if text:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The view now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for running in list(self.tally.running.values()):
            table.add_row(
                Text(self.words.of(running.cell)),
                ProgressBar(total=1.0, completed=min(1.0, running.fraction), width=24),
                _steps(running),
                running.phase,
                Text(running.latest, overflow="ellipsis"),
            )
        bar = ProgressBar(total=max(1, self.tally.total), completed=self.tally.ended, width=40)
        return Group(table, bar, Text(str(self.tally)))

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self.console.print(str(self.tally), markup=False, highlight=False)


def _steps(running: Running) -> str:
    return f"{running.step}/{running.horizon}" if running.horizon else f"step {running.step}"
