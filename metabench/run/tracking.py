"""Trackers: what keeps the curves of running cells elsewhere, beside the store.

They live in the process that launches, whatever process runs a cell: events come to it through the
pipes of the workers. Each tracker has a thread of its own, so that one that is slow, hangs or fails
costs no cell anything: it is told once, and the run goes on.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metabench.core.cell import Cell, canonical
from metabench.core.environment import optional_packages
from metabench.core.errors import MetabenchError, SettingError
from metabench.core.registry import trackers
from metabench.core.text import one_line
from metabench.run.events import (
    Elsewhere,
    Event,
    Finished,
    Interrupted,
    Listener,
    Measured,
    Retried,
    Started,
    Untracked,
)
from metabench.store.record import Curve, Record

END_SECONDS = 60.0
"""How long a launch that has ended waits for a tracker to take what is left."""


@dataclass(frozen=True)
class TrackedRun:
    """A run of a cell, as a tracker sees it.

    ``name``: its place in its suite, or its task and method, with its seed; ``group``: the suite
    and the budget; ``settings``: "method.inner_lr" to a value, with task, method, solver and seed;
    ``id``: the same for every continuation of the run, and different for another store or for a
    cell that begins anew after a record. ``step`` and ``curve``: what it goes on from.
    """

    id: str
    key: str
    name: str
    group: str
    settings: Mapping[str, Any]
    step: int = 0
    curve: Curve | None = None

    @property
    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The rows of ``curve``: outer step and numbers."""
        columns = self.curve or {}
        for at, step in enumerate(columns.get("step", [])):
            yield int(step or 0), numbers_of({name: c[at] for name, c in columns.items()})


class Tracker(ABC):
    """Takes the curves of runs. Made once a launch, and called from one thread.

    ``place`` is what stands behind the name, as in ``--log tensorboard=DIR``; "" where nothing
    does. What a call raises ends the tracker for this launch, and no cell.
    """

    packages: tuple[str, ...] = ()
    """Modules that it needs; a launch without them is refused, with the command that installs
    them."""

    def __init__(self, place: str = "") -> None:
        self.place = place

    @property
    def where(self) -> str:
        """Where its runs can be seen, in words."""
        return self.place

    def check(self) -> None:
        """Raise MetabenchError where it cannot be used as things are; before anything runs."""
        return

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """A run begins, or goes on from ``run.step``, perhaps in another launch, perhaps after it
        was started before in this one and its process died."""

    @abstractmethod
    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        """A row of its learning curve: :data:`metabench.store.record.Curve` names the numbers."""

    @abstractmethod
    def finish(self, run: TrackedRun, status: str, numbers: Mapping[str, float]) -> None:
        """It has ended as "done", "failed", "diverged" or "timeout" with ``numbers`` of its record
        ("final/test/accuracy"), or is "interrupted" without any and may go on later."""

    def close(self) -> None:
        """The launch has ended."""
        return


def opened(log: Sequence[str]) -> list[Tracker]:
    """The trackers that ``log`` asks for, "NAME" or "NAME=PLACE" each, all of them usable.

    Raises UnknownName; SettingError where one stands there twice; MetabenchError where its package
    is not there, with the command that installs it, or where it cannot be used.
    """
    found: dict[str, Tracker] = {}
    for text in log:
        name, _, place = text.partition("=")
        cls: Any = trackers.get(name)
        if name in found:
            raise SettingError(f"tracker {name!r} is asked for twice")
        for package in cls.packages:
            if lack := optional_packages.why_not(package):
                repair = " && ".join(optional_packages.recipe(package))
                raise MetabenchError(f"tracker {name!r}: {lack}; repair: {repair}")
        found[name] = cls(place)
        found[name].check()
    return [*found.values()]


