"""Curves of runs for TensorBoard: a folder of event files a run, below DIR.

``--log tensorboard`` or ``--log tensorboard=DIR``; ``tensorboard --logdir DIR`` shows them. A run
that goes on writes its curve so far anew and lets TensorBoard drop what its folder had, so that a
curve is whole also where an earlier launch did not log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metabench.core.registry import tracker
from metabench.run.tracking import TrackedRun, Tracker

DEFAULT = "results/tensorboard"


@tracker("tensorboard")
class TensorBoard(Tracker):
    """Event files, by torch.utils.tensorboard."""

    packages = ("tensorboard",)

    def __init__(self, place: str = "") -> None:
        super().__init__(place or DEFAULT)
        self._writers: dict[str, Any] = {}

    @property
    def where(self) -> str:
        """What to type."""
        return f"tensorboard --logdir {self.place}"

    def folder(self, run: TrackedRun) -> Path:
        """Where the event files of a run are."""
        name = re.sub(r"[^\w.,=+-]+", "-", run.name).strip("-")
        return Path(self.place, re.sub(r"[^\w.,=+-]+", "-", run.group).strip("-"), name)

    def start(self, run: TrackedRun) -> None:
        """A new event file, which takes the place of older ones."""
        from torch.utils.tensorboard import SummaryWriter

        self._end(run)
        folder = self.folder(run)
        writer = SummaryWriter(str(folder), purge_step=0)
        self._writers[run.key] = writer
        lines = [f"| {name} | {value} |" for name, value in run.settings.items()]
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))
        for step, numbers in run.rows:
            self.log(run, step, numbers)

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        """A point of each curve, on disk at once."""
        writer = self._writers[run.key]
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def finish(self, run: TrackedRun, status: str, numbers: Mapping[str, float]) -> None:
        """Settings and final numbers for the HPARAMS page; nothing for an interrupted run."""
        writer = self._writers[run.key]
        if status != "interrupted":
            writer.add_hparams(dict(run.settings) | {"status": status}, dict(numbers), run_name=".")
        self._end(run)

    def close(self) -> None:
        """Close what is open."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _end(self, run: TrackedRun) -> None:
        if (writer := self._writers.pop(run.key, None)) is not None:
            writer.close()
