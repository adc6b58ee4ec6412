"""What happens while cells run, for listeners: plain data that can cross a process border."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from metabench.core.cell import Cell
from metabench.core.text import duration
from metabench.store.files import BadFile
from metabench.store.record import Curve, Record


@dataclass(frozen=True)
class Started:
    """A cell begins, or goes on from outer step ``step`` of its checkpoint, with the learning curve
    that it has there. ``trial`` counts its beginnings: those that a checkpoint goes on from are the
    same one."""

    cell: Cell
    step: int = 0
    curve: Curve = field(default_factory=dict)
    trial: int = 1


@dataclass(frozen=True)
class Progress:
    """Outer steps done of ``horizon`` (None where the budget is set in something else).

    ``fraction`` of the budget that is spent; ``phase`` is "training" or the name of the
    evaluation in progress; ``latest`` holds the last logged numbers.
    """

    cell: Cell
    step: int
    horizon: int | None
    fraction: float
    phase: str = "training"
    latest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A row of the learning curve of a cell, as its record will have it."""

    cell: Cell
    row: Mapping[str, float | None]


@dataclass(frozen=True)
class Finished:
    """A cell has a record; ``reused`` where it was in the store already, ``unsaved`` is why the
    store could not keep it."""

    record: Record
    reused: bool = False
    unsaved: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A file in the store that could not be trusted."""

    bad: BadFile


@dataclass(frozen=True)
class Elsewhere:
    """A cell that another process (``holder``) is running; it is looked at again at the end."""

    cell: Cell
    holder: str


@dataclass(frozen=True)
class Refused:
    """A cell that the theory does not allow, with the reason."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Interrupted:
    """A cell that stopped at outer step ``step`` with a checkpoint to go on from."""

    cell: Cell
    step: int = 0


@dataclass(frozen=True)
class Stopping:
    """The launch has been asked to stop; running cells go on to their next step boundary."""


@dataclass(frozen=True)
class Retried:
    """A cell whose process died and that is tried once more."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Untracked:
    """A tracker that has failed; cells run on without it."""

    tracker: str
    reason: str


Event = (
    Started
    | Progress
    | Measured
    | Finished
    | Quarantined
    | Elsewhere
    | Refused
    | Interrupted
    | Stopping
    | Retried
    | Untracked
)
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that nobody listens with."""


@dataclass(frozen=True)
class CellWords:
    """What people call the cells of a launch (key to name), and the ``store`` that a command about
    one of them has to name, if any."""

    names: Mapping[str, str] = field(default_factory=dict)
    store: str = ""

    def of(self, cell: Cell) -> str:
        """The name of a cell: its place in its suite, or else its task and method."""
        return self.names.get(cell.key, str(cell))

    def where(self, record: Record) -> str:
        """Where a run failed, and the command that shows its traceback; "" where it has none."""
        if not record.traceback:
            return ""
        store = ["--store", self.store] if self.store else []
        command = shlex.join(["metabench", "logs", record.key[:10], *store])
        at = f"raised at {record.raised_at}; " if record.raised_at else ""
        return f"    {at}traceback: {command}"


UNNAMED = CellWords()
"""Cells by their tasks and methods, in the store that commands take by themselves."""


def describe(event: Event, words: CellWords = UNNAMED) -> str:
    """An event as a line, a failure with a second one that says where; empty for those that are no
    news by themselves."""
    name = words.of(event.cell) if hasattr(event, "cell") else ""
    if isinstance(event, Started):
        return f"{name}: " + (f"goes on from step {event.step}" if event.step else "starts")
    if isinstance(event, Finished):
        record = event.record
        seconds = record.cost.get("seconds", 0) + record.cost.get("evaluation_seconds", 0)
        text = f"{words.of(record.cell)}: {record.status}"
        if event.reused:
            text += " (found in the store)"
        elif record.status == "done":
            text += f" in {duration(seconds)}"
        if record.reason and record.reason != event.unsaved:
            text += f": {record.reason}"
        text += f"; NOT SAVED: {event.unsaved}" if event.unsaved else ""
        return "\n".join(filter(None, (text, words.where(record))))
    if isinstance(event, Quarantined):
        return f"bad file: {event.bad}"
    if isinstance(event, Elsewhere):
        return f"{name}: running elsewhere ({event.holder})"
    if isinstance(event, Refused):
        return f"{name}: not applicable: {event.reason}"
    if isinstance(event, Interrupted):
        return f"{name}: stopped at step {event.step}, checkpoint kept"
    if isinstance(event, Stopping):
        return (
            "stopping: every running cell keeps a checkpoint at its next step; interrupt again "
            "to end at once"
        )
    if isinstance(event, Retried):
        return f"{name}: {event.reason}; once more"
    if isinstance(event, Untracked):
        return f"NOT LOGGED to {event.tracker} any more: {event.reason}; cells run on"
    return ""