class Tracking:
    """A listener that passes events on, and tells trackers of them; a context manager.

    ``names`` and ``groups``: key of a cell to what it is called. Nothing that a tracker does
    reaches the launch, but for one :class:`metabench.run.events.Untracked` event.
    """

    def __init__(
        self,
        log: Sequence[Tracker],
        listener: Listener,
        *,
        names: Mapping[str, str],
        group: str,
        store: Path,
        end_seconds: float = END_SECONDS,
    ) -> None:
        self.listener, self.names, self.group = listener, names, group
        self.store, self.end_seconds = str(store.resolve()), end_seconds
        self.runs: dict[str, TrackedRun] = {}
        self.channels = [_Channel(tracker) for tracker in log]

    def __call__(self, event: Event) -> None:
        """Hand an event on; takes no longer than the listener does."""
        self._track(event)
        self.listener(event)
        self._tell()

    def _track(self, event: Event) -> None:
        if isinstance(event, Started):
            run = self._run(event)
            self._send(lambda tracker: tracker.start(run))
            return
        cell = event.record.cell if isinstance(event, Finished) else getattr(event, "cell", None)
        known = self.runs.get(cell.key) if isinstance(cell, Cell) else None
        if known is None:  # read and not run, or nothing of a cell
            return
        if isinstance(event, Measured):
            step, numbers = int(event.row["step"] or 0), numbers_of(event.row)
            self._send(lambda tracker: tracker.log(known, step, numbers))
        elif isinstance(event, Finished):
            status, final = event.record.status, final_numbers(event.record)
            del self.runs[known.key]
            self._send(lambda tracker: tracker.finish(known, status, final))
        elif isinstance(event, Interrupted | Retried | Elsewhere):
            del self.runs[known.key]
            self._send(lambda tracker: tracker.finish(known, "interrupted", {}))

    def _run(self, event: Started) -> TrackedRun:
        cell = event.cell
        ident = hashlib.sha256(f"{self.store} {cell.key} {event.trial}".encode()).hexdigest()[:16]
        name = self.names.get(cell.key, str(cell))
        run = TrackedRun(
            ident, cell.key, name, self.group, settings_of(cell), event.step, event.curve
        )
        self.runs[cell.key] = run
        return run

    def _send(self, call: Callable[[Tracker], None]) -> None:
        for channel in self.channels:
            channel.put(call)

    def _tell(self) -> None:
        """Say of each tracker that has failed that it has, once."""
        for channel in self.channels:
            if channel.error and not channel.told:
                channel.told = True
                self.listener(Untracked(channel.name, channel.error))

    def __enter__(self) -> Tracking:
        for channel in self.channels:
            channel.start()
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs.values():  # cut off: the launch was ended at once
            self._send(lambda tracker, run=run: tracker.finish(run, "interrupted", {}))  # type: ignore[misc]
        self._send(lambda tracker: tracker.close())
        for channel in self.channels:
            channel.end(self.end_seconds)
        self._tell()


class _Channel:
    """The thread of a tracker, and what it has still to take."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.name: str = tracker.registered_name  # type: ignore[attr-defined]
        self.error, self.told = "", False
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        # A daemon: one that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"log {self.name}")

    def start(self) -> None:
        self._thread.start()

    def put(self, call: Callable[[Tracker], None]) -> None:
        if not self.error:
            self._calls.put(call)

    def end(self, seconds: float) -> None:
        self._calls.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.error = f"it has not taken what was logged within {seconds:g} seconds"

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.error:
                continue
            try:
                call(self.tracker)
            except (Exception, SystemExit) as error:  # of somebody else's service: anything
                self.error = f"{type(error).__name__}: {one_line(str(error))}"


def numbers_of(row: Mapping[str, float | None]) -> dict[str, float]:
    """A row of a learning curve without its step and without what it lacks."""
    return {name: x for name, x in row.items() if x is not None and name != "step"}


def settings_of(cell: Cell) -> dict[str, Any]:
    """Every setting of a cell by its full name; lists and tables as JSON."""
    out: dict[str, Any] = {
        "task": cell.task,
        "method": cell.method,
        "solver": cell.solver,
        "seed": cell.seed,
    }
    for group in ("task_settings", "method_settings", "solver_settings", "budget"):
        for name, value in getattr(cell, group).items():
            plain = value if isinstance(value, bool | int | float | str) else canonical(value)
            out[f"{group.removesuffix('_settings')}.{name}"] = plain
    return out


def final_numbers(record: Record) -> dict[str, float]:
    """The metrics and the costs of a record, with the half-widths over episodes (``.ci95``)."""
    out = {}
    for evaluation, metrics in record.metrics.items():
        for name, found in metrics.items():
            out[f"final/{evaluation}/{name}"] = found.mean
            if found.ci95 is not None:
                out[f"final/{evaluation}/{name}.ci95"] = found.ci95
    return out | {f"final/cost/{name}": float(value) for name, value in record.cost.items()}
