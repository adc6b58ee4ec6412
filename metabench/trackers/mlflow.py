"""Curves of runs for MLflow.

``--log mlflow`` (the server or database that MLFLOW_TRACKING_URI names, else MLflow's own default)
or ``--log mlflow=sqlite:///runs.db``; the experiment is MLFLOW_EXPERIMENT_NAME, else "metabench".
A run that goes on is found by the tag ``metabench.run``, and rows that it has are not written
twice.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from metabench.core.registry import tracker
from metabench.run.tracking import TrackedRun, Tracker

TAG = "metabench.run"
PARAMS, METRICS = 100, 1000
"""Most of each that MLflow takes in one call."""
LONGEST = 500
"""Characters of a parameter that every MLflow takes."""
STATUS = {"done": "FINISHED", "interrupted": "KILLED"}
CLOCK = "cost/seconds"
"""Stands in every row, and so says which steps a run has."""


@tracker("mlflow")
class MLflow(Tracker):
    """Runs of an experiment, by MLflow's client."""

    packages = ("mlflow",)

    def __init__(self, place: str = "") -> None:
        super().__init__(place)
        self._client: Any = None
        self._runs: dict[str, str] = {}
        self._known: dict[str, set[int]] = {}

    @property
    def where(self) -> str:
        """The tracking server or database."""
        return self.place or os.environ.get("MLFLOW_TRACKING_URI") or "MLflow's default"

    def start(self, run: TrackedRun) -> None:
        """A new run, or the one of that id again."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        if self._client is None:
            self._client = MlflowClient(tracking_uri=self.place or None)
        client, name = self._client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or "metabench"
        experiment = client.get_experiment_by_name(name)
        ident = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([ident], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if found:
            self._runs[run.key] = found[0].info.run_id
            client.update_run(self._runs[run.key], status="RUNNING")
        else:
            tags = {TAG: run.id, "metabench.key": run.key, "metabench.group": run.group}
            made = client.create_run(ident, tags=tags, run_name=run.name)
            self._runs[run.key] = made.info.run_id
            params = iter([Param(_name(k), str(v)[:LONGEST]) for k, v in run.settings.items()])
            for part in _parts(params, PARAMS):
                client.log_batch(self._runs[run.key], params=part)
        history = client.get_metric_history(self._runs[run.key], CLOCK) if found else []
        self._known[run.key] = {point.step for point in history}
        for step, numbers in run.rows:
            self.log(run, step, numbers)

    def log(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        """A row at this step, unless the run has it."""
        if step not in self._known[run.key]:
            self._known[run.key].add(step)
            self._write(run, step, numbers)

    def finish(self, run: TrackedRun, status: str, numbers: Mapping[str, float]) -> None:
        """Final numbers, and the status."""
        self._write(run, max(self._known.pop(run.key), default=0), numbers)
        ident = self._runs.pop(run.key)
        self._client.set_tag(ident, "metabench.status", status)
        self._client.set_terminated(ident, STATUS.get(status, "FAILED"))

    def _write(self, run: TrackedRun, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = iter([Metric(_name(k), v, now, step) for k, v in numbers.items()])
        for part in _parts(points, METRICS):
            self._client.log_batch(self._runs[run.key], metrics=part)


def _parts(items: Iterator[Any], most: int) -> Iterator[list[Any]]:
    while part := list(islice(items, most)):
        yield part


def _name(name: str) -> str:
    """A name that MLflow takes: lam/w[3] is lam/w.3."""
    return re.sub(r"[^\w\-. /]", ".", name.replace("]", ""))
