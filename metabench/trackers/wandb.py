"""Curves of runs for Weights & Biases.

``--log wandb`` or ``--log wandb=PROJECT`` (without: WANDB_PROJECT, else "metabench"); all else is
set by wandb's own variables. With WANDB_MODE=offline everything stays in the folder ``wandb`` (or
WANDB_DIR) until ``wandb sync --append``. A run that goes on has the id that it had.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metabench.core.errors import MetabenchError
from metabench.core.registry import tracker
from metabench.run.tracking import TrackedRun, Tracker


@tracker("wandb")
class WeightsAndBiases(Tracker):
    """Runs of a project, grouped by suite and budget."""

    packages = ("wandb",)

    def __init__(self, place: str = "") -> None:
        super().__init__(place or os.environ.get("WANDB_PROJECT") or "metabench")
        self._runs: dict[str, Any] = {}

    @property
    def where(self) -> str:
        """The project."""
        return f"project {self.place}"

    def check(self) -> None:
        """Raise MetabenchError where wandb would ask for a key."""
        import wandb

        online = wandb.setup().settings.mode in ("online", "shared")
        if online and not wandb.login(prompt=False, verify=False):
            raise MetabenchError(
                "tracker 'wandb': no key is known here; repair: wandb login, or set "
                "WANDB_MODE=offline"
            )

    def start(self, run: TrackedRun) -> None:
        """A run of its own beside those that are open, or the one of that id again."""
        import wandb

        self._end(run, 1)
        folder = Path(wandb.setup().settings.wandb_dir)
        known = any(folder.glob(f"*run-*-{run.id}"))
        self._runs[run.key] = wandb.init(
            project=self.place,
            id=run.id,
            name=run.name,
            group=run.group,
            config=dict(run.settings),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        if not known:  # what an earlier launch did not log
            for step, numbers in run.rows:
                self.log(run, step, numbers)

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        """A row at this step."""
        self._runs[run.key].log(dict(numbers), step=step)

    def finish(self, run: TrackedRun, status: str, numbers: Mapping[str, float]) -> None:
        """Final numbers in the summary; a run that was interrupted counts as not ended well."""
        open_ = self._runs[run.key]
        open_.summary.update({**numbers, "status": status})
        self._end(run, int(status != "done"))

    def close(self) -> None:
        """End what is open."""
        for open_ in self._runs.values():
            open_.finish(exit_code=1)
        self._runs.clear()

    def _end(self, run: TrackedRun, code: int) -> None:
        if (open_ := self._runs.pop(run.key, None)) is not None:
            open_.finish(exit_code=code)
