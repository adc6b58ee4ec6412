"""MLflow with a database in a file, read back. Needs ``pip install -e ".[mlflow]"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metabench.run.tracking import TrackedRun, opened

mlflow = pytest.importorskip("mlflow", reason='pip install -e ".[mlflow]"')
pytestmark = pytest.mark.slow  # it makes its database in ten seconds


def run_of(step: int, curve: dict[str, Any] | None = None) -> TrackedRun:
    settings = {"method": "maml", "method.inner_lr": 0.4, "task.prompt": "x" * 9000}
    settings |= {f"task.setting_{i}": i for i in range(150)}  # more than one call takes
    return TrackedRun("abc123", "k" * 64, "maml/5w1s seed 0", "quickstart", settings, step, curve)


def row(value: float) -> dict[str, float]:
    return {"valid/loss": value, "lam/w[3]": 2 * value, "cost/seconds": 1.0}


def test_a_database_holds_the_curve_which_a_resumed_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    place = f"sqlite:///{tmp_path}/runs.db"
    (tracker,) = opened([f"mlflow={place}"])
    first = run_of(0)
    tracker.start(first)
    tracker.log(first, 0, row(0.5))
    tracker.log(first, 2, row(0.25))
    tracker.finish(first, "interrupted", {})
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("metabench")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "KILLED"

    # The checkpoint is of step 1; an earlier launch had not logged step 1.
    (tracker,) = opened([f"mlflow={place}"])
    curve = {"step": [0, 1], "valid/loss": [0.5, 0.4], "cost/seconds": [1.0, 2.0]}
    again = run_of(1, curve)
    tracker.start(again)
    tracker.log(again, 2, row(0.25))
    tracker.log(again, 4, row(0.125))
    assert client.get_run(found.info.run_id).info.status == "RUNNING"
    tracker.finish(again, "done", {"final/test/loss": 0.125})
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "maml/5w1s seed 0")
    history = client.get_metric_history(found.info.run_id, "valid/loss")
    points = sorted((point.step, point.value) for point in history)
    assert points == [(0, 0.5), (1, 0.4), (2, 0.25), (4, 0.125)]  # each once
    assert found.data.metrics["lam/w.3"] == 0.25
    assert found.data.metrics["final/test/loss"] == 0.125
    params = found.data.params
    assert params["method.inner_lr"] == "0.4" and params["task.setting_149"] == "149"
    assert len(params["task.prompt"]) == 500
    assert found.data.tags["metabench.status"] == "done"
